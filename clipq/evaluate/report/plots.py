"""Figures as inline SVG: one small panel each, so that the page can lay them out for a screen or a phone, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipq.evaluate.metrics.calibration import reliability_bins
from clipq.evaluate.report.names import SCORES

# Stand-ins that the page replaces by its own colours; the rest is readable on light and dark.
_INK, _GRID = "#0a0b0c", "#0a0b0d"
_ENGINE, _BASELINE, _OOD = "#3b82c4", "#8a8f98", "#d9822b"
_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": _GRID, "axes.labelcolor": _INK,
    "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8,
    "axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.linewidth": 0.8,
}  # fmt: skip
_COLOURS = ("#3b82c4", "#d9822b", "#2f9e6e", "#a56bc9", "#c9574f", "#6d8f2f")

Columns = Mapping[str, npt.NDArray[Any]]


def reliability(engine: str, rows: Columns, baseline: str, base: Columns) -> str:
    """Return the reliability diagram of one engine on one data set as SVG, the baseline's as an outline, with bin counts below."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 3.7), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        upper.set_title(engine)
        table = _bins(rows)
        upper.bar(table.edges[:-1], table.accuracy, 1 / 15, align="edge", color=_ENGINE, alpha=0.75, label=f"{engine}")
        if engine != baseline:
            other = _bins(base)
            upper.plot(other.confidence, other.accuracy, "o", color=_OOD, markersize=3.5, label=baseline)
        upper.plot([0, 1], [0, 1], "--", color=_INK, linewidth=0.8, label="perfect")
        upper.set(ylim=(0, 1), ylabel="accuracy")
        upper.legend(loc="upper left", handlelength=1.4)
        _counts(lower, table.edges, table.count)
        return _svg(figure, f"Reliability of {engine}")


def _counts(axes: Axes, edges: npt.NDArray[np.float64], count: npt.NDArray[np.int64]) -> None:
    axes.bar(edges[:-1], count, 1 / 15, align="edge", color=_BASELINE)
    axes.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    axes.set_yticks([0, int(count.max())], ["0", f"{count.max():,}"])
    _percent(axes.xaxis)


def _bins(rows: Columns) -> Any:
    return reliability_bins(rows["confidence"], rows["prediction"] == rows["label"])


def histogram(engine: str, score: str, rows: tuple[Columns, Columns], baseline: str, base: tuple[Columns, Columns]) -> str:
    """Return the OOD score histogram of one engine as SVG: ID and OOD filled, the baseline's as outlines.

    Args:
        engine: Whose scores.
        score: Column of the samples table.
        rows: ID rows and OOD rows of the engine.
        baseline: Whose outlines.
        base: ID rows and OOD rows of the baseline.
    """
    known, foreign = (part[score] for part in rows)
    everything = np.concatenate([known, foreign, base[0][score], base[1][score]])
    edges = np.histogram_bin_edges(everything, bins=32)
    with rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 2.3), layout="constrained")
        axes = figure.subplots()
        axes.set_title(engine)
        for values, colour, name in ((known, _ENGINE, "known (ID)"), (foreign, _OOD, "foreign (OOD)")):
            axes.hist(values, edges, color=colour, alpha=0.55, label=name, weights=np.full(len(values), 1 / len(values)), histtype="stepfilled")
        if engine != baseline:
            for part, colour in zip(base, (_ENGINE, _OOD), strict=True):
                axes.hist(part[score], edges, color=colour, linewidth=1.2, weights=np.full(len(part[score]), 1 / len(part[score])), histtype="step")
        axes.set(xlabel=f"{SCORES[score].label}, as OOD score", ylabel="share")
        _percent(axes.yaxis)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="best", handlelength=1)
        return _svg(figure, f"{score} of {engine}")


def tradeoff(points: Sequence[Mapping[str, Any]], key: str, title: str, x_title: str) -> str:
    """Return one panel of the accuracy, ECE and latency picture as SVG.

    Args:
        points: Per engine ``engine``, ``x``, ``y`` and ``y_ci`` by metric key, ``size`` (bytes or None).
        key: Metric on the y axis, a fraction.
        title: Of the panel.
        x_title: Of the x axis.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        largest = max((point["size"] or 0 for point in points), default=0)
        for point, colour in zip(points, _COLOURS * len(points), strict=False):
            area = 40 + 360 * (point["size"] or 0) / largest if largest else 80
            axes.scatter(point["x"], point[key], s=area, color=colour, alpha=0.6, linewidths=0)
            axes.vlines(point["x"], *point[f"{key}_ci"], color=colour, linewidth=1.2)
            axes.scatter([], [], s=30, color=colour, alpha=0.8, label=point["engine"])
        axes.set(xlabel=x_title)
        axes.set_xlim(left=0)
        axes.margins(0.12)
        _percent(axes.yaxis, digits=1)
        figure.legend(loc="outside lower center", ncols=2, handlelength=1)
        return _svg(figure, title)


def _percent(axis: Any, digits: int = 0) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=digits))


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element that takes the page's text and grid colours and shares no id with another."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = text.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    text = re.sub(r"font: ([^;\"]*?)'?sans-serif'?|font-family: [^;\"]+", lambda match: match[0], text)
    return re.sub(r"\s*\n\s*", "\n", text).replace("<svg ", f'<svg role="img" aria-label="{_escaped(label)}" ', 1)


def _escaped(text: str) -> str:
    import html

    return html.escape(text)
