"""Just enough SVG for small panels: a frame with ticks, bars, lines, dots and a legend, coloured by the page's style sheet.

Written out by hand because a report holds a hundred panels: this takes a millisecond each where a plotting library takes a tenth
of a second, follows light and dark, and lets a reader point at a bar to see its numbers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Range = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """A plotting area: its place in pixels and the data ranges it shows."""

    left: float
    top: float
    width: float
    height: float
    x: Range
    y: Range

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a data point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(self.left + across * self.width, 1), round(self.top + (1 - up) * self.height, 1)


def panel(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Return a whole SVG element with a title on top; every text is escaped."""
    name = html.escape(title)
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}"><text class="title" x="8" y="16">{name}</text>'
    return "\n".join([head, *parts, "</svg>"])


def axes(frame: Frame, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_label: str, y_label: str) -> str:
    """Return grid lines, tick texts and axis names of a frame."""
    parts = []
    right, bottom = frame.left + frame.width, frame.top + frame.height
    for value, text in y_ticks:
        y = frame.at(frame.x[0], value)[1]
        parts.append(f'<path class="grid" d="M{frame.left} {y}H{right}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 5}" y="{y + 3.5}">{html.escape(text)}</text>')
    for value, text in x_ticks:
        x = frame.at(value, frame.y[0])[0]
        parts.append(f'<text class="tick mid" x="{x}" y="{bottom + 14}">{html.escape(text)}</text>')
    parts.append(f'<path class="axis" d="M{frame.left} {bottom}H{right}"/>')
    parts.append(f'<text class="label mid" x="{frame.left + frame.width / 2}" y="{bottom + 29}">{html.escape(x_label)}</text>')
    middle = frame.top + frame.height / 2
    parts.append(f'<text class="label mid" transform="translate(11 {middle}) rotate(-90)">{html.escape(y_label)}</text>')
    return "".join(parts)


def bar(frame: Frame, x: Range, height: float, kind: str, hint: str) -> str:
    """Return a bar from the bottom of the frame to ``height`` over the range ``x``; ``hint`` shows on pointing."""
    left, top = frame.at(x[0], height)
    right, bottom = frame.at(x[1], frame.y[0])
    size = f'width="{max(right - left - 1, 0.5):.1f}" height="{max(bottom - top, 0):.1f}"'
    return f'<rect class="{kind}" x="{left + 0.5:.1f}" y="{top}" {size}><title>{html.escape(hint)}</title></rect>'


def line(frame: Frame, points: Sequence[Point], kind: str) -> str:
    """Return a line through data points."""
    pixels = " ".join(f"{x},{y}" for x, y in (frame.at(*point) for point in points))
    return f'<polyline class="{kind}" points="{pixels}"/>'


def area(frame: Frame, points: Sequence[Point], kind: str, hint: str) -> str:
    """Return the area inside a line through data points, closed from the last to the first; ``hint`` shows on pointing."""
    pixels = " ".join(f"{x},{y}" for x, y in (frame.at(*point) for point in points))
    return f'<polygon class="{kind}" points="{pixels}"><title>{html.escape(hint)}</title></polygon>'


def dot(frame: Frame, point: Point, radius: float, kind: str, hint: str) -> str:
    """Return a dot of ``radius`` pixels at a data point; ``hint`` shows on pointing."""
    x, y = frame.at(*point)
    return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{radius:.1f}"><title>{html.escape(hint)}</title></circle>'


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """Return swatches with names, one below the other; ``entries`` are (class, name)."""
    rows = enumerate(entries)
    return "".join(
        f'<rect class="{kind}" x="{x}" y="{y + 14 * row - 8}" width="9" height="9"/>'
        f'<text class="tick" x="{x + 14}" y="{y + 14 * row}">{html.escape(name)}</text>'
        for row, (kind, name) in rows
    )


def steps(edges: Sequence[float], heights: Sequence[float]) -> list[Point]:
    """Return the outline of a histogram as points, from the floor and back to it."""
    points: list[Point] = [(edges[0], 0.0)]
    for low, high, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(low, height), (high, height)]
    return [*points, (edges[-1], 0.0)]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high].

    >>> nice_ticks(0.0, 12.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
