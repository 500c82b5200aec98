"""The tables of retrieval: recall in both directions, and how far each engine's rankings agree with the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.evaluate.report.names import RETRIEVAL
from clipq.evaluate.report.tables import Table, measured_cell


def retrieval_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return engine x recall and engine x agreement for each data set; empty where nothing was retrieved."""
    part = report.get("retrieval", {})
    found = []
    for data in dict.fromkeys(data for own in part.values() for data in own):
        rows = {engine: own[data] for engine, own in part.items() if data in own}
        note = _note(report["datasets"].get(data, {}))
        found += [
            _table(f"{data}: recall", rows, [metric for metric in RETRIEVAL if "recall" in metric], note),
            _table(
                f"{data}: agreement with {report['baseline']}",
                {engine: entries for engine, entries in rows.items() if engine != report["baseline"]},
                [metric for metric in RETRIEVAL if "recall" not in metric],
            ),
        ]
    return found


def _table(title: str, entries: Mapping[str, Mapping[str, Any]], metrics: Sequence[str], note: str = "") -> Table:
    rows = [(engine, [measured_cell(own.get(metric), RETRIEVAL[metric]) for metric in metrics]) for engine, own in entries.items()]
    return Table(title, [RETRIEVAL[metric].label for metric in metrics], rows, [RETRIEVAL[metric].meaning for metric in metrics], note)


def _note(described: Mapping[str, Any]) -> str:
    return f"{described['n']:,} images, {described['captions']:,} captions." if "captions" in described else ""
