"""Thresholds to deploy, and what becomes of the baseline's when an engine takes its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipq.evaluate.report.names import OOD_METRICS, SCORES
from clipq.evaluate.report.tables import Cell, Table, ood_table, pairs


def threshold_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the thresholds per ID data set, then the shares that the baseline's threshold accepts; none without OOD scores."""
    found = report.get("thresholds", {})
    data_ids = list(dict.fromkeys(data for sets in found.values() for data in sets))
    return [_thresholds(found, data) for data in data_ids] + _transfer(report)


def _thresholds(found: Mapping[str, Any], data: str) -> Table:
    scores = [name for name in SCORES if any(name in sets.get(data, {}) for sets in found.values())]
    rows = [(engine, [_cell(sets[data].get(score)) for score in scores]) for engine, sets in found.items() if data in sets]
    labels, hints = [SCORES[score].label for score in scores], [SCORES[score].meaning for score in scores]
    return Table(f"Thresholds that keep 95 % of {data}", labels, rows, hints, "In brackets the 95 % interval.")


def _cell(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return Cell()
    return Cell(_number(entry["threshold"]), interval=f"[{', '.join(map(_number, entry['ci95']))}]")


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def _transfer(report: Mapping[str, Any]) -> list[Table]:
    """Return what of the known images is kept, once per ID data set, and what of the foreign ones gets in, once per pair."""
    every = [pair for pair in pairs(report) if _has(report, pair)]
    first = list({pair.split("|")[0]: pair for pair in reversed(every)}.values())[::-1]
    label = OOD_METRICS["tpr_transfer"].label
    kept = [replace(ood_table(report, pair, "tpr_transfer"), title=f"{label}: {pair.split('|')[0]}") for pair in first]
    return [*kept, *(ood_table(report, pair, "fpr_transfer") for pair in every)]


def _has(report: Mapping[str, Any], pair: str) -> bool:
    return any("fpr_transfer" in metrics for scored in report["ood"].values() for metrics in scored.get(pair, {}).values())
