"""Goals in words (Olive's vocabulary): each is one comparison, whose direction follows from which way the quantity is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipq.errors import UsageError
from clipq.evaluate.report.names import Quantity

GOALS: Mapping[str, str] = {
    "threshold": "the value itself is at least (or, where low is better, at most) this",
    "max-degradation": "not worse than the baseline by more than this",
    "percent-max-degradation": "not worse than the baseline by more than this many per cent of the baseline's value",
    "min-improvement": "better than the baseline by at least this",
    "percent-min-improvement": "better than the baseline by at least this many per cent of the baseline's value",
    "non-inferior": "the whole 95 % interval of the difference is not worse than the baseline by more than this margin",
}


@dataclass(frozen=True, slots=True)
class Side:
    """What fails: ``form`` (``value``, ``delta`` or ``delta_percent``) beyond ``limit`` on the side of ``op``; ``whole`` as in ``Gate``."""

    form: str
    op: str
    limit: float
    whole: bool = False


def compare(goal: str, number: float, kind: str, path: str, quantity: Quantity) -> Side:
    """Return the comparison that a goal means.

    Args:
        goal: A key of ``GOALS``.
        number: In the unit of the quantity (fractions in [0, 1]), or in per cent where the goal's name says so.
        kind: The part of the report, as in ``Gate``.
        path: The quantity as it was written.
        quantity: Which way is better, and the unit.

    Raises:
        UsageError: The quantity has no better direction or no baseline, or the goal could never fail or never pass.

    >>> from clipq.evaluate.report.names import METRICS
    >>> compare("min-improvement", 0.01, "results", "acc1", METRICS["acc1"])
    Side(form='delta', op='<', limit=0.01, whole=False)
    """
    _check_meaning(goal, kind, path, quantity)
    _check_number(goal, number, path, quantity)
    op = "<" if quantity.better == "high" else ">"
    if goal == "threshold":
        return Side("value", op, number)
    better = 1 if quantity.better == "high" else -1
    limit = better * number if goal.endswith("min-improvement") else -better * number
    form = "delta_percent" if goal.startswith("percent-") else "delta"
    return Side(form, op, limit + 0.0, whole=goal == "non-inferior")  # + 0.0: no minus zero


def _check_meaning(goal: str, kind: str, path: str, quantity: Quantity) -> None:
    if quantity.better not in {"high", "low"}:
        raise UsageError(f"{path} is not better one way, so {goal} means nothing", fix=f"Write a comparison, e.g. {path}.delta>0.01.")
    if kind == "paired" and goal != "threshold":
        raise UsageError(f"{path} is a comparison with the baseline itself", found=goal, expected="threshold")
    if kind == "bench" and goal == "non-inferior":
        raise UsageError(f"{path} has no interval that could show {goal}", expected="max-degradation or percent-max-degradation")


def _check_number(goal: str, number: float, path: str, quantity: Quantity) -> None:
    """Refuse limits that nothing can cross or nothing can keep: they are slips of the unit."""
    if number < 0 and goal != "threshold":
        raise UsageError(f"{goal} of {path} is a distance", found=f"{number:g}", expected="0 or more")
    if goal.startswith("percent-"):
        most_is_all = (quantity.better == "high") == (goal == "percent-max-degradation")
        if most_is_all and number >= 100:
            raise UsageError(f"{goal} of {path} is in per cent of the baseline's value", found=f"{number:g}", expected="below 100")
    elif quantity.unit == "fraction" and not (0 <= number <= 1 if goal == "threshold" else number < 1):
        raise UsageError(
            f"{path} is a fraction in [0, 1], so {goal} cannot be this", found=f"{number:g}", fix="Write 0.01 for one percent point."
        )
