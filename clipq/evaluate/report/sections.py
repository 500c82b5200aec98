"""The sections of a report that stand only where there is something to show: one line each, the same in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipq.evaluate.report import tables
from clipq.evaluate.report.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        anchor: Its name in a link.
        title: Its heading.
        intro: What a reader must know first; ``{baseline}`` stands for the baseline's id.
        make: Report to tables; no tables, no section.
    """

    anchor: str
    title: str
    intro: str
    make: Callable[[Mapping[str, Any]], Sequence[Table]]


SECTIONS: tuple[Section, ...] = (
    Section(
        "robustness",
        "Robustness, axis by axis",
        "Differences are to {baseline} on the same altered images, so they show what quantization adds, not what the alteration costs.",
        tables.robustness_tables,
    ),
)


def sections(report: Mapping[str, Any]) -> list[tuple[Section, str, list[Table]]]:
    """Return (section, introduction, tables) of every section that has something to show, in the order of ``SECTIONS``."""
    made = [(section, [table for table in section.make(report) if table.rows]) for section in SECTIONS]
    return [(section, section.intro.format(baseline=report["baseline"]), found) for section, found in made if found]
