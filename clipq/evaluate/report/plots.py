"""The figures: reliability diagram, OOD score histogram, accuracy and calibration error over latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.evaluate.metrics.calibration import ReliabilityBins, reliability_bins
from clipq.evaluate.report import svg
from clipq.evaluate.report.format import quantity
from clipq.evaluate.report.names import METRICS, SCORES

Columns = Mapping[str, npt.NDArray[Any]]
_SHARES = [(0.0, "0 %"), (0.25, "25 %"), (0.5, "50 %"), (0.75, "75 %"), (1.0, "100 %")]
_HISTOGRAM_BINS = 32


def reliability(engine: str, rows: Columns, baseline: str, base: Columns) -> str:
    """Return the reliability diagram of one engine on one data set as SVG: bars the engine, dots the baseline, bin counts below."""
    upper = svg.Frame(52, 56, 256, 190, (0, 1), (0, 1))
    lower = svg.Frame(52, 262, 256, 46, (0, 1), (0, 1))
    table = _bins(rows)
    parts = [svg.axes(upper, [], _SHARES, "", "right answers")]
    parts += _accuracy_bars(upper, table)
    parts.append(svg.line(upper, [(0, 0), (1, 1)], "perfect"))
    entries = [("engine", engine)]
    if engine != baseline:
        other = _bins(base)
        seen = [index for index in range(len(other.count)) if other.count[index]]
        parts += [svg.dot(upper, (other.confidence[i], other.accuracy[i]), 3, "baseline", _bin_hint(other, i)) for i in seen]
        entries.append(("baseline", baseline))
    parts.append(svg.legend(52, 34, entries))
    return svg.panel(328, 344, engine, [*parts, _counts(lower, table)])


def _bins(rows: Columns) -> ReliabilityBins:
    return reliability_bins(rows["confidence"], rows["prediction"] == rows["label"])


def _accuracy_bars(frame: svg.Frame, table: ReliabilityBins) -> list[str]:
    filled = [index for index in range(len(table.count)) if table.count[index]]
    return [svg.bar(frame, (table.edges[i], table.edges[i + 1]), table.accuracy[i], "engine", _bin_hint(table, i)) for i in filled]


def _bin_hint(table: ReliabilityBins, index: int) -> str:
    right, said = quantity(table.accuracy[index], "fraction"), quantity(table.confidence[index], "fraction")
    return f"{table.count[index]:,} images: {right} right at a mean confidence of {said}"


def _counts(frame: svg.Frame, table: ReliabilityBins) -> str:
    most = int(table.count.max())
    bars = [
        svg.bar(frame, (table.edges[i], table.edges[i + 1]), count / most, "count", f"{count:,} images")
        for i, count in enumerate(table.count)
        if count
    ]
    return svg.axes(frame, _SHARES, [(0, "0"), (1, f"{most:,}")], "confidence", "images") + "".join(bars)


def histogram(engine: str, score: str, rows: tuple[Columns, Columns], baseline: str, base: tuple[Columns, Columns]) -> str:
    """Return the OOD score histogram of one engine as SVG: ID and OOD filled, the baseline's as outlines.

    Args:
        engine: Whose scores.
        score: Column of the samples table.
        rows: ID rows and OOD rows of the engine.
        baseline: Whose outlines.
        base: ID rows and OOD rows of the baseline.
    """
    values = [part[score] for part in (*rows, *base)]
    edges = np.histogram_bin_edges(np.concatenate(values), bins=_HISTOGRAM_BINS)
    shares = [np.histogram(part, edges)[0] / len(part) for part in values]
    top = max(float(share.max()) for share in shares) * 1.25
    frame = svg.Frame(52, 46, 256, 150, (float(edges[0]), float(edges[-1])), (0, top))
    ticks = [(value, quantity(value, "fraction").replace(".0", "")) for value in svg.nice_ticks(0, top, 3)]
    parts = [svg.axes(frame, _number_ticks(frame.x), ticks, f"{SCORES[score].label} as OOD score", "share of images")]
    parts += [svg.line(frame, svg.steps(edges.tolist(), shares[i].tolist()), kind) for i, kind in enumerate(("engine", "ood"))]
    if engine != baseline:
        parts += [
            svg.line(frame, svg.steps(edges.tolist(), shares[i + 2].tolist()), f"{kind} outline")
            for i, kind in enumerate(("engine", "ood"))
        ]
    names = [("engine", "known (ID)"), ("ood", "foreign (OOD)")]
    parts += [svg.legend(52 + 108 * i, 36, [entry]) for i, entry in enumerate(names)]
    return svg.panel(328, 232, engine, parts)


def tradeoff(points: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Return one panel of the accuracy, ECE and latency picture as SVG.

    Args:
        points: Per engine ``engine``, ``seconds``, ``size_bytes`` (or None), the metric and ``<metric>_ci`` as (low, high).
        metric: What is on the y axis, a fraction.
    """
    ends = [end for point in points for end in (*point[f"{metric}_ci"], point[metric])]
    margin = 0.15 * (max(ends) - min(ends)) or 0.01
    y = (max(0.0, min(ends) - margin), max(ends) + margin)
    frame = svg.Frame(58, 34, 380, 220, (0, max(point["seconds"] for point in points) * 1e3 * 1.12), y)
    ticks = [(value, quantity(value, "fraction")) for value in svg.nice_ticks(*y, 4)]
    parts = [svg.axes(frame, _number_ticks(frame.x), ticks, "time for one image, p50, ms", "")]
    largest = max(point["size_bytes"] or 0 for point in points)
    for number, point in enumerate(points):
        x, radius = point["seconds"] * 1e3, 5 + 13 * ((point["size_bytes"] or 0) / largest) ** 0.5 if largest else 7
        parts.append(svg.line(frame, [(x, end) for end in point[f"{metric}_ci"]], f"interval series{number % 6}"))
        facts = (quantity(point[metric], "fraction"), quantity(point["seconds"], "seconds"), quantity(point["size_bytes"], "bytes"))
        hint = f"{point['engine']}: {', '.join(facts)}"
        parts.append(svg.dot(frame, (x, point[metric]), radius, f"bubble series{number % 6}", hint))
    parts += [svg.legend(58 + 190 * (i % 2), 304 + 15 * (i // 2), [(f"series{i % 6}", point["engine"])]) for i, point in enumerate(points)]
    return svg.panel(452, 300 + 15 * ((len(points) + 1) // 2), METRICS[metric].label, parts)


def _number_ticks(x: svg.Range) -> list[tuple[float, str]]:
    return [(value, f"{value:g}".replace("-", "−")) for value in svg.nice_ticks(*x, 4)]
