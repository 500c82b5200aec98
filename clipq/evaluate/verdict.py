"""The verdict: every gate judged for every engine, and in words whether it may ship.

Three answers, because a small sample that shows no loss has not shown that there is none:

* ``do not ship``: the best estimate of at least one gate is beyond its limit. The estimate decides, not the proof of a loss:
  a deployment engineer carries the risk of shipping, so doubt counts against the engine.
* ``not shown``: nothing failed, but an interval reaches beyond a limit, or a calibration error near chance hides what may be beyond it.
  ``ship`` is false: nobody has shown that it may. A caution names how many images would settle it.
* ``ship``: every interval is on the good side.

Bootstrap intervals collapse when hardly an image differs, so none is taken to be narrower than the rule of three allows (3 / n).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipq.evaluate.domination import dominated_by, domination
from clipq.evaluate.gates.chance import hidden_rise
from clipq.evaluate.gates.judging import judge_reading
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.gates.presets import Group, read_gates
from clipq.evaluate.gates.readings import Reading, readings
from clipq.evaluate.mending import mending
from clipq.evaluate.report.ran import proof_of


def judge(
    report: Mapping[str, Any], rules: Sequence[str] = (), presets: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Judge every engine but the baseline.

    Args:
        report: The report's ``baseline``, ``engines``, ``datasets``, ``results``, ``ood``, ``paired`` and ``bench``; not changed.
        rules: What fails, e.g. ``acc1.delta_pp<-1.0``, or what is promised, e.g. ``acc1:max-degradation=0.01``. A rule that concerns
            nothing measured fails.
        presets: Names of ``PRESETS``. Rules of a preset that concern nothing measured are left out, but not all of them. Without
            rules and presets the default ones apply.

    Returns:
        ``report["gates"]`` and ``report["verdict"]``.

    Raises:
        UsageError: A rule cannot be read or names something unknown.
    """
    gates = [result for group in read_gates(rules, presets) for result in _judge_group(report, group)]
    engines = [engine for engine in report["engines"] if engine != report["baseline"]]
    failed = {gate["engine"] for gate in gates if gate["outcome"] == "fail"}
    verdict = {}
    for engine in engines:
        own = [gate for gate in gates if gate["engine"] == engine]
        verdict[engine] = _verdict(report, engine, own, failed)
    return gates, verdict


def _judge_group(report: Mapping[str, Any], group: Group) -> Iterator[dict[str, Any]]:
    seen = set()
    for gate in group.gates:
        for reading in readings(gate, report):
            seen.add(reading.engine)
            yield {**judge_reading(gate, reading, hidden_rise(gate, report, reading)), "preset": group.preset}
    first = group.gates[0]
    for engine in report["engines"]:
        concerned = engine != report["baseline"] and first.engine in {None, engine}
        if group.required and concerned and engine not in seen:
            yield {**judge_reading(first, Reading(engine, "", "", None, None, None)), "preset": group.preset}


def _verdict(report: Mapping[str, Any], engine: str, gates: Sequence[Mapping[str, Any]], failed: set[str]) -> dict[str, Any]:
    fails = [gate["why"] for gate in gates if gate["outcome"] == "fail"]
    unproven = [gate["why"] for gate in gates if gate["outcome"] == "unproven"]
    proven = bool(gates) and not unproven
    why = fails + unproven + _passes(gates)
    if not gates:
        why.append("no gate concerns anything that was measured")
    mended = mending(report, engine)
    if mended is not None:
        why.append(mended)
    layers = proof_of(report["engines"][engine]) or {}
    if layers.get("fallback"):
        why.append(layers["note"])
    stronger = dominated_by(report, engine, failed)
    if stronger is not None:
        why.append(domination(report, engine, stronger))
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
