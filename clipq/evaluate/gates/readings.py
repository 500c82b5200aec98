"""The numbers of a report, or of a comparison, that a gate concerns, engine by engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clipq.errors import unknown_name
from clipq.evaluate.gates.gate import Gate
from clipq.evaluate.report.names import SCORES
from clipq.evaluate.statistics.small_samples import Interval, no_narrower, wilson_interval


@dataclass(frozen=True, slots=True)
class Reading:
    """One number of the report that a rule concerns, as it is stored (fractions in [0, 1]).

    Attributes:
        engine: Whose number it is.
        data: As in the report's gates.
        where: ``data`` in words.
        value: None where it was not measured.
        ci95: Its 95 % interval, not narrower than the rule of three allows.
        n: Images behind it.
        base: What it was divided by: the baseline's value for a percentage.
        undivided: The difference, where it is to be a percentage of a baseline that is zero; ``value`` is None then.
    """

    engine: str
    data: str
    where: str
    value: float | None
    ci95: Interval | None
    n: int | None
    base: float = 1.0
    undivided: float | None = None


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
    means = report.get("ood_means", {}).get(engine, {}).items()
    averaged = {f"{data}|{gate.sets}": sets[gate.sets] for data, sets in means if gate.sets in sets}
    for pair, scores in (report["ood"].get(engine, {}) if gate.sets is None else averaged).items():
        for score, metrics in scores.items():
            if gate.score in {None, score} and gate.metric in metrics:
                against = pair.replace("|", " against ") + (" sets (mean)" if gate.sets else "")
                where = f" of {SCORES[score].label if score in SCORES else score}, {against}"
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
    if gate.key not in scenario:
        return
    value, where, n = scenario[gate.key], f" ({gate.metric})", scenario.get("n")
    if gate.form != "value":
        first = report.get("bench_first", {}).get(engine, report["bench"].get(report["baseline"], {}))
        before = first.get(gate.metric, {}).get(gate.key)
        value = None if value is None or before is None else value - before
        if value is not None and gate.form == "delta_percent":
            yield _percentage(Reading(engine, "", where, value, None, n), before)
            return
    yield Reading(engine, "", where, value, None, n)


def _read_retrieval(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    for data, metrics in report.get("retrieval", {}).get(engine, {}).items():
        if gate.metric in metrics:
            yield _measured(gate, engine, data, f" on {data}", metrics[gate.metric])


def _read_robustness(gate: Gate, report: Mapping[str, Any], engine: str) -> Iterator[Reading]:
    for axis, parts in report.get("robustness", {}).get(engine, {}).items():
        for data, metrics in parts.items() if gate.score in {None, axis} else ():
            if gate.metric in metrics:
                yield _measured(gate, engine, data, f" of {axis}, {data.replace('|', ' to ')}", metrics[gate.metric])


_READERS = {
    "results": _read_results,
    "ood": _read_ood,
    "paired": _read_paired,
    "retrieval": _read_retrieval,
    "robustness": _read_robustness,
    "bench": _read_bench,
}


def _measured(gate: Gate, engine: str, data: str, where: str, entry: Mapping[str, Any]) -> Reading:
    """Return a measurement, its difference, or the difference as a fraction of the baseline's value.

    The baseline's value is taken as it is, as MLPerf takes its reference: its own error moves the fraction by the difference times
    that error, which is of second order.
    """
    plain = gate.form == "value"
    value, n = entry["value" if plain else "delta"], entry["n"]
    raw = entry["ci95" if plain else "delta_ci95"]
    ends = None if value is None or raw is None or None in raw else (float(raw[0]), float(raw[1]))
    if ends is not None and gate.quantity.unit == "fraction":
        ends = no_narrower(value, ends, n)
    found = Reading(engine, data, where, value, ends, n)
    return found if gate.form != "delta_percent" or value is None else _percentage(found, entry["value"] - value)


def _percentage(difference: Reading, base: float) -> Reading:
    """Return a difference as a fraction of the baseline's value, which may be zero."""
    value, ends = difference.value, difference.ci95
    if value is None or base <= 1e-12:
        return replace(difference, value=None, ci95=None, undivided=value)
    return replace(difference, value=value / base, ci95=ends and (ends[0] / base, ends[1] / base), base=base)
