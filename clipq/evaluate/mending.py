"""Whether the calibration that an engine lost is a mere change of scale, which one temperature mends, or real damage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.metrics.temperature import has_minimum
from clipq.evaluate.report.format import difference, interval
from clipq.evaluate.report.names import METRICS
from clipq.evaluate.report.tables import meaning

LOST, LEFT = "ece15", "ece15_after_temperature"


def temperature_ratio(baseline: float | None, engine: float | None) -> dict[str, float]:
    """Return ``temperature_ratio``: the engine's fitted temperature over the baseline's on the same samples, or nothing.

    Guo et al. 2017 (arXiv 1706.04599) for the fit. Above 1 the engine's logits have to be flattened more than the baseline's (it became
    surer of itself), below 1 less; 1 means that the scale is unchanged. Nothing where one of them could not be fitted, or has no minimum.

    Args:
        baseline: Fitted temperature of the baseline.
        engine: That of the engine.

    >>> temperature_ratio(1.5, 1.8), temperature_ratio(None, 1.8)
    ({'temperature_ratio': 1.2}, {})
    """
    if baseline is None or engine is None or not (has_minimum(baseline) and has_minimum(engine)):
        return {}
    return {"temperature_ratio": engine / baseline}


def mending(report: Mapping[str, Any], engine: str) -> str | None:
    """Return what is left, after one temperature per engine, of the ECE-15 that the engine lost; None where none is shown to be lost.

    Of the data set with the largest shown loss. One scalar mends it: the interval of what is left ends below half of the loss.
    Real damage: it does not, and the interval excludes zero. Else the sample does not show which.
    """
    shown = {data: results for data, results in report["results"].get(engine, {}).items() if _lost(results)}
    if not shown:
        return None
    data = max(shown, key=lambda name: shown[name][LOST]["delta"])
    lost, left = shown[data][LOST], shown[data][LEFT]
    unit, ends = METRICS[LOST].unit, left["delta_ci95"]
    others = f" (largest of {len(shown)})" if len(shown) > 1 else ""
    ratio = report["paired"].get(engine, {}).get(data, {}).get("temperature_ratio")
    scale = "" if ratio is None else f" ({ratio:.2f} times that of the baseline)"
    return (
        f"calibration on {data}{others}: of {difference(lost['delta'], unit)} ECE-15, {difference(left['delta'], unit)} "
        f"{interval(ends, unit, signed=True)} is left after one temperature{scale}: {_judged(lost['delta'], ends)}"
    )


def _lost(results: Mapping[str, Any]) -> bool:
    """Return whether the results show a higher ECE-15 than the baseline's, and hold an interval of what a temperature leaves of it."""
    lost, left = results.get(LOST), results.get(LEFT)
    if lost is None or left is None or lost["delta"] is None or left["delta_ci95"] is None:
        return False
    return meaning(lost, METRICS[LOST])[0] == "worse"


def _judged(lost: float, ends: list[float]) -> str:
    if ends[1] <= lost / 2:
        return "one scalar mends it" if ends[0] <= 0 else "one scalar mends most of it"
    return "real damage, not a change of scale" if ends[0] > 0 else "the sample does not show whether one scalar mends it"
