"""The gate language: ``acc1.delta_pp<-1.0`` names what fails, ``acc1:max-degradation=0.01`` what is promised; both make a ``Gate``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clipq.errors import UsageError, unknown_name
from clipq.evaluate.gates.gate import QUANTITIES, Gate, Kind
from clipq.evaluate.gates.goals import GOALS, compare
from clipq.evaluate.report.names import BENCH, OOD_METRICS, SCORES, Quantity
from clipq.evaluate.report.robustness_names import AGAINST_BASELINE, ROBUSTNESS
from clipq.evaluate.robustness.pairs import AXES

_ENGINE = r"^\s*(?:(?P<engine>[^\s:<>=]+):\s*)?"
_NUMBER = r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*$"
_RULE = re.compile(_ENGINE + r"(?P<path>[\w.-]+?)\s*(?P<op><=|>=|<|>)\s*" + _NUMBER)
_GOAL = re.compile(_ENGINE + r"(?P<path>[\w.-]+)\s*:\s*(?P<goal>[\w-]+)\s*=\s*" + _NUMBER)
_SYNTAX = "[ENGINE:]METRIC.FIELD OP NUMBER such as acc1.delta_pp<-1.0, or [ENGINE:]METRIC:GOAL=NUMBER such as acc1:max-degradation=0.01"
_FORMS: Mapping[Kind, tuple[str, ...]] = {
    "results": ("value", "value_pp", "delta", "delta_pp", "delta_percent"),
    "ood": ("value", "value_pp", "delta", "delta_pp", "delta_percent"),
    "paired": ("value", "value_pp"),
    "retrieval": ("value", "value_pp", "delta", "delta_pp", "delta_percent"),
    "robustness": ("value", "value_pp", "delta", "delta_pp", "delta_percent"),
    "bench": ("value", "delta", "delta_percent"),
}
_KINDS: tuple[Kind, ...] = ("results", "ood", "paired", "retrieval", "robustness")  # a name means the first of these that has it
OOD_SETS = ("near", "far", "all")
_ARTEFACT = ("size_bytes", "load_s", "peak_rss_bytes")
_SCENARIO = re.compile(r"^[a-z]+-b\d+(-device)?$")


@dataclass(frozen=True, slots=True)
class _Target:
    """The quantity a rule is about; ``bench`` is the field of a scenario, and empty for metrics."""

    kind: Kind
    score: str | None
    metric: str
    bench: str
    quantity: Quantity


def parse_gate(text: str) -> Gate:
    """Parse a comparison ``[ENGINE:][SCORE.]METRIC.FIELD OP NUMBER`` or a goal ``[ENGINE:][SCORE.]METRIC:GOAL=NUMBER``.

    Before an OOD metric or its score, ``near.``, ``far.`` or ``all.`` means the mean over those OOD sets, and no single pair.

    Metrics take the fields ``value``, ``delta``, times 100 ``value_pp`` and ``delta_pp``, and ``delta_percent``; speed and size are
    ``image-b1.p99_s`` and ``artefact.size_bytes``. An OOD metric without a score concerns every score. Robustness takes its axis in the
    place of a score (``noise.mce.delta``; without it ``mce`` is the largest calibration gap), and what compares with the baseline itself
    needs no field (``effective_robustness<-0.01``). Goals: ``goals.GOALS``.

    Raises:
        UsageError: The rule cannot be read, a name in it is unknown, or it could never fail or never pass.

    >>> parse_gate("mcm.auroc.delta < -0.01").score
    'mcm'
    >>> gate = parse_gate("ece15:max-degradation=0.01")
    >>> gate.field, gate.op, gate.limit
    ('delta', '>', 0.01)
    """
    match = _RULE.match(text) or _GOAL.match(text)
    if match is None:
        raise UsageError(f"cannot read the gate {text!r}", expected=_SYNTAX)
    number = float(match["number"])
    if not math.isfinite(number):
        raise UsageError(f"the limit of the gate {text!r} is not finite", found=match["number"])
    groups = match.groupdict()
    sets, _, rest = groups["path"].partition(".")
    averaged = sets in OOD_SETS and bool(rest)
    found = {**groups, "path": rest} if averaged else groups
    gate = _goal(text, found, number) if "goal" in groups else _comparison(text, found, number)
    if averaged and gate.kind != "ood":
        raise UsageError(f"cannot read the gate {text!r}", found=gate.metric, expected=f"an OOD metric after {sets}, e.g. {sets}.mcm.auroc")
    return replace(gate, sets=sets) if averaged else gate


def _comparison(text: str, found: Mapping[str, str], limit: float) -> Gate:
    parts = found["path"].split(".")
    named, form = (parts[:2], ".".join(parts[2:]) or "value") if _is_bench(parts[0]) else (parts[:-1], parts[-1])
    if form in ROBUSTNESS:
        named, form = parts, "value"
    target = _target(text, named)
    forms = _FORMS["paired" if target.metric in AGAINST_BASELINE else target.kind]
    if form not in forms:
        raise unknown_name(f"field of {'.'.join(named)} in a gate", form, forms)
    if form.endswith("_pp") and target.quantity.unit != "fraction":
        raise UsageError(f"{target.metric} is no fraction and has no percent points", found=form, expected=form.removesuffix("_pp"))
    if form.endswith("_percent") and target.quantity.better == "zero":
        raise UsageError(f"{target.metric} may be zero or below, so it has no percentage", found=form, expected="delta")
    return Gate(text.strip(), found["engine"], target.kind, target.score, target.metric, _field(target, form), found["op"], limit)


def _goal(text: str, found: Mapping[str, str], number: float) -> Gate:
    target = _target(text, found["path"].split("."))
    if found["goal"] not in GOALS:
        raise unknown_name("goal in a gate", found["goal"], GOALS)
    side = compare(found["goal"], number, "paired" if target.metric in AGAINST_BASELINE else target.kind, found["path"], target.quantity)
    field = _field(target, side.form)
    return Gate(text.strip(), found["engine"], target.kind, target.score, target.metric, field, side.op, side.limit, side.whole)


def _field(target: _Target, form: str) -> str:
    if target.kind != "bench":
        return form
    return target.bench if form == "value" else f"{target.bench}.{form}"


def _is_bench(name: str) -> bool:
    return name == "artefact" or _SCENARIO.match(name) is not None


def _target(text: str, parts: Sequence[str]) -> _Target:
    """Return the quantity that ``METRIC``, ``SCORE.METRIC`` or ``SCENARIO.FIELD`` names."""
    if len(parts) not in {1, 2} or (len(parts) == 1 and _is_bench(parts[0])):
        raise UsageError(f"cannot read the gate {text!r}", expected=_SYNTAX)
    if _is_bench(parts[0]):
        fields = [name for name in BENCH if (name in _ARTEFACT) == (parts[0] == "artefact")]
        if parts[1] not in fields:
            raise unknown_name(f"field of {parts[0]} in a gate", parts[1], fields)
        return _Target("bench", None, parts[0], parts[1], BENCH[parts[1]])
    if len(parts) == 2:
        return _on_axis(*parts) if parts[0] in AXES else _scored(*parts)
    return _metric(parts[0])


def _on_axis(axis: str, metric: str) -> _Target:
    if metric not in ROBUSTNESS:
        raise unknown_name("metric of robustness in a gate", metric, ROBUSTNESS)
    return _Target("robustness", axis, metric, "", ROBUSTNESS[metric])


def _scored(score: str, metric: str) -> _Target:
    if score == "energy":
        raise UsageError(
            "energy is two scores now",
            found=f"energy.{metric}",
            expected=f"energy_logit.{metric} or energy_cos.{metric}",
            fix="energy_logit, of the scaled logits, is what energy was.",
        )
    if score not in SCORES:
        raise unknown_name("OOD score in a gate", score, SCORES)
    if metric not in OOD_METRICS:
        raise unknown_name("OOD metric in a gate", metric, OOD_METRICS)
    return _Target("ood", score, metric, "", OOD_METRICS[metric])


def _metric(metric: str) -> _Target:
    for kind in _KINDS:
        if metric in QUANTITIES[kind]:
            return _Target(kind, None, metric, "", QUANTITIES[kind][metric])
    known = [name for kind in _KINDS for name in QUANTITIES[kind]]
    raise unknown_name("metric in a gate", metric, [*known, "image-b1", "image-b32", "artefact"])
