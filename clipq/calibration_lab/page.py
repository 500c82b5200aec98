"""calibration.html: one self-contained page, every metric against the number of calibration images with a band per source."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipq.calibration_lab.tell import (
    COLUMNS,
    QUANTITIES,
    against,
    foreign_columns,
    foreign_rows,
    level,
    present,
    remarks,
    rows,
    sentences,
    series,
    subtitle,
)
from clipq.evaluate.report import svg
from clipq.evaluate.report.format import quantity
from clipq.evaluate.report.plain import html_table, plain_page

Points = Sequence[tuple[int, Mapping[str, Any]]]
_LEFT, _TOP, _WIDTH, _HEIGHT = 58, 30, 300, 180
LEGEND = "Area and dots: band and mean over the draws. Bars: interval of the test images. Dashed: FP32."


def page(found: Mapping[str, Any]) -> str:
    """Return the page: no script, nothing from outside, every name escaped."""
    body = [f'<p class="eyebrow">{_text(subtitle(found))}</p>', *(f"<p>{_text(line)}</p>" for line in sentences(found))]
    for form in found["forms"]:
        panels = "".join(f"<div>{panel(found, form, name)}</div>" for name in present(found))
        body += [f"<h2>{_text(form['method'])} {_text(form['bits'])}</h2>", f'<p class="quiet">{LEGEND}</p>']
        body.append(f'<div class="panels wide">{panels}</div>')
    for name in present(found):
        body += [f"<h2>{_text(QUANTITIES[name].label + level(found, name))}</h2>", html_table(COLUMNS, rows(found, name))]
    if found["foreign"]:
        body += [f"<h2>{_text(against(found))}</h2>", html_table(foreign_columns(found), foreign_rows(found))]
    return plain_page("Calibration images", [*body, "<h2>How to read it</h2>", *(f"<p>{_text(line)}</p>" for line in remarks(found))])


def panel(found: Mapping[str, Any], form: Mapping[str, Any], metric: str) -> str:
    """Return one metric of one form against the number of calibration images, a colour per source, as SVG."""
    sources = series(found, form, metric)
    before = found["fp32"].get(metric, {}).get("value")
    places = {n: float(place) for place, n in enumerate(sorted({n for points in sources.values() for n, _ in points}))}
    ends = [end for points in sources.values() for _, band in points for end in (band["min"], band["max"], *_sampling(band, before))]
    ends += [before] if before is not None else []
    margin = 0.06 * (max(ends) - min(ends)) or 1e-6
    frame = svg.Frame(_LEFT, _TOP, _WIDTH, _HEIGHT, (-0.35, max(0.35, len(places) - 0.65)), (min(ends) - margin, max(ends) + margin))
    x_ticks = [(place, str(n)) for n, place in places.items()]
    y_ticks = [(value, _number(value, frame.y, metric)) for value in svg.nice_ticks(*frame.y, 5)]
    parts = [svg.axes(frame, x_ticks, y_ticks, "calibration images", "")]
    if before is not None:
        parts.append(svg.line(frame, [(frame.x[0], before), (frame.x[1], before)], "perfect"))
    for number, (name, points) in enumerate(sources.items()):
        aside = 0.06 * (number - (len(sources) - 1) / 2)  # so that bars of several sources do not cover each other
        parts += _drawn(frame, [(places[n] + aside, n, band) for n, band in points], f"series{(number + 1) % 6}", (name, metric, before))
    top = _TOP + _HEIGHT + 46
    parts.append(svg.legend(_LEFT, top, [(f"series{(number + 1) % 6}", name) for number, name in enumerate(sources)]))
    return svg.panel(_LEFT + _WIDTH + 12, top + 14 * len(sources), QUANTITIES[metric].label, parts)


def _drawn(
    frame: svg.Frame, points: list[tuple[float, int, Mapping[str, Any]]], kind: str, said: tuple[str, str, float | None]
) -> list[str]:
    name, metric, before = said
    outline = [(x, band["max"]) for x, _, band in points] + [(x, band["min"]) for x, _, band in reversed(points)]
    parts = [svg.area(frame, outline, f"band {kind}", f"{name}: band over the draws")]
    parts.append(svg.line(frame, [(x, band["mean"]) for x, _, band in points], f"curve {kind}"))
    for x, n, band in points:
        parts.append(svg.line(frame, [(x, end) for end in _sampling(band, before)], f"interval {kind}"))
        low, high, mean = (_shown(band[part], metric) for part in ("min", "max", "mean"))
        parts.append(svg.dot(frame, (x, band["mean"]), 3, kind, f"{name}, {n} images: mean {mean}, draws {low} to {high}"))
    return parts


def _sampling(band: Mapping[str, Any], before: float | None) -> list[float]:
    """Return the ends of the interval of the test images where the metric is drawn: those of the difference from FP32, at FP32's level."""
    return list(band["ci95"]) if before is None else [before + end for end in band["delta_ci95"]]


def _number(value: float, ends: svg.Range, metric: str) -> str:
    """Return a tick with as many digits as tell it from its neighbours."""
    scale = 1.0 if metric == "cosine_centred" else 100.0
    digits = max(0, math.ceil(-math.log10((ends[1] - ends[0]) * scale / 5)))
    return f"{value * scale:.{digits}f}{'' if scale == 1.0 else ' %'}".replace("-", "−")


def _shown(value: float, metric: str) -> str:
    return f"{value:.5f}" if metric == "cosine_centred" else quantity(value, "fraction")


def _text(value: str) -> str:
    return html.escape(value)
