"""One gate and one number: pass, fail or unproven, why, and how many images would settle it."""

from __future__ import annotations

import math
from typing import Any, Literal

from clipq.evaluate.gates.chance import Hidden
from clipq.evaluate.gates.gate import Gate
from clipq.evaluate.gates.readings import Reading
from clipq.evaluate.report.format import difference, interval, quantity, relative

Outcome = Literal["pass", "fail", "unproven"]


def judge_reading(gate: Gate, reading: Reading, hidden: Hidden | None = None) -> dict[str, Any]:
    """Judge one number by one rule and return the entry of ``report["gates"]``.

    ``fail`` when the estimate is on the failing side; ``unproven`` when it is not but its 95 % interval reaches the failing side,
    so that the sample is too small to show it (``fail`` where the interval has to decide: non-inferiority); else ``pass``. Numbers
    without a notion of an interval (speed, size, cosine, divergence) are judged on the estimate. What was not measured fails: a gate
    that never looked must not let through. A percentage of zero fails where the number is worse than that zero, and else shows
    nothing. Where the interval is on the good side, but chance may hide more than the limit
    allows (``hidden``), nothing is shown either.
    """
    outcome = _outcome(gate, reading, hidden)
    needed = images_needed(gate, reading) if _undecided(gate, reading) else None
    scaled = None if reading.ci95 is None else [end * gate.scale for end in reading.ci95]
    value = None if reading.value is None else reading.value * gate.scale
    why = _sentence(gate, reading, outcome, needed) + (_unseen(gate, hidden) if hidden and _overlooked(gate, reading, hidden) else "")
    return {
        "rule": gate.rule, "engine": reading.engine, "data": reading.data, "value": value, "ci95": scaled,
        "outcome": outcome, "n": reading.n, "n_needed": needed, "why": why,
    }  # fmt: skip


def _outcome(gate: Gate, reading: Reading, hidden: Hidden | None) -> Outcome:
    if reading.undivided is not None:
        return "fail" if _worse_than_zero(gate, reading.undivided) else "unproven"
    if reading.value is None or gate.fails(reading.value * gate.scale):
        return "fail"
    if _undecided(gate, reading) or _overlooked(gate, reading, hidden):
        return "fail" if gate.whole else "unproven"
    return "pass"


def _worse_than_zero(gate: Gate, difference: float) -> bool:
    """Tell whether a difference to a baseline of zero is on the failing side of any percentage."""
    return difference < 0 if gate.op.startswith("<") else difference > 0


def _undecided(gate: Gate, reading: Reading) -> bool:
    """Tell whether the estimate is on the good side, and its interval is not wholly or not known."""
    if reading.value is None or gate.fails(reading.value * gate.scale):
        return False
    if reading.ci95 is None:
        return gate.kind not in {"paired", "bench"}
    return any(gate.fails(end * gate.scale) for end in reading.ci95)


def _overlooked(gate: Gate, reading: Reading, hidden: Hidden | None) -> bool:
    """Tell whether estimate and interval are on the good side, and chance may hide what is not."""
    if hidden is None or reading.value is None or gate.fails(reading.value * gate.scale) or _undecided(gate, reading):
        return False
    return gate.fails(hidden.most * gate.scale)


def _unseen(gate: Gate, hidden: Hidden) -> str:
    most = "" if math.isinf(hidden.most) else f" of up to {_show(gate, hidden.most)}"
    return f"; {hidden.why}{most}: nothing is shown. Gates on signed_gap or brier have no such bias"


def images_needed(gate: Gate, reading: Reading) -> int | None:
    """Return roughly how many images would bring the interval to the good side of the limit, or None when no number would.

    Intervals shrink with the square root of n; the rule of three asks for 3 / distance. Two significant digits, rounded up.
    """
    if reading.value is None or reading.ci95 is None or not reading.n:
        return None
    distance = abs(reading.value - gate.limit / gate.scale) * reading.base
    end = reading.ci95[0] if gate.op.startswith("<") else reading.ci95[1]
    reach = abs(end - reading.value) * reading.base
    if distance * 1000 < reach or distance == 0:
        return None
    floor = 3 / reading.n
    needed = 3 / distance if reach <= floor * 1.0001 else max(reading.n * (reach / distance) ** 2, 3 / distance)
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


def _sentence(gate: Gate, reading: Reading, outcome: Outcome, needed: int | None) -> str:
    if reading.undivided is not None:
        zero = f"the baseline's {gate.quantity.label}{reading.where} is zero, of which there is no percentage"
        worse = ", and the engine is worse" if outcome == "fail" else ""
        return f"{gate.rule}: {zero}{worse}; write max-degradation or min-improvement instead"
    if reading.value is None:
        return f"{gate.rule}: not measured{reading.where}, so it cannot pass"
    limit = f"the limit of {_show(gate, gate.limit / gate.scale)}"
    facts = f"{_facts(gate, reading)}: "
    if outcome == "pass" or not (gate.fails(reading.value * gate.scale) or _undecided(gate, reading)):
        return f"{facts}within {limit}"
    if _undecided(gate, reading):
        meaning = "its interval is not, so nothing is shown" if gate.whole else "the sample cannot show it"
        return f"{facts}within {limit}, but {meaning}; {_advice(reading, needed)}"
    sure = reading.ci95 is None or all(gate.fails(end * gate.scale) for end in reading.ci95)
    return f"{facts}beyond {limit}" + ("" if sure else ", though the interval reaches back over it")


def _show(gate: Gate, value: float | None) -> str:
    if gate.form == "delta_percent":
        return relative(value)
    return (difference if gate.form == "delta" else quantity)(value, gate.quantity.unit)


def _facts(gate: Gate, reading: Reading) -> str:
    text = f"{gate.quantity.label} {_show(gate, reading.value)}"
    percent = gate.form == "delta_percent"
    if reading.ci95 is not None:
        text += f" {interval(reading.ci95, 'fraction' if percent else gate.quantity.unit, signed=gate.form != 'value')}"
    text += " of the baseline's" if percent else ""
    return f"{text}{reading.where}" + (f", n = {reading.n:,}" if reading.n else "")


def _advice(reading: Reading, needed: int | None) -> str:
    if reading.ci95 is None:
        return "no interval was computed"
    return f"about {needed:,} images would" if needed else "no practical number of images would"
