"""The axis of covariate shift: what accuracy loses between a known and a shifted data set, and what of it quantization adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clipq.evaluate.metrics.robustness import Sides, effective_robustness, relative_loss
from clipq.evaluate.robustness.measured import Row, TwoSets, entries
from clipq.evaluate.robustness.pairs import SHIFTED_IMAGENET, scheme_of
from clipq.evaluate.robustness.published import SOURCE, published_line

AGAINST = ("relative_loss_known", "relative_loss_shifted", "effective_robustness")
LINE = "line_residual"


def shift_entry(engine: TwoSets, baseline: TwoSets | None, shifted: str = "") -> dict[str, Any]:
    """Return METRIC -> measurement of one engine on one pair.

    Args:
        engine: The known set first, then the shifted one.
        baseline: The baseline on the same images; None for the baseline itself, which has no comparison with itself.
        shifted: The set of ``pairs.SHIFTED_IMAGENET`` where published accuracies may be compared with; else empty.
    """
    own = _rows(engine, shifted)
    if baseline is None:
        return _with_line(entries(own, None, engine.n), shifted)
    other = _rows(baseline, shifted)
    own |= {
        "relative_loss_known": relative_loss(baseline.first.row, engine.first.row),
        "relative_loss_shifted": relative_loss(baseline.second.row, engine.second.row),
        "effective_robustness": effective_robustness(_sides(engine), _sides(baseline)),
    }
    return _with_line(entries(own, other, engine.n, AGAINST), shifted)


def line_for(known: str, shifted: str, classes: int) -> str:
    """Return the shifted set whose published accuracies a pair may be compared with, or nothing.

    They are over all 1,000 classes of ImageNet on the known side, so a subset of them has no such line.
    """
    named = scheme_of(shifted)
    return named if named in SHIFTED_IMAGENET and classes == 1000 and not known.endswith((":r", ":a")) else ""


def _rows(sets: TwoSets, shifted: str) -> dict[str, Row]:
    rows = {"accuracy_drop": sets.first.row - sets.second.row}
    if shifted:
        rows[LINE] = sets.second.row - published_line(shifted).foretold(sets.first.row, sets.first.n)
    return rows


def _sides(sets: TwoSets) -> Sides:
    return Sides(sets.first.row, sets.second.row, sets.first.n, sets.second.n)


def _with_line(found: dict[str, Any], shifted: str) -> dict[str, Any]:
    """Return the measurements with the line that the residual is of."""
    if not shifted:
        return found
    line: Mapping[str, Any] = {**asdict(published_line(shifted)), "source": SOURCE}
    return {**found, LINE: {**found[LINE], "line": dict(line)}}
