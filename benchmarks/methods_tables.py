"""The tables of docs/results/methods.md, from the rows that ``methods.py`` records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEAD = ("engine", "top-1", "ECE-15", "confidence - accuracy", "MCM AUROC", "disagreement", "flips", "centred cosine")
EXPLAINED = (
    "Values in percent; in parentheses the paired difference from `torch-fp32` in percent points with its 95 % interval; disagreement"
    " with its Wilson interval. Bold: the interval of the difference excludes 0."
)


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """Return one table per model and tower, and the count of improvements, as Markdown."""
    rows = list(rows)
    parts = [EXPLAINED]
    for (model, tower), group in groupby(rows, key=lambda row: (row["model"], row["tower"])):
        parts += [f"### {model}, {tower} tower", table(HEAD, [cells(row) for row in group])]
    parts += ["### How often calibration improves", table(("model", "tower", "bits", "engines", "ECE lower", "ECE higher"), improved(rows))]
    return "\n\n".join(parts)


def cells(row: dict[str, Any]) -> list[str]:
    """Return one engine's cells."""
    figures = [points(row["figures"][name]) for name in ("acc1", "ece15", "signed_gap", "auroc")]
    paired = row.get("paired")
    if paired is None:
        return [row["engine"], *figures, "", "", ""]
    low, high = paired["disagreement_ci95"]
    agreement = [f"{100 * paired['disagreement']:.2f} [{100 * low:.2f}, {100 * high:.2f}]", f"{100 * paired['flips']:.2f}"]
    return [row["engine"], *figures, *agreement, f"{paired['cosine_centred_mean']:.4f}"]


def points(entry: dict[str, Any]) -> str:
    """Return a fraction in percent, with its paired difference and interval."""
    text = f"{100 * entry['value']:.2f}"
    if entry["delta"] is None:
        return text
    low, high = entry["delta_ci95"]
    change = f"{100 * entry['delta']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    return f"{text} (**{change}**)" if low > 0 or high < 0 else f"{text} ({change})"


def improved(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return per model, tower and bits how many methods lower and raise the ECE beyond their interval."""
    found = []
    methods = [row for row in rows if "bits" in row]
    for (model, tower, bits), group in groupby(methods, key=lambda row: (row["model"], row["tower"], row["bits"])):
        ends = [row["figures"]["ece15"]["delta_ci95"] for row in group]
        lower, higher = sum(high < 0 for _, high in ends), sum(low > 0 for low, _ in ends)
        found.append([model, tower, bits, str(len(ends)), str(lower), str(higher)])
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])
