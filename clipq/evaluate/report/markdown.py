"""report.md: the compact tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.evaluate.report import ran, tables, view
from clipq.evaluate.report.sections import sections
from clipq.evaluate.report.tables import Cell, Table


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: verdicts, what was compared, and one table per data set and pair."""
    model = report["provenance"]["model"]
    parts = [f"# clipq report: {escaped(model['id'])}", view.headline(report)]
    if model.get("random_weights"):
        parts.append("**The weights are random: accuracy, calibration and OOD detection mean nothing here.**")
    parts += [
        "## Verdict",
        _verdict(report),
        "## What was compared",
        "\n".join(f"- {escaped(term)}: {escaped(text)}" for term, text in view.facts(report)),
    ]
    parts += _what_ran(report)
    measured = {data: tables.measured_metrics(report, data) for data in tables.labelled(report)}
    main = [table for data, metrics in measured.items() for table in tables.result_tables(report, data, metrics)]
    ood = [tables.ood_table(report, pair, "auroc") for pair in tables.pairs(report)]
    paired = [tables.paired_table(report, data) for data in tables.labelled(report)]
    parts += _section("Accuracy and calibration: value, difference to the baseline [95 % interval]", main)
    parts += _section("Telling unknown images from known ones", ood)
    parts += _section("Agreement with the baseline, image by image", [table for table in paired if table.rows])
    for section, intro, found in sections(report):
        parts += [f"## {section.title}", escaped(intro), *(part for table in found for part in _table(table))]
    parts += _section("Speed, size and memory", tables.bench_tables(report))
    return "\n\n".join(parts) + "\n"


def _verdict(report: Mapping[str, Any]) -> str:
    lines = []
    for card in view.cards(report):
        lines.append(f"- **{escaped(card.engine)}: {card.word.lower()}.** {card.sentence}")
        lines += [f"  - **{escaped(card.domination)}**"] if card.domination else []
        lines += [f"  - {escaped(reason)}" for reason in [*card.reasons, *card.more]]
    return "\n".join(lines)


def _what_ran(report: Mapping[str, Any]) -> list[str]:
    table = ran.ran_table(report)
    if table is None:
        return []
    heading, *rest = _table(table)
    return [
        heading.removeprefix("#"),
        *rest,
        *([] if not (said := ran.remarks(report)) else ["\n".join(f"- {escaped(line)}" for line in said)]),
    ]


def _section(title: str, found: Sequence[Table]) -> list[str]:
    return [f"## {title}", *(part for table in found for part in _table(table))] if found else []


def _table(table: Table) -> list[str]:
    lines = [table_row(["Engine", *table.columns]), table_row(["---"] * (len(table.columns) + 1))]
    lines += [table_row([escaped(head), *map(_cell, cells)]) for head, cells in table.rows]
    note = [table.note] if table.note else []
    return [f"### {escaped(table.title)}", *note, "\n".join(lines)]


def table_row(cells: Sequence[str]) -> str:
    """Return one line of a table; the cells are escaped already."""
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    difference = f"; {cell.delta}" if cell.delta else ""
    return " ".join(part for part in (f"{cell.value}{difference}", cell.interval, cell.word) if part)


def escaped(text: str) -> str:
    """Return text without what would end a table cell or line, or start HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
