"""The verdict: every gate judged for every engine, and in words whether it may ship.

Three answers, because a small sample that shows no loss has not shown that there is none:

* ``do not ship``: the best estimate of at least one gate is beyond its limit. The estimate decides, not the proof of a loss:
  a deployment engineer carries the risk of shipping, so doubt counts against the engine.
* ``not shown``: nothing failed, but an interval reaches beyond a limit. ``ship`` is false: nobody has shown that it may. A caution
  names how many images would settle it.
* ``ship``: every interval is on the good side.

Bootstrap intervals collapse when hardly an image differs, so none is taken to be narrower than the rule of three allows (3 / n).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clipq.evaluate.gates import Gate, Reading, judge_reading, parse_gate, readings
from clipq.evaluate.report.format import quantity, ratio
from clipq.evaluate.report.tables import size_bytes

DEFAULT_RULES = ("acc1.delta_pp<-1.0", "ece15.delta>0.01", "mcm.auroc.delta<-0.01")
_NOISE = 0.05  # latencies closer than this are equal


def judge(report: Mapping[str, Any], rules: Sequence[str] = ()) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Judge every engine but the baseline.

    Args:
        report: The report's ``baseline``, ``engines``, ``datasets``, ``results``, ``ood``, ``paired`` and ``bench``; not changed.
        rules: What fails, e.g. ``acc1.delta_pp<-1.0``. Empty: ``DEFAULT_RULES``, of which those that concern nothing measured are
            left out. A rule that was asked for and concerns nothing measured fails.

    Returns:
        ``report["gates"]`` and ``report["verdict"]``.

    Raises:
        UsageError: A rule cannot be read or names something unknown.
    """
    gates = [result for rule in rules or DEFAULT_RULES for result in _judge_rule(report, parse_gate(rule), asked=bool(rules))]
    engines = [engine for engine in report["engines"] if engine != report["baseline"]]
    failed = {gate["engine"] for gate in gates if gate["outcome"] == "fail"}
    verdict = {}
    for engine in engines:
        own = [gate for gate in gates if gate["engine"] == engine]
        verdict[engine] = _verdict(report, engine, own, failed)
    return gates, verdict


def _judge_rule(report: Mapping[str, Any], gate: Gate, *, asked: bool) -> Iterator[dict[str, Any]]:
    seen = set()
    for reading in readings(gate, report):
        seen.add(reading.engine)
        yield judge_reading(gate, reading)
    for engine in report["engines"]:
        concerned = engine != report["baseline"] and gate.engine in {None, engine}
        if asked and concerned and engine not in seen:
            yield judge_reading(gate, Reading(engine, "", "", None, None, None))


def _verdict(report: Mapping[str, Any], engine: str, gates: Sequence[Mapping[str, Any]], failed: set[str]) -> dict[str, Any]:
    fails = [gate["why"] for gate in gates if gate["outcome"] == "fail"]
    unproven = [gate["why"] for gate in gates if gate["outcome"] == "unproven"]
    proven = bool(gates) and not unproven
    why = fails + unproven + _passes(gates)
    if not gates:
        why.append("no gate concerns anything that was measured")
    stronger = dominated_by(report, engine, failed)
    if stronger is not None:
        why.append(_domination(report, engine, stronger))
    return {
        "ship": proven and not fails,
        "outcome": "do not ship" if fails else "ship" if proven else "not shown",
        "dominated_by": stronger,
        "why": why,
    }


def _passes(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one sentence per rule that passes: its only one, or how many pass and the one closest to the limit."""
    sentences = []
    for rule in dict.fromkeys(gate["rule"] for gate in gates):
        passed = [gate for gate in gates if gate["rule"] == rule and gate["outcome"] == "pass"]
        if passed:
            limit = parse_gate(rule).limit
            closest = min(passed, key=lambda gate: min(abs(end - limit) for end in gate["ci95"] or [gate["value"]]))
            others = f" (closest of {len(passed)})" if len(passed) > 1 else ""
            sentences.append(closest["why"] + others)
    return sentences


def dominated_by(report: Mapping[str, Any], engine: str, failed: Iterable[str] = ()) -> str | None:
    """Return the fastest engine that is at least as accurate within noise on every data set, faster and not larger, or None.

    Noise is the wider of the two engines' half intervals of the accuracy delta; faster is more than 5 % less time in one
    scenario and not more than 5 % slower in any other. An engine in ``failed`` dominates nobody.
    """
    others = [other for other in report["engines"] if other != engine and other not in set(failed)]
    stronger = [
        other
        for other in others
        if _as_accurate(report, other, engine) and _faster(report, other, engine) and _no_larger(report, other, engine)
    ]
    return min(stronger, key=lambda other: _times(report, other)[min(_times(report, other))], default=None)


def _as_accurate(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = report["results"].get(other, {}), report["results"].get(engine, {})
    shared = [data for data in ours if "acc1" in ours[data] and "acc1" in theirs.get(data, {})]
    return bool(shared) and all(
        theirs[data]["acc1"]["value"] >= ours[data]["acc1"]["value"] - max(_half(theirs[data]["acc1"]), _half(ours[data]["acc1"]))
        for data in shared
    )


def _half(entry: Mapping[str, Any]) -> float:
    ends = entry["delta_ci95"]
    return 0.0 if ends is None or None in ends else (ends[1] - ends[0]) / 2


def _times(report: Mapping[str, Any], engine: str) -> dict[str, float]:
    scenarios = report["bench"].get(engine, {})
    return {name: values["p50_s"] for name, values in sorted(scenarios.items()) if name != "artefact"}


def _faster(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = _times(report, other), _times(report, engine)
    ratios = [theirs[name] / ours[name] for name in ours if name in theirs]
    return bool(ratios) and min(ratios) < 1 - _NOISE and max(ratios) <= 1 + _NOISE


def _no_larger(report: Mapping[str, Any], other: str, engine: str) -> bool:
    theirs, ours = size_bytes(report, other), size_bytes(report, engine)
    return theirs is not None and ours is not None and theirs <= ours


def _domination(report: Mapping[str, Any], engine: str, stronger: str) -> str:
    ours, theirs = _times(report, engine), _times(report, stronger)
    speed = ", ".join(f"{ratio(ours[name] / theirs[name])} as fast at {name}" for name in ours if name in theirs)
    return (
        f"dominated by {stronger}: as accurate within noise, {speed}, "
        f"{quantity(size_bytes(report, stronger), 'bytes')} against {quantity(size_bytes(report, engine), 'bytes')}"
    )
