"""The gate language: one rule such as ``acc1.delta_pp<-1.0`` names what fails, and is judged with its interval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clipq.errors import UsageError, unknown_name
from clipq.evaluate.report.format import difference, interval, quantity
from clipq.evaluate.report.names import BENCH, METRICS, OOD_METRICS, PAIRED, SCORES, Quantity

Kind = Literal["results", "ood", "paired", "bench"]
Outcome = Literal["pass", "fail", "unproven"]
Interval = tuple[float, float]

_RULE = re.compile(
    r"^\s*(?:(?P<engine>[^\s:<>=]+):\s*)?(?P<path>[\w.-]+?)\s*(?P<op><=|>=|<|>)\s*(?P<limit>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*$"
)
_SYNTAX = "[ENGINE:][SCORE.]METRIC.FIELD OP NUMBER, e.g. acc1.delta_pp<-1.0"
_MEASURED_FIELDS = ("value", "value_pp", "delta", "delta_pp")
_PAIRED_FIELDS = ("value", "value_pp")
_SCENARIO = re.compile(r"^[a-z]+-b\d+(-device)?$")


@dataclass(frozen=True, slots=True)
class Gate:
    """One parsed rule.

    Attributes:
        rule: As it was written.
        engine: The only engine it concerns, or None for all but the baseline.
        kind: The part of the report it reads.
        score: The only OOD score it concerns, or None.
        metric: Metric, paired key or bench scenario.
        field: ``value``, ``delta``, the same with ``_pp`` (times 100), or a bench field such as ``p99_s``.
        op: ``<``, ``<=``, ``>`` or ``>=``.
        limit: In the unit of the field.
    """

    rule: str
    engine: str | None
    kind: Kind
    score: str | None
    metric: str
    field: str
    op: str
    limit: float

    @property
    def scale(self) -> float:
        """Return what the stored number is multiplied with before it is compared."""
        return 100.0 if self.field.endswith("_pp") else 1.0

    @property
    def stored_field(self) -> str:
        """Return the key of the number in a measurement: ``value``, ``delta`` or the bench field."""
        return self.field.removesuffix("_pp")

    @property
    def quantity(self) -> Quantity:
        """Return what kind of number it reads."""
        return {"results": METRICS, "ood": OOD_METRICS, "paired": PAIRED, "bench": BENCH}[self.kind][
            self.field if self.kind == "bench" else self.metric
        ]

    def fails(self, value: float) -> bool:
        """Tell whether ``value``, in the unit of the rule, is on the failing side."""
        return {"<": value < self.limit, "<=": value <= self.limit, ">": value > self.limit, ">=": value >= self.limit}[self.op]


@dataclass(frozen=True, slots=True)
class Reading:
    """One number of the report that a rule concerns, as it is stored (fractions in [0, 1]); ``where`` is ``data`` in words."""

    engine: str
    data: str
    where: str
    value: float | None
    ci95: Interval | None
    n: int | None


def parse_gate(text: str) -> Gate:
    """Parse ``[ENGINE:][SCORE.]METRIC.FIELD OP NUMBER``.

    Metrics take the fields ``value``, ``delta`` and, times 100, ``value_pp`` and ``delta_pp``; speed and size are
    ``image-b1.p99_s`` and ``artefact.size_bytes``. An OOD metric without a score concerns every score.

    Raises:
        UsageError: The rule cannot be read, or a name in it is unknown.

    >>> parse_gate("mcm.auroc.delta < -0.01").score
    'mcm'
    """
    match = _RULE.match(text)
    if match is None:
        raise UsageError(f"cannot read the gate {text!r}", expected=_SYNTAX)
    parts = match["path"].split(".")
    score = parts.pop(0) if len(parts) == 3 else None
    if len(parts) != 2:
        raise UsageError(f"cannot read the gate {text!r}", found=f"{match['path']!r} before {match['op']}", expected=_SYNTAX)
    metric, field = parts
    kind = _kind(score, metric)
    _check_field(kind, metric, field)
    return Gate(text.strip(), match["engine"], kind, score, metric, field, match["op"], float(match["limit"]))


def _kind(score: str | None, metric: str) -> Kind:
    if score is not None:
        if score not in SCORES:
            raise unknown_name("OOD score in a gate", score, SCORES)
        if metric not in OOD_METRICS:
            raise unknown_name("OOD metric in a gate", metric, OOD_METRICS)
        return "ood"
    if metric == "artefact" or _SCENARIO.match(metric):
        return "bench"
    kinds: tuple[tuple[Kind, Mapping[str, Quantity]], ...] = (("results", METRICS), ("ood", OOD_METRICS), ("paired", PAIRED))
    for kind, table in kinds:
        if metric in table:
            return kind
    raise unknown_name("metric in a gate", metric, [*METRICS, *OOD_METRICS, *PAIRED, "image-b1", "image-b32", "artefact"])


def _check_field(kind: Kind, metric: str, field: str) -> None:
    fields: tuple[str, ...] = _PAIRED_FIELDS if kind == "paired" else _MEASURED_FIELDS
    if kind == "bench":
        artefact = ("size_bytes", "load_s", "peak_rss_bytes")
        fields = artefact if metric == "artefact" else tuple(name for name in BENCH if name not in artefact)
    if field not in fields:
        raise unknown_name(f"field of {metric} in a gate", field, fields)
    table = {"results": METRICS, "ood": OOD_METRICS, "paired": PAIRED}.get(kind)
    if table is not None and field.endswith("_pp") and table[metric].unit != "fraction":
        raise UsageError(f"{metric} is no fraction and has no percent points", found=field, expected=field.removesuffix("_pp"))


def readings(gate: Gate, report: Mapping[str, Any]) -> Iterator[Reading]:
    """Yield every number of the report that the rule concerns, engine by engine.

    Raises:
        UsageError: The rule names an engine the report does not have, or its baseline.
    """
    engines = [name for name in report["engines"] if name != report["baseline"]]
    if gate.engine is not None and gate.engine not in engines:
        raise unknown_name("engine in a gate", gate.engine, engines)
    for engine in engines if gate.engine is None else [gate.engine]:
        yield from _READERS[gate.kind](gate, report, engine)


def _read_results(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    for data, metrics in report["results"].get(engine, {}).items():
        if gate.metric in metrics:
            yield _measured(gate, engine, data, f" on {data}", metrics[gate.metric])


def _read_ood(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    for pair, scores in report["ood"].get(engine, {}).items():
        for score, metrics in scores.items():
            if gate.score in {None, score} and gate.metric in metrics:
                where = f" of {SCORES[score].label if score in SCORES else score}, {pair.replace('|', ' against ')}"
                yield _measured(gate, engine, f"{pair} {score}", where, metrics[gate.metric])


def _read_paired(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    for data, values in report["paired"].get(engine, {}).items():
        if gate.metric in values:
            n = report["datasets"].get(data, {}).get("n")
            value = values[gate.metric]
            known = gate.quantity.unit == "fraction" and n and value is not None
            yield Reading(engine, data, f" on {data}", value, wilson_interval(value, n) if known else None, n)


def _read_bench(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    scenario = report["bench"].get(engine, {}).get(gate.metric, {})
    if gate.field in scenario:
        yield Reading(engine, "", f" ({gate.metric})", scenario[gate.field], None, scenario.get("n"))


_READERS = {"results": _read_results, "ood": _read_ood, "paired": _read_paired, "bench": _read_bench}


def _measured(gate: Gate, engine: str, data: str, where: str, entry: Mapping[str, Any]) -> Reading:
    value, n = entry[gate.stored_field], entry["n"]
    raw = entry["ci95" if gate.stored_field == "value" else "delta_ci95"]
    ends = None if value is None or raw is None or None in raw else (float(raw[0]), float(raw[1]))
    if ends is not None and gate.quantity.unit == "fraction":
        ends = no_narrower(value, ends, n)
    return Reading(engine, data, where, value, ends, n)


def no_narrower(value: float, ends: Interval, n: int) -> Interval:
    """Widen an interval to the rule of three: what was never seen in n images may still happen in 3 of n (Hanley 1983)."""
    floor = 3 / max(n, 1)
    return min(ends[0], value - floor), max(ends[1], value + floor)


def wilson_interval(fraction: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a fraction seen in ``n`` images (Wilson 1927).

    >>> [round(end, 3) for end in wilson_interval(0.0, 100)]
    [0.0, 0.037]
    """
    z2 = 1.959964**2
    centre = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(fraction * (1 - fraction) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def judge_reading(gate: Gate, reading: Reading) -> dict[str, Any]:
    """Judge one number by one rule and return the entry of ``report["gates"]``.

    ``fail`` when the estimate is on the failing side; ``unproven`` when it is not but its 95 % interval reaches the failing side,
    so that the sample is too small to show it; else ``pass``. Numbers without a notion of an interval (speed, size, cosine,
    divergence) are judged on the estimate. What was not measured fails: a gate that never looked must not let through.
    """
    outcome = _outcome(gate, reading)
    needed = images_needed(gate, reading) if outcome == "unproven" else None
    scaled = None if reading.ci95 is None else [end * gate.scale for end in reading.ci95]
    value = None if reading.value is None else reading.value * gate.scale
    why = _sentence(gate, reading, outcome, needed)
    return {
        "rule": gate.rule, "engine": reading.engine, "data": reading.data, "value": value, "ci95": scaled,
        "outcome": outcome, "n": reading.n, "n_needed": needed, "why": why,
    }  # fmt: skip


def _outcome(gate: Gate, reading: Reading) -> Outcome:
    if reading.value is None or gate.fails(reading.value * gate.scale):
        return "fail"
    if reading.ci95 is None:
        return "pass" if gate.kind in {"paired", "bench"} else "unproven"
    return "unproven" if any(gate.fails(end * gate.scale) for end in reading.ci95) else "pass"


def images_needed(gate: Gate, reading: Reading) -> int | None:
    """Return roughly how many images would bring the interval to the good side of the limit, or None when no number would.

    Intervals shrink with the square root of n; the rule of three asks for 3 / distance. Two significant digits, rounded up.
    """
    if reading.value is None or reading.ci95 is None or not reading.n:
        return None
    distance = abs(reading.value - gate.limit / gate.scale)
    end = reading.ci95[0] if gate.op.startswith("<") else reading.ci95[1]
    reach = abs(end - reading.value)
    if distance * 1000 < reach or distance == 0:
        return None
    floor = 3 / reading.n
    needed = 3 / distance if reach <= floor * 1.0001 else max(reading.n * (reach / distance) ** 2, 3 / distance)
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


def _sentence(gate: Gate, reading: Reading, outcome: Outcome, needed: int | None) -> str:
    if reading.value is None:
        return f"{gate.rule}: not measured{reading.where}, so it cannot pass"
    show = difference if gate.stored_field == "delta" else quantity
    limit = f"the limit of {show(gate.limit / gate.scale, gate.quantity.unit)}"
    facts = f"{_facts(gate, reading)}: "
    if outcome == "pass":
        return f"{facts}within {limit}"
    if outcome == "unproven":
        return f"{facts}within {limit}, but the sample cannot show it; {_advice(reading, needed)}"
    sure = reading.ci95 is None or all(gate.fails(end * gate.scale) for end in reading.ci95)
    return f"{facts}beyond {limit}" + ("" if sure else ", though the interval reaches back over it")


def _facts(gate: Gate, reading: Reading) -> str:
    signed = gate.stored_field == "delta"
    unit = gate.quantity.unit
    text = f"{gate.quantity.label} {(difference if signed else quantity)(reading.value, unit)}"
    if reading.ci95 is not None:
        text += f" {interval(reading.ci95, unit, signed=signed)}"
    return f"{text}{reading.where}" + (f", n = {reading.n:,}" if reading.n else "")


def _advice(reading: Reading, needed: int | None) -> str:
    if reading.ci95 is None:
        return "no interval was computed"
    return f"about {needed:,} images would" if needed else "no practical number of images would"
