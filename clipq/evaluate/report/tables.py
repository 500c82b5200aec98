"""The tables of a report, with every number already in words: value, difference, interval and whether that is better or worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from clipq.evaluate.report.format import MISSING, difference, interval, quantity, ratio, unsigned
from clipq.evaluate.report.names import BENCH, FAMILIES, METRICS, OOD_METRICS, PAIRED, SCORES, Quantity

Tone = Literal["", "better", "worse", "same"]
MAIN_METRICS = ("acc1", "ece15", "signed_gap", "nll")
ALPHA = 0.05  # of the p-value corrected over engines, below which a difference is better or worse
_NEAR = 0.05  # times and sizes closer than this are neither better nor worse


@dataclass(frozen=True, slots=True)
class Cell:
    """One number: ``tone`` and ``word`` say what its difference to the baseline means."""

    value: str = MISSING
    delta: str = ""
    interval: str = ""
    tone: Tone = ""
    word: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: a row per engine, a column per quantity; ``hints`` explain the columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    hints: Sequence[str] = ()
    note: str = ""


def measured_cell(entry: Mapping[str, Any] | None, kind: Quantity) -> Cell:
    """Return the cell of one measurement; without a difference (the baseline) its own interval is shown."""
    if entry is None or entry["value"] is None:
        return Cell()
    value = quantity(entry["value"], kind.unit)
    if entry["delta"] is None:
        ends = interval(entry["ci95"], kind.unit, signed=False)
        return Cell(value, interval="" if ends == MISSING else ends)
    tone, word = meaning(entry, kind)
    if word in {"equal", "within noise"} and entry.get("minimum_detectable"):
        least = unsigned(entry["minimum_detectable"], kind.unit)
        word += f" ({least} would show)" if _is_visible(least) else ""
    return Cell(value, difference(entry["delta"], kind.unit), interval(entry["delta_ci95"], kind.unit, signed=True), tone, word)


def meaning(entry: Mapping[str, Any], kind: Quantity) -> tuple[Tone, str]:
    """Return tone and word of a difference; "no interval" where none was computed.

    Better or worse stand only where the 95 % interval excludes zero and the p-value, corrected over engines, is below 0.05.
    """
    delta, ends = entry["delta"], entry["delta_ci95"]
    shown = difference(delta, kind.unit)
    if not _is_visible(shown):
        return "same", "equal"
    if ends is None or None in ends:
        return "same", "no interval"
    corrected = entry.get("p_value_holm")
    if ends[0] <= 0 <= ends[1] or (corrected is not None and corrected >= ALPHA):
        return "same", "within noise"
    if kind.better == "neither":
        return "same", "differs"
    grew = delta > 0
    if kind.better == "zero":
        grew = abs(entry["value"]) > abs(entry["value"] - delta)
    return ("better", "better") if grew == (kind.better == "high") else ("worse", "worse")


def _is_visible(shown: str) -> bool:
    return any(digit in shown for digit in "123456789")


def result_table(report: Mapping[str, Any], data: str, metrics: Sequence[str]) -> Table:
    """Return engine x metric for one labelled data set."""
    rows = []
    for engine, results in report["results"].items():
        if data in results:
            rows.append((engine, [measured_cell(results[data].get(metric), METRICS[metric]) for metric in metrics]))
    return Table(data, [METRICS[metric].label for metric in metrics], rows, [METRICS[metric].meaning for metric in metrics])


def result_tables(report: Mapping[str, Any], data: str, metrics: Sequence[str]) -> list[Table]:
    """Return the same, one table per family of ``FAMILIES``, so that each fits a page."""
    found = []
    for family, members in FAMILIES.items():
        if own := [metric for metric in members if metric in metrics]:
            found.append(replace(result_table(report, data, own), title=f"{data}: {family}"))
    return found


def measured_metrics(report: Mapping[str, Any], data: str) -> list[str]:
    """Return the metrics any engine has on ``data``, in the order of ``METRICS``."""
    return [metric for metric in METRICS if any(metric in results.get(data, {}) for results in report["results"].values())]


def labelled(report: Mapping[str, Any]) -> list[str]:
    """Return the data sets that were classified, in order of first appearance."""
    return list(dict.fromkeys(data for results in report["results"].values() for data in results))


def pairs(report: Mapping[str, Any]) -> list[str]:
    """Return every ``ID|OOD`` that was scored."""
    return list(dict.fromkeys(pair for scored in report["ood"].values() for pair in scored))


def ood_table(report: Mapping[str, Any], pair: str, metric: str) -> Table:
    """Return engine x score for one metric of one ``ID|OOD``."""
    scores = list(dict.fromkeys(score for scored in report["ood"].values() for score in scored.get(pair, {})))
    rows = []
    for engine, scored in report["ood"].items():
        if pair in scored:
            rows.append((engine, [measured_cell(scored[pair].get(score, {}).get(metric), OOD_METRICS[metric]) for score in scores]))
    known = [SCORES[score] if score in SCORES else Quantity(score, "neither", score) for score in scores]
    title = f"{OOD_METRICS[metric].label}: {pair.replace('|', ' against ')}"
    return Table(title, [item.label for item in known], rows, [item.meaning for item in known])


def ood_metrics(report: Mapping[str, Any], pair: str) -> list[str]:
    """Return the metrics any score of ``pair`` has, in the order of ``OOD_METRICS``."""
    found = {metric for scored in report["ood"].values() for metrics in scored.get(pair, {}).values() for metric in metrics}
    return [metric for metric in OOD_METRICS if metric in found]


def paired_table(report: Mapping[str, Any], data: str) -> Table:
    """Return engine x agreement with the baseline for one data set."""
    keys = [key for key in PAIRED if any(key in values.get(data, {}) for values in report["paired"].values())]
    rows = [
        (engine, [Cell(quantity(values[data].get(key), PAIRED[key].unit)) for key in keys])
        for engine, values in report["paired"].items()
        if data in values
    ]
    return Table(data, [PAIRED[key].label for key in keys], rows, [PAIRED[key].meaning for key in keys])


def size_bytes(report: Mapping[str, Any], engine: str) -> float | None:
    """Return the size of what ships, as measured or else as the engine's entry says, or None."""
    size: float | None = report["bench"].get(engine, {}).get("artefact", {}).get("size_bytes") or report["engines"][engine]["size_bytes"]
    return size


def bench_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return latency per scenario, then size, load time and memory; empty when nothing was measured."""
    names = list(dict.fromkeys(name for values in report["bench"].values() for name in values))
    found = []
    for name in sorted(names, key=lambda name: name == "artefact"):
        keys = ("size_bytes", "load_s", "peak_rss_bytes") if name == "artefact" else ("p50_s", "p90_s", "p99_s", "images_per_s")
        measured = [(engine, values[name]) for engine, values in report["bench"].items() if name in values]
        rows = [(engine, [_bench_cell(report, engine, name, key) for key in keys]) for engine, _ in measured]
        title = (
            "Size, load time and memory"
            if name == "artefact"
            else f"Images at once: {measured[0][1]['batch']}" + (", on the device alone" if name.endswith("-device") else "")
        )
        runs = "" if name == "artefact" else _bench_note([values for _, values in measured])
        note = " ".join(filter(None, (runs, simulated_note(report, [engine for engine, _ in measured]))))
        found.append(Table(title, [BENCH[key].label for key in keys], rows, [BENCH[key].meaning for key in keys], note))
    return found


def simulated_note(report: Mapping[str, Any], engines: Iterable[str]) -> str:
    """Return in a sentence which of these engines have INT8's speed and size, not those of their bits; nothing where there is none."""
    names = [name for name in engines if report["engines"].get(name, {}).get("simulated")]
    return f"{', '.join(names)}: computed in INT8, so speed and size are those of INT8." if names else ""


def _bench_cell(report: Mapping[str, Any], engine: str, scenario: str, key: str) -> Cell:
    value = report["bench"][engine].get(scenario, {}).get(key)
    base = report["bench"].get(report["baseline"], {}).get(scenario, {}).get(key)
    if value is None:
        return Cell("too few runs" if key in {"p90_s", "p99_s"} and scenario in report["bench"][engine] else MISSING)
    shown = quantity(value, BENCH[key].unit)
    if engine == report["baseline"] or not base or not value or key not in {"p50_s", "size_bytes"}:
        return Cell(shown)
    better = base / value  # above 1: less time or fewer bytes than the baseline
    tone: Tone = "same" if abs(better - 1) < _NEAR else "better" if better > 1 else "worse"
    return Cell(shown, f"{ratio(better)} as fast" if key == "p50_s" else f"{ratio(1 / better)} the size", tone=tone)


def _bench_note(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return how many runs stand behind a scenario, and what its percentiles need."""
    counts, threads, warm_up = (" to ".join(f"{end:,}" for end in _ends([run[key] for run in runs])) for key in ("n", "threads", "warmup"))
    text = f"{counts} timed runs per engine after {warm_up} to warm up, {threads} threads."
    few = " p90 takes at least 29 runs, p99 299: then a slower one was seen with 95 % confidence."
    return text + (few if any(run.get("missing") for run in runs) else "")


def _ends(values: Sequence[int]) -> list[int]:
    return sorted({min(values), max(values)})
