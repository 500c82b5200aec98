"""The three axes of robustness as tables, each apart: noise, covariate shift, spurious correlation; then calibration along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clipq.evaluate.report.format import MISSING, difference, interval, relative
from clipq.evaluate.report.names import METRICS, Quantity
from clipq.evaluate.report.robustness_names import AGAINST_BASELINE, ROBUSTNESS
from clipq.evaluate.report.tables import Cell, Table, labelled, meaning, measured_cell, would_show
from clipq.evaluate.robustness.pairs import AXES, Axis, axis_of, scheme_of

_WIDE = 6  # columns of a table that fit a page
_MEANS = ("mean_error", "mce", "relative_mce")
_SIDES: Mapping[Axis, tuple[str, str]] = {
    "noise": ("Top-1, clean", "Top-1, with noise"),
    "shift": ("Top-1, known", "Top-1, shifted"),
    "spurious": ("Top-1, common", "Top-1, counter"),
}
_SHIFT = ("accuracy_drop", "relative_loss_known", "relative_loss_shifted", "effective_robustness", "line_residual")
_METRICS: Mapping[Axis, Sequence[str]] = {
    "noise": _SHIFT,
    "shift": _SHIFT,
    "spurious": ("rsg", "relative_loss_common", "relative_loss_counter", "vuln_add", "worst_group"),
}
_NOTES: Mapping[Axis, str] = {
    "noise": "The same scenes with noise on them. Every model loses; what counts is whether an engine loses more than the baseline.",
    "shift": "Other pictures of the same things. An engine may lose alike everywhere; effective robustness below 0: it loses more here.",
    "spurious": "In the counter group a cue that usually goes with the class, such as the background, points elsewhere. Added "
    "vulnerability above 0 says that the engine leans on the cue more than the baseline does.",
}


def robustness_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of every axis that was measured, in the order of ``AXES``; empty without such data."""
    found = []
    for axis in AXES:
        for key in _keys(report, axis):
            found += [_pair_table(report, axis, key)] if "|" in key else _noise_tables(report, key)
    return found + _calibration(report)


def robustness_glossary(report: Mapping[str, Any]) -> list[tuple[str, Quantity]]:
    """Return every quantity of the axes that this report shows, each by the name a gate has for it: axis and key."""
    found: set[tuple[str, str]] = set()
    for axes in report.get("robustness", {}).values():
        found |= {(axis, metric) for axis, parts in axes.items() for part in parts.values() for metric in part}
    return [(f"{axis}.{metric}", kind) for axis in AXES for metric, kind in ROBUSTNESS.items() if (axis, metric) in found]


def _keys(report: Mapping[str, Any], axis: str) -> list[str]:
    """Return the pairs and data sets of an axis, in order of first appearance."""
    return list(dict.fromkeys(key for axes in report.get("robustness", {}).values() for key in axes.get(axis, {})))


def _parts(report: Mapping[str, Any], axis: str, key: str) -> dict[str, Mapping[str, Any]]:
    """Return engine -> what stands under a key of an axis."""
    return {engine: axes[axis][key] for engine, axes in report["robustness"].items() if key in axes.get(axis, {})}


def _pair_table(report: Mapping[str, Any], axis: Axis, key: str) -> Table:
    parts, sides = _parts(report, axis, key), key.split("|")
    metrics = [metric for metric in _METRICS[axis] if any(metric in part for part in parts.values())]
    rows = []
    for engine, part in parts.items():
        accuracies = [measured_cell(report["results"].get(engine, {}).get(data, {}).get("acc1"), METRICS["acc1"]) for data in sides]
        rows.append((engine, [*accuracies, *(robustness_cell(metric, part.get(metric)) for metric in metrics)]))
    columns = [*_SIDES[axis], *(ROBUSTNESS[metric].label for metric in metrics)]
    hints = [*sides, *(ROBUSTNESS[metric].meaning for metric in metrics)]
    return Table(f"{AXES[axis]}: {sides[0]} to {sides[1]}", columns, rows, hints, _NOTES[axis] + _fewer(report, sides) + _line(parts))


def robustness_cell(metric: str, entry: Mapping[str, Any] | None) -> Cell:
    """Return the cell of one measurement; what compares with the baseline itself is told as better or worse by its own interval."""
    kind = ROBUSTNESS[metric]
    if metric not in AGAINST_BASELINE:
        return measured_cell(entry, kind)
    if entry is None or entry["value"] is None:
        return Cell()
    tone, word = meaning({**entry, "delta": entry["value"], "delta_ci95": entry["ci95"]}, kind)
    shown = relative(entry["value"]) if metric.startswith("relative_loss") else difference(entry["value"], kind.unit)
    least = would_show(word, entry, kind)
    word += least.replace(" pp", " %") if metric.startswith("relative_loss") else least
    ends = interval(entry["ci95"], kind.unit, signed=True)
    return Cell(shown, interval="" if ends == MISSING else ends, tone=tone, word=word)


def _fewer(report: Mapping[str, Any], sides: Sequence[str]) -> str:
    """Return a sentence where both sides are not told apart among the same number of classes."""
    counts = [report["datasets"].get(data, {}).get("classes", 0) for data in sides]
    if counts[0] == counts[1]:
        return ""
    return f" The two are told apart among {counts[0]:,} and {counts[1]:,} classes, so the drop is not that of the shift alone."


def _line(parts: Mapping[str, Mapping[str, Any]]) -> str:
    line = next((part["line_residual"]["line"] for part in parts.values() if "line_residual" in part), None)
    if line is None:
        return ""
    return (
        f" The published line is of {line['models']} models ({line['source']}), whose own distance from it is "
        f"{difference(line['spread'], 'fraction').removeprefix('+')}."
    )


def _noise_tables(report: Mapping[str, Any], data: str) -> list[Table]:
    """Return the means over corruptions, then the error of each corruption."""
    parts = _parts(report, "noise", data)
    facts = next(iter(parts.values()))
    severities = ", ".join(map(str, facts["severities"]))
    note = f"{len(facts['corruptions'])} corruptions at severity {severities}. {facts['note']}."
    metrics = [metric for metric in _MEANS if any(metric in part for part in parts.values())]
    rows = [(engine, [measured_cell(part.get(metric), ROBUSTNESS[metric]) for metric in metrics]) for engine, part in parts.items()]
    labels, hints = [ROBUSTNESS[metric].label for metric in metrics], [ROBUSTNESS[metric].meaning for metric in metrics]
    means = Table(f"{AXES['noise']}: {data}", labels, rows, hints, note)
    return [means, *_errors(parts, data, facts["corruptions"])]


def _errors(parts: Mapping[str, Mapping[str, Any]], data: str, corruptions: Sequence[str]) -> Iterator[Table]:
    kind = ROBUSTNESS["mean_error"]
    for start in range(0, len(corruptions), _WIDE):
        names = corruptions[start : start + _WIDE]
        rows = [(engine, [measured_cell(part["errors"].get(name), kind) for name in names]) for engine, part in parts.items()]
        labels = [name.replace("_", " ") for name in names]
        yield Table(f"Error by corruption: {data}", [label[0].upper() + label[1:] for label in labels], rows)


def _calibration(report: Mapping[str, Any]) -> list[Table]:
    """Return ECE-15 on the plain images beside that on the altered ones."""
    keys = [key.split("|") for axis in AXES for key in _keys(report, axis) if "|" in key]
    altered = [data for data in labelled(report) if axis_of(data) or any(data == key[1] for key in keys)]
    plain = [data for data in labelled(report) if data not in altered and any(data == key[0] for key in keys)]
    names = [*plain, *(data for data in altered if not data.startswith("corrupt-"))] if keys else []
    found = []
    for start in range(0, len(names), _WIDE):
        own = names[start : start + _WIDE]
        rows = [
            (engine, [measured_cell(results.get(data, {}).get("ece15"), METRICS["ece15"]) for data in own])
            for engine, results in report["results"].items()
        ]
        found.append(Table(f"{METRICS['ece15'].label} along the axes", [_short(data) for data in own], rows, own))
    return found


def _short(data: str) -> str:
    """Return a data id without its path: ``imagenet-r:/data`` as ``imagenet-r``, ``waterbirds:/w:counter`` as ``waterbirds counter``."""
    scheme, tail = scheme_of(data), data.rpartition(":")[2]
    if scheme == "synthetic":
        return tail
    return scheme if "/" in tail or len(data.split(":")) < 3 else f"{scheme} {tail}"
