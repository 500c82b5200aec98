"""Means of OOD detection over near and far sets: one table per ID data set and metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.report.names import OOD_METRICS, SCORES
from clipq.evaluate.report.tables import Table, measured_cell
from clipq.evaluate.robustness.pairs import axis_of

METRICS = ("auroc", "fpr95_id_pos", "fpr95_ood_pos")


def ood_mean_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return engine and group x score for each ID data set that is not altered; those of altered ones stand in report.json."""
    means = report.get("ood_means", {})
    data_ids = list(dict.fromkeys(data for sets in means.values() for data in sets if axis_of(data) is None))
    return [_table(report, data, metric) for data in data_ids for metric in METRICS]


def _table(report: Mapping[str, Any], data: str, metric: str) -> Table:
    means: Mapping[str, Any] = report["ood_means"]
    found = [(engine, group, scored) for engine, sets in means.items() for group, scored in sets.get(data, {}).items()]
    scores = [score for score in SCORES if any(score in scored for _, _, scored in found)]
    rows = [
        (f"{engine}, {group}", [measured_cell(scored.get(score, {}).get(metric), OOD_METRICS[metric]) for score in scores])
        for engine, group, scored in found
    ]
    title, labels = f"{OOD_METRICS[metric].label}: {data}", [SCORES[score].label for score in scores]
    return Table(title, labels, rows, [SCORES[score].meaning for score in scores], _which(report))


def _which(report: Mapping[str, Any]) -> str:
    """Return which sets are near and which far."""
    outside = {name: facts.get("distance") for name, facts in report["datasets"].items() if facts.get("role") == "ood"}
    named = {distance: [name for name, own in outside.items() if own == distance] for distance in ("near", "far")}
    told = [f"{distance}: {', '.join(names)}" for distance, names in named.items() if names]
    return f"Means of {len(outside)} sets" + "".join(f"; {part}" for part in told) + "."
