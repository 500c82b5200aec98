"""Which engine makes another one pointless on this machine, and why: faster, as reliable, and what the layers that ran say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clipq.evaluate.report.format import quantity, ratio
from clipq.evaluate.report.ran import proof_of
from clipq.evaluate.report.tables import size_bytes

_NOISE = 0.05  # latencies closer than this are equal
_MANY = 1.25  # times as many reformats, and they are worth a word
_WIDTH = {"fp32": 4, "tf32": 3, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
_BATCH = re.compile(r"image-b(\d+)")
_BETTER = {"acc1": 1, "ece15": -1}  # sign of an improvement; AUROC of MCM is the third


def dominated_by(report: Mapping[str, Any], engine: str, failed: Iterable[str] = ()) -> str | None:
    """Return the engine that makes this one pointless on this machine, the fastest of several, or None.

    This engine must not be more reliable: better beyond noise in no accuracy, ECE or AUROC of MCM. Then it is dominated by one that is
    faster in one scenario, slower in none and not larger; and by one of higher precision, where it is not faster at the largest batch
    they share. Noise of a figure is the wider of the two engines' half intervals of its difference to the baseline; that of a latency
    is 5 %. An engine in ``failed`` dominates nobody. A simulated engine neither dominates nor is dominated: its speed is not its own.
    """
    simulated = {name for name, entry in report["engines"].items() if entry.get("simulated")}
    if engine in simulated:
        return None
    others = [other for other in report["engines"] if other != engine and other not in {*failed, *simulated}]
    stronger = [other for other in others if _beats(report, other, engine) or _outranks(report, other, engine)]
    return min(stronger, key=lambda other: min(_times(report, other).values()), default=None)


def domination(report: Mapping[str, Any], engine: str, stronger: str) -> str:
    """Return in one sentence why ``stronger`` dominates ``engine``, with what the layers that ran say of it."""
    ours, theirs = _times(report, engine), _times(report, stronger)
    speed = ", ".join(f"{ratio(ours[name] / theirs[name])} as fast at {name}" for name in ours if name in theirs)
    sizes = [quantity(size_bytes(report, name), "bytes") for name in (stronger, engine)]
    text = f"dominated by {stronger} here: that is as reliable within noise, {speed}, {sizes[0]} against {sizes[1]}"
    reasons = list(_reasons(report, engine, stronger))
    return f"{text}; {'; '.join(reasons)}" if reasons else text


def _beats(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = _times(report, other), _times(report, engine)
    ratios = [theirs[name] / ours[name] for name in ours if name in theirs]
    faster = bool(ratios) and min(ratios) < 1 - _NOISE and max(ratios) <= 1 + _NOISE
    return faster and _no_larger(report, other, engine) and not _more_reliable(report, engine, other)


def _outranks(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = (_WIDTH.get(report["engines"][name].get("precision", ""), 0) for name in (other, engine))
    batch = _largest_batch(report, other, engine)
    if not ours or theirs <= ours or not batch:
        return False
    faster = _times(report, engine)[batch] < (1 - _NOISE) * _times(report, other)[batch]
    return not faster and not _more_reliable(report, engine, other)


def _more_reliable(report: Mapping[str, Any], engine: str, other: str) -> bool:
    """Return whether any accuracy, ECE or AUROC of ``engine`` is better by more than noise; where nothing is shared, it may be."""
    ours, theirs = report["results"].get(engine, {}), report["results"].get(other, {})
    pairs = [
        (ours[data][metric], theirs[data][metric], sign)
        for data in ours
        for metric, sign in _BETTER.items()
        if metric in ours[data] and metric in theirs.get(data, {})
    ]
    ours, theirs = report["ood"].get(engine, {}), report["ood"].get(other, {})
    pairs += [
        (ours[pair]["mcm"]["auroc"], theirs[pair]["mcm"]["auroc"], 1)
        for pair in ours
        if "auroc" in ours[pair].get("mcm", {}) and "auroc" in theirs.get(pair, {}).get("mcm", {})
    ]
    return not pairs or any(_better(*pair) for pair in pairs)


def _better(ours: Mapping[str, Any], theirs: Mapping[str, Any], sign: int) -> bool:
    if ours["value"] is None or theirs["value"] is None:
        return False
    return bool(sign * (ours["value"] - theirs["value"]) > max(_half(ours), _half(theirs)))


def _half(entry: Mapping[str, Any]) -> float:
    ends = entry["delta_ci95"]
    return 0.0 if ends is None or None in ends else (ends[1] - ends[0]) / 2


def _times(report: Mapping[str, Any], engine: str) -> dict[str, float]:
    scenarios = report["bench"].get(engine, {})
    return {name: values["p50_s"] for name, values in sorted(scenarios.items()) if "p50_s" in values}


def _largest_batch(report: Mapping[str, Any], other: str, engine: str) -> str:
    """Return the scenario with the most images at once that both engines have, by the wall clock, or nothing."""
    shared = {name: int(found[1]) for name in _times(report, engine) if (found := _BATCH.fullmatch(name)) and name in _times(report, other)}
    return max(shared, key=lambda name: shared[name], default="")


def _no_larger(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = size_bytes(report, other), size_bytes(report, engine)
    return theirs is not None and ours is not None and theirs <= ours


def _reasons(report: Mapping[str, Any], engine: str, stronger: str) -> Iterator[str]:
    """Yield what the layers that ran say of it: too little in its precision, attention in pieces, many reformats."""
    ours, theirs = (proof_of(report["engines"][name]) for name in (engine, stronger))
    if ours is None:
        return
    precision = report["engines"][engine]["precision"]
    ran, asked = (ours[key].get(precision) for key in ("multiply_adds", "asked"))
    if ran is not None and asked is not None and ran < 0.95 * asked:
        yield f"only {quantity(ran, 'fraction')} of its work ran in {precision.upper()}, of {quantity(asked, 'fraction')} asked for"
    if theirs is None or ours["towers"] != theirs["towers"]:
        return
    if ours["attention"] != "fused" and theirs["attention"] == "fused":
        yield f"its attention is {ours['attention']}, that of {stronger} is fused"
    if ours["reformats"] > _MANY * theirs["reformats"]:
        yield f"{ours['reformats']} of its kernels only change formats, against {theirs['reformats']}"
