"""The spectral diagnosis in a report: which ranks of the embeddings carry the noise, the energy and the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.evaluate.report import svg
from clipq.evaluate.report.format import difference, quantity
from clipq.evaluate.report.spectral_names import SPECTRAL
from clipq.evaluate.report.tables import Cell, Table

Entry = Mapping[str, Any]


def spectral_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return, per data set, the noise by rank, the singular values by rank and the right answers by rank; empty without a diagnosis."""
    return [table for data in _diagnosed(report) for table in _tables(data, _entries(report, data), report["baseline"])]


def spectral_panels(report: Mapping[str, Any]) -> list[str]:
    """Return the signal-to-noise ratio over the ranks as SVG, a panel per data set where any engine differs from the baseline."""
    return [panel for data in _diagnosed(report) if (panel := _panel(data, _entries(report, data)))]


def spectral_keys(report: Mapping[str, Any]) -> set[str]:
    """Return the names of ``SPECTRAL`` that a report shows."""
    entries = [entry for by_data in report.get("spectral", {}).values() for entry in by_data.values()]
    fourier = any("fourier" in entry for entry in entries)
    return (set(SPECTRAL) if fourier else set(SPECTRAL) - {"fourier"}) if entries else set()


def _diagnosed(report: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(data for entries in report.get("spectral", {}).values() for data in entries))


def _entries(report: Mapping[str, Any], data: str) -> dict[str, Entry]:
    return {engine: entries[data] for engine, entries in report["spectral"].items() if data in entries}


def _tables(data: str, entries: Mapping[str, Entry], baseline: str) -> list[Table]:
    base = entries[baseline]
    others = {engine: entry for engine, entry in entries.items() if engine != baseline}
    shares = [quantity(band["energy"], "fraction") for band in base["bands"]]
    hints = [f"{share} of what tells the images apart for {baseline}." for share in shares]
    columns = [_name(band) for band in base["bands"]]
    noise = [(engine, _row(entry, "sqnr_db", "no noise")) for engine, entry in others.items()]
    kept = [(engine, _row(entry, "singular_ratio", "")) for engine, entry in others.items()]
    answers = [(engine, [Cell(quantity(entry["effective_rank"], "number")), *_answers(entry, base)]) for engine, entry in entries.items()]
    rank = SPECTRAL["effective_rank"]
    return [
        *_fourier(data, entries, baseline),
        Table(f"{data}: {SPECTRAL['sqnr_db'].label}", columns, noise, hints, SPECTRAL["sqnr_db"].meaning),
        Table(f"{data}: {SPECTRAL['singular_ratio'].label}", columns, kept, hints, SPECTRAL["singular_ratio"].meaning),
        Table(
            f"{data}: {SPECTRAL['acc1_of_ranks'].label}",
            [rank.label, *columns],
            answers,
            [rank.meaning, *hints],
            SPECTRAL["acc1_of_ranks"].meaning,
        ),
    ]


def _fourier(data: str, entries: Mapping[str, Entry], baseline: str) -> list[Table]:
    """Return the energy of the patch tokens by spatial frequency, of the engines that have them."""
    found = {engine: entry["fourier"] for engine, entry in entries.items() if "fourier" in entry}
    if not found:
        return []
    base = found.get(baseline)
    columns = [f"{radius:g} cycle{'' if radius == 1 else 's'}" for radius in next(iter(found.values()))["radius"]]
    rows = [(engine, _shares(fourier, base if engine != baseline else None)) for engine, fourier in found.items()]
    return [Table(f"{data}: {SPECTRAL['fourier'].label}", columns, rows, [""] * len(columns), SPECTRAL["fourier"].meaning)]


def _shares(fourier: Entry, base: Entry | None) -> list[Cell]:
    before = base["energy"] if base else [None] * len(fourier["energy"])
    return [
        Cell(quantity(share, "fraction"), "" if was is None else difference(share - was, "fraction"), tone="same")
        for share, was in zip(fourier["energy"], before, strict=True)
    ]


def _name(band: Entry) -> str:
    low, high = band["ranks"]
    return f"Ranks {low} to {high - 1}" if high - low > 1 else f"Rank {low}"


def _row(entry: Entry, key: str, without: str) -> list[Cell]:
    return [Cell(without if band[key] is None else quantity(band[key], SPECTRAL[key].unit)) for band in entry["bands"]]


def _answers(entry: Entry, base: Entry) -> list[Cell]:
    same = entry is base
    return [
        Cell(quantity(band["acc1"], "fraction"), "" if same else difference(band["acc1"] - before["acc1"], "fraction"), tone="same")
        for band, before in zip(entry["bands"], base["bands"], strict=True)
    ]


def _panel(data: str, entries: Mapping[str, Entry]) -> str | None:
    lines = {engine: points for engine, entry in entries.items() if (points := _points(entry))}
    if not lines:
        return None
    bands = next(iter(entries.values()))["bands"]
    values = [value for points in lines.values() for _, value, _ in points]
    margin = 0.1 * (max(values) - min(values)) or 1.0
    y = (min(values) - margin, max(values) + margin)
    frame = svg.Frame(58, 34, 380, 220, (-0.4, len(bands) - 0.6), y)
    x_ticks = [(float(number), _ends(band["ranks"])) for number, band in enumerate(bands)]
    parts = [svg.axes(frame, x_ticks, _decibels(svg.nice_ticks(*y, 4)), "ranks, most energy first", "")]
    for number, (engine, points) in enumerate(lines.items()):
        kind = f"series{number % 5 + 1}"
        parts.append(svg.line(frame, [(x, value) for x, value, _ in points], f"curve {kind}"))
        parts += [svg.dot(frame, (x, value), 3, kind, f"{engine}: {hint}") for x, value, hint in points]
    parts += [svg.legend(58 + 190 * (i % 2), 304 + 15 * (i // 2), [(f"series{i % 5 + 1}", engine)]) for i, engine in enumerate(lines)]
    return svg.panel(452, 300 + 15 * ((len(lines) + 1) // 2), f"{SPECTRAL['sqnr_db'].label}: {data}", parts)


def _points(entry: Entry) -> list[tuple[float, float, str]]:
    """Return (number of the band, decibels, words) of every band with noise."""
    return [
        (float(number), band["sqnr_db"], f"{quantity(band['sqnr_db'], 'dB')} in {_name(band).lower()}")
        for number, band in enumerate(entry["bands"])
        if band.get("sqnr_db") is not None
    ]


def _decibels(values: Sequence[float]) -> list[tuple[float, str]]:
    return [(value, f"{value:g} dB".replace("-", "−")) for value in values]


def _ends(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}–{ranks[1] - 1}" if ranks[1] - ranks[0] > 1 else str(ranks[0])
