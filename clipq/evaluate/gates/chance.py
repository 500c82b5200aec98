"""What chance can hide from a gate: a calibration error near the one that luck alone gives hardly grows when an engine gets worse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipq.evaluate.gates.gate import Gate
from clipq.evaluate.gates.readings import Reading
from clipq.evaluate.metrics.calibration import ECE_CHANCES
from clipq.evaluate.report.format import quantity

_AFTER_MENDING = ("ece15_after_temperature", "ece15_after_isotonic")
BIASED = ("ece15", "ece_em15", "ece_sweep", "ece_debiased", "ece_kde", "mce", "rmsce", *_AFTER_MENDING)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A rise that may be there and not be seen.

    Attributes:
        most: How far the metric may have risen, in the unit of the reading; infinite where nothing limits it.
        why: Half a sentence.
    """

    most: float
    why: str


def hidden_rise(gate: Gate, report: Mapping[str, Any], reading: Reading) -> Hidden | None:
    """Return what a gate on the rise of a calibration error cannot see, or None where nothing is hidden.

    A perfectly calibrated model shows an ECE above 0 by chance. Where the baseline's is below ``ECE_CHANCES`` times that, a true rise comes
    out smaller than it is, and so does its interval. The value itself errs upwards, and a fall comes out too small as well: such gates
    are safe. Of ``ece15`` the rise is at most ``calibration_shift`` whatever chance did, so a passing gate can still be shown.
    """
    if gate.kind != "results" or gate.metric not in BIASED or gate.form == "value" or not gate.op.startswith(">") or gate.limit < 0:
        return None
    entries = report["results"].get(reading.engine, {}).get(reading.data, {})
    error = _before(entries.get(gate.metric if gate.metric in _AFTER_MENDING else "ece15"))
    chance = _before(entries.get("ece15_by_chance"))
    if error is None or chance is None or error >= ECE_CHANCES * chance:
        return None
    shift = report["paired"].get(reading.engine, {}).get(reading.data, {}).get("calibration_shift")
    most = math.inf if shift is None or gate.metric != "ece15" else shift / reading.base
    shown = f"the baseline's {quantity(error, 'fraction')} is close to the {quantity(chance, 'fraction')} that chance alone gives"
    return Hidden(most, f"{shown}, and hides a rise")


def _before(entry: Mapping[str, Any] | None) -> float | None:
    """Return the baseline's value of a measurement."""
    if entry is None or entry["value"] is None or entry["delta"] is None:
        return None
    return float(entry["value"] - entry["delta"])
