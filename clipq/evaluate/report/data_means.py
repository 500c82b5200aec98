"""The table of means over the plain ID data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.report.names import METRICS
from clipq.evaluate.report.tables import Table, measured_cell


def data_mean_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return engine x metric, averaged over data sets; empty where there is one data set alone."""
    part = report.get("means")
    if not part:
        return []
    metrics = [metric for metric in METRICS if any(metric in own for own in part["results"].values())]
    rows = [(engine, [measured_cell(own.get(metric), METRICS[metric]) for metric in metrics]) for engine, own in part["results"].items()]
    columns, hints = [METRICS[metric].label for metric in metrics], [METRICS[metric].meaning for metric in metrics]
    return [Table(f"Mean of {len(part['data'])} data sets", columns, rows, hints, f"{', '.join(part['data'])}.")]
