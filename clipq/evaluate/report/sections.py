"""The sections of a report that stand only where there is something to show: one line each, the same in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipq.evaluate.report import data_means, ood_means, retrieval, robustness, spectral, thresholds
from clipq.evaluate.report.tables import Table


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        anchor: Its name in a link.
        title: Its heading.
        intro: What a reader must know first; ``{baseline}`` stands for the baseline's id.
        make: Report to tables; no tables, no section.
        draw: Report to SVG panels, for the page alone.
    """

    anchor: str
    title: str
    intro: str
    make: Callable[[Mapping[str, Any]], Sequence[Table]]
    draw: Callable[[Mapping[str, Any]], Sequence[str]] | None = None


SECTIONS: tuple[Section, ...] = (
    Section(
        "robustness",
        "Robustness, axis by axis",
        "Three questions, kept apart: what noise on the images costs, what other pictures of the same things cost, and what is lost where "
        "a cue misleads. Differences are to {baseline} on the same images: what quantization adds, not what the change itself costs.",
        robustness.robustness_tables,
    ),
    Section(
        "ood-means",
        "OOD detection near and far",
        "Each set counts alike. The intervals share the known images among the sets, as the means do; differences are to {baseline}.",
        ood_means.ood_mean_tables,
    ),
    Section(
        "thresholds",
        "Thresholds to deploy",
        "An image is taken as known where its score is at or below the threshold. Where an engine takes the place of {baseline} and the "
        "threshold stays, it no longer keeps 95 %: the differences say what changes. Tuned anew it does: FPR95 (ID positive).",
        thresholds.threshold_tables,
    ),
    Section(
        "means",
        "Mean over data sets",
        "Every data set counts the same; sets that are an alteration of another are left out. Differences are to {baseline}, with the "
        "interval of independent data sets.",
        data_means.data_mean_tables,
    ),
    Section(
        "retrieval",
        "Retrieval: images and captions find each other",
        "Any of an image's captions counts. Differences are to {baseline} with the same images and captions; intervals are over images, "
        "each drawn with its captions, against the same gallery.",
        retrieval.retrieval_tables,
    ),
    Section(
        "spectral",
        "Where in the spectrum of the embeddings",
        "The principal axes of the image embeddings, most energy first: where an engine differs from {baseline}, and where the "
        "answers are. Noise in ranks that carry no answers costs nothing.",
        spectral.spectral_tables,
        spectral.spectral_panels,
    ),
)


def sections(report: Mapping[str, Any]) -> list[tuple[Section, str, list[Table]]]:
    """Return (section, introduction, tables) of every section that has something to show, in the order of ``SECTIONS``."""
    made = [(section, [table for table in section.make(report) if table.rows]) for section in SECTIONS]
    return [(section, section.intro.format(baseline=report["baseline"]), found) for section, found in made if found]
