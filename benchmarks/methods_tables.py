"""The tables of docs/results/methods.md, from the rows that ``methods.py`` records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from clipq.methods import BITS, METHODS, method_of

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
HEAD = ("engine", "top-1", "ECE-15", "confidence - accuracy", "MCM AUROC", "disagreement", "flips", "centred cosine")
EXPLAINED = (
    "Values in percent; in parentheses the paired difference from `torch-fp32` in percent points with its 95 % interval; disagreement"
    " with its Wilson interval. Bold: the interval of the difference excludes 0."
)


USUAL_IMAGES = 256
UNCALIBRATED = ("torch-fp32", "ort-fp32", "ort-int8-dynamic")


def label(row: dict[str, Any]) -> str:
    """Return the name of an engine in the tables, with the number of calibration images where it is unusual and of layers kept in FP32."""
    name = str(row["engine"])
    if row["calib_n"] != USUAL_IMAGES and name not in UNCALIBRATED:
        name += f", {row['calib_n']:,} images"
    kept = len(row.get("kept", []))
    return f"{name}, {kept} layer{'s' * (kept > 1)} FP32" if kept else name


def tables(rows: Iterable[dict[str, Any]]) -> str:
    """Return one table per model and tower, and the count of improvements, as Markdown."""
    rows = list(rows)
    parts = ["### Disagreement with FP32, in percent", matrix(rows, disagreement)]
    parts += ["### Top-1, difference from FP32 in percent points (bold: its interval excludes 0)", matrix(rows, change_of("acc1"))]
    parts += ["### ECE-15, difference from FP32 in percent points (bold: its interval excludes 0)", matrix(rows, change_of("ece15"))]
    parts += [*lessons([row for row in rows if "training" in row]), "### Everything", EXPLAINED]
    for (model, tower), group in groupby(rows, key=lambda row: (row["model"], row["tower"])):
        parts += [f"#### {model}, {tower} tower", table(HEAD, [cells(row) for row in group])]
    parts += ["### How often calibration improves", table(("model", "tower", "bits", "engines", "ECE lower", "ECE higher"), improved(rows))]
    return "\n\n".join(parts)


def matrix(rows: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    """Return what one cell of each engine says: a line per engine, a column per model and tower."""
    columns = list(dict.fromkeys((row["model"], row["tower"]) for row in rows))
    known = {(label(row), row["model"], row["tower"]): cell(row) for row in rows if "paired" in row and row["engine"] != "ort-fp32"}
    engine = {label(row): row["engine"] for row in rows}
    bits = {label(row): row.get("bits", "") for row in rows}
    order = ["", *BITS]
    engines = sorted({name for name, *_ in known}, key=lambda name: (order.index(bits[name]), rank(engine[name]), name))
    lines = [[name, *(known.get((name, *column), "") for column in columns)] for name in engines]
    return table(["engine", *(f"{model}, {tower}" for model, tower in columns)], lines)


def lessons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how each trained tower came on, step by step, on the pairs that were held out: cosine to FP32, and accuracy in percent."""
    parts = []
    for (model, tower), group in groupby(rows, key=lambda row: (row["model"], row["tower"])):
        trained = list(group)
        steps = list(dict.fromkeys(line["step"] for row in trained for line in row["training"]))
        lines = [[label(row), *(lesson(row["training"], step) for step in steps)] for row in trained]
        parts += [
            f"### Training on {model}, {tower} tower: held-out cosine to FP32 (held-out accuracy) after so many steps",
            table(["engine", *steps], lines),
        ]
    return parts


def lesson(training: Iterable[dict[str, str]], step: str) -> str:
    """Return what the held-out pairs showed after a step, empty where nothing was recorded there."""
    for line in training:
        if line["step"] == step:
            right = line["held_out_accuracy"]
            return f"{float(line['held_out_cosine']):.4f}" + (f" ({100 * float(right):.1f})" if right else "")
    return ""


def rank(engine: str) -> int:
    """Return the place of an engine's method among all methods."""
    named = method_of(engine)
    return list(METHODS).index(named[0].name) if named else -1


def disagreement(row: dict[str, Any]) -> str:
    """Return the share of changed answers in percent."""
    return f"{100 * row['paired']['disagreement']:.2f}"


def change_of(figure: str) -> Callable[[dict[str, Any]], str]:
    """Return what gives a figure's difference from FP32 in percent points, bold where its interval excludes 0."""

    def change(row: dict[str, Any]) -> str:
        entry = row["figures"][figure]
        low, high = entry["delta_ci95"]
        return f"**{100 * entry['delta']:+.2f}**" if low > 0 or high < 0 else f"{100 * entry['delta']:+.2f}"

    return change


def cells(row: dict[str, Any]) -> list[str]:
    """Return one engine's cells."""
    figures = [points(row["figures"][name]) for name in ("acc1", "ece15", "signed_gap", "auroc")]
    paired = row.get("paired")
    if paired is None:
        return [label(row), *figures, "", "", ""]
    low, high = paired["disagreement_ci95"]
    agreement = [f"{100 * paired['disagreement']:.2f} [{100 * low:.2f}, {100 * high:.2f}]", f"{100 * paired['flips']:.2f}"]
    return [label(row), *figures, *agreement, f"{paired['cosine_centred_mean']:.4f}"]


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
