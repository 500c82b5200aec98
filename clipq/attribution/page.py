"""attribution.html: one self-contained page with a waterfall of the loss and the tables below it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from clipq.attribution.tell import STEP_COLUMNS, WHOLE_COLUMNS, remarks, sentence, step_rows, whole_rows
from clipq.evaluate.report import svg
from clipq.evaluate.report.format import quantity
from clipq.evaluate.report.plain import html_table, plain_page

_COLUMN, _LEFT, _TOP, _HEIGHT = 124, 70, 34, 220


def page(found: Mapping[str, Any]) -> str:
    """Return the page: no script, nothing from outside, every name escaped."""
    data, title = found["dataset"], f"Where {found['engine']} loses"
    first = found["stages"][0]["title"]
    body = [
        f'<p class="eyebrow">{_text(found["provenance"]["model"]["id"])}, {data["n"]:,} images of {_text(data["id"])}</p>',
        f"<p>{_text(sentence(found))}</p>",
        f'<div class="panels wide"><div>{waterfall(found)}</div></div>',
        "<h2>Step by step: each stage and the one before</h2>",
        html_table(STEP_COLUMNS, step_rows(found)),
        f"<h2>Each stage and {_text(first)}</h2>",
        html_table(WHOLE_COLUMNS, whole_rows(found)),
        "<h2>What changes at each stage</h2>",
        "<ul>" + "".join(f"<li><b>{_text(stage['title'])}</b>: {_text(stage['changes'])}.</li>" for stage in found["stages"]) + "</ul>",
        "<h2>How to read it</h2>",
        *(f"<p>{_text(line)}</p>" for line in remarks(found)),
    ]
    return plain_page(title, body)


def waterfall(found: Mapping[str, Any]) -> str:
    """Return the parts of the loss as bars, each beginning where the one before ends, then the remainder and the whole, as SVG."""
    loss, titles = found["loss"], {stage["key"]: stage["title"] for stage in found["stages"]}
    bars, at = [], 0.0
    for key, part in loss["parts"].items():
        bars.append((titles[key], at, at + part["squared_error"], "engine"))
        at += part["squared_error"]
    bars += [("remainder", at, loss["total"], "count"), ("whole loss", 0.0, loss["total"], "ood")]
    edges = [value for _, low, high, _ in bars for value in (low, high)]
    top, bottom = max(*edges, 1e-12) * 1.08, min(*edges, 0.0)
    frame = svg.Frame(_LEFT, _TOP, _COLUMN * len(bars), _HEIGHT, (0, len(bars)), (bottom, top))
    ticks = [(value, f"{value:.3g}".replace("-", "−")) for value in svg.nice_ticks(bottom, top, 4)]
    parts = [svg.axes(frame, [(index + 0.5, title) for index, (title, *_) in enumerate(bars)], ticks, "", "squared embedding error")]
    parts += [_bar(frame, index, bar, loss["total"]) for index, bar in enumerate(bars)]
    return svg.panel(_LEFT + _COLUMN * len(bars) + 12, _TOP + _HEIGHT + 34, "Where the loss arises", parts)


def _bar(frame: svg.Frame, index: int, bar: tuple[str, float, float, str], total: float) -> str:
    title, start, end, kind = bar
    left, top = frame.at(index + 0.12, max(start, end))
    right, bottom = frame.at(index + 0.88, min(start, end))
    share = f", {quantity((end - start) / total, 'fraction')} of the whole" if total > 0 else ""
    hint = html.escape(f"{title}: {end - start:.3g}{share}")
    size = f'width="{right - left:.1f}" height="{max(bottom - top, 0.5):.1f}"'
    return f'<rect class="{kind}" x="{left}" y="{top}" {size}><title>{hint}</title></rect>'


def _text(value: str) -> str:
    return html.escape(value)
