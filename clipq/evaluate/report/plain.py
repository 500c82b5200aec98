"""A self-contained page and tables from plain cells, for records that need no template."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files

from clipq.evaluate.report.markdown import escaped, table_row

Rows = Sequence[Sequence[str]]


def plain_page(title: str, body: Sequence[str]) -> str:
    """Return a page with the report's style sheet: no script, nothing from outside.

    Args:
        title: Escaped here.
        body: HTML, one part after the other.
    """
    style = (files("clipq.evaluate.report") / "report.css").read_text("utf-8")
    name = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>'
    main = "\n".join([f"<h1>{name}</h1>", *body])
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head>\n<body><main>\n{main}\n</main></body></html>\n'


def html_table(columns: Sequence[str], rows: Rows) -> str:
    """Return a table whose first column names the row; every cell is escaped."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in columns)
    body = "".join(f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def markdown_table(columns: Sequence[str], rows: Rows) -> str:
    r"""Return a Markdown table; cells are escaped, names of columns are not.

    >>> print(markdown_table(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\|y |
    """
    lines = [table_row(columns), table_row(["---"] * len(columns))]
    return "\n".join([*lines, *(table_row([escaped(cell) for cell in row]) for row in rows)])


def aligned(rows: Rows) -> str:
    """Return rows for a terminal, every column as wide as its widest cell.

    >>> print(aligned([["n", "value"], ["16", "1.0"]]))
    n   value
    16  1.0
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
