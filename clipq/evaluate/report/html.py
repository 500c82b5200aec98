"""report.html: one self-contained page that a stranger understands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from clipq.evaluate.report import plots, ran, tables, view
from clipq.evaluate.report.names import METRICS, SCORES
from clipq.evaluate.report.samples import SCORE_COLUMNS, grouped, has_score
from clipq.evaluate.report.sections import sections
from clipq.evaluate.robustness.pairs import axis_of
from clipq.evaluate.statistics.ood import TRANSFER

Groups = Mapping[tuple[str, str, str], Mapping[str, npt.NDArray[Any]]]


def render_html(report: Mapping[str, Any], samples: Mapping[str, npt.NDArray[Any]], *, table: bool = True) -> str:
    """Return the report as one HTML page: no script, nothing from outside, every name escaped; ``table``: samples.parquet is beside it."""
    folder = files("clipq.evaluate.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((folder / "report.html.j2").read_text("utf-8"))
    style = Markup((folder / "report.css").read_text("utf-8"))  # noqa: S704 - our own file
    rows = grouped(samples)
    return template.render(style=style, table=table, **_words(report, rows), **_tables(report), **_figures(report, rows))


def _words(report: Mapping[str, Any], rows: Groups) -> dict[str, Any]:
    origin = report["provenance"]
    return {
        "model": origin["model"]["id"], "random_weights": origin["model"].get("random_weights", False), "created": origin["created"],
        "baseline": report["baseline"], "headline": view.headline(report), "cards": view.cards(report), "facts": view.facts(report),
        "engine_facts": view.engine_facts(report), "skipped": view.skipped(report), "notes": view.sample_notes(report, rows),
        "rules": list(dict.fromkeys(gate["rule"] for gate in report["gates"])), "gates": report["gates"], "glossary": view.glossary(report),
        "provenance": json.dumps(origin, indent=2, ensure_ascii=False),
    }  # fmt: skip


def _tables(report: Mapping[str, Any]) -> dict[str, Any]:
    data_ids = tables.labelled(report)
    others = [metric for metric in METRICS if metric not in tables.MAIN_METRICS]
    pairs = tables.pairs(report)
    return {
        "main_tables": [
            tables.result_table(report, data, [m for m in tables.MAIN_METRICS if m in tables.measured_metrics(report, data)])
            for data in data_ids
        ],
        "more_tables": [
            table
            for data in data_ids
            for table in tables.result_tables(report, data, [m for m in tables.measured_metrics(report, data) if m in others])
        ],
        "paired_tables": [table for data in data_ids if (table := tables.paired_table(report, data)).rows],
        "ood_tables": [tables.ood_table(report, pair, "auroc") for pair in pairs],
        "more_ood_tables": [
            tables.ood_table(report, pair, metric)
            for pair in pairs
            for metric in tables.ood_metrics(report, pair)
            if metric not in {"auroc", *TRANSFER}
        ],
        "ran": ran.ran_table(report),
        "remarks": ran.remarks(report),
        "sections": sections(report),
        "bench": tables.bench_tables(report),
    }


def _figures(report: Mapping[str, Any], rows: Groups) -> dict[str, Any]:
    drawn = {section.anchor: [_markup(panel) for panel in section.draw(report)] for section, _, _ in sections(report) if section.draw}
    return {
        "tradeoff": _tradeoff(report),
        "reliability": _reliability(report, rows),
        "histograms": _histograms(report, rows),
        "section_panels": drawn,
    }


def _reliability(report: Mapping[str, Any], rows: Groups) -> list[tuple[str, list[Markup]]]:
    """Return (data set, one panel per engine)."""
    baseline, found = report["baseline"], []
    for data in tables.labelled(report):
        parts = {engine: rows[engine, data, data] for engine in report["engines"] if (engine, data, data) in rows}
        found.append((data, [_markup(plots.reliability(engine, own, baseline, parts[baseline])) for engine, own in parts.items()]))
    return found


def _histograms(report: Mapping[str, Any], rows: Groups) -> list[tuple[str, list[tuple[str, list[Markup]]]]]:
    """Return (pair in words, (score, one panel per engine), MCM first)."""
    baseline, found = report["baseline"], []
    for pair in tables.pairs(report):
        known, foreign = pair.split("|")
        parts = {e: (rows[e, known, known], rows[e, foreign, known]) for e in report["engines"] if (e, foreign, known) in rows}
        by_score = []
        for score in SCORE_COLUMNS:
            scored = {engine: sides for engine, sides in parts.items() if all(has_score(side, score) for side in sides)}
            outline = (baseline, scored[baseline]) if baseline in scored else None
            panels = [plots.histogram(engine, score, own, *(outline or (engine, own))) for engine, own in scored.items()]
            if panels:
                by_score.append((SCORES[score].label, [_markup(panel) for panel in panels]))
        found.append((pair.replace("|", " against "), by_score))
    return found


def _tradeoff(report: Mapping[str, Any]) -> list[Markup]:
    """Return accuracy and ECE over latency at batch 1, averaged over the clean data sets; nothing without a latency of their own."""
    simulated = {engine for engine, entry in report["engines"].items() if entry.get("simulated")}
    timed = {e: values["image-b1"]["p50_s"] for e, values in report["bench"].items() if "image-b1" in values and e not in simulated}
    clean = [data for data in tables.labelled(report) if axis_of(data) is None] or tables.labelled(report)
    points = []
    for engine, seconds in timed.items():
        own = [report["results"][engine][data] for data in clean if data in report["results"].get(engine, {})]
        if own and all(metric in entry for entry in own for metric in ("acc1", "ece15")):
            size = tables.size_bytes(report, engine)
            points.append({"engine": engine, "seconds": seconds, "size_bytes": size, **_mean(own, "acc1"), **_mean(own, "ece15")})
    if len(points) < 2:
        return []
    return [_markup(plots.tradeoff(points, metric)) for metric in ("acc1", "ece15")]


def _mean(entries: list[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Return the mean over data sets and its interval, as of independent samples."""
    values = [entry[metric]["value"] for entry in entries]
    ends = np.array([entry[metric]["ci95"] or [entry[metric]["value"]] * 2 for entry in entries])
    value = float(np.mean(values))
    low, high = (float(np.sqrt(np.sum((ends[:, side] - values) ** 2)) / len(values)) for side in (0, 1))
    return {metric: value, f"{metric}_ci": (value - low, value + high)}


def _markup(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 - made by plots.py, which escapes every name
