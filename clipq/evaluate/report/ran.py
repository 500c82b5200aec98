"""What really ran, as a report shows it: the shares asked for and run, fused attention, reformats, providers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.report.format import MISSING, quantity
from clipq.evaluate.report.tables import Cell, Table, simulated_note

_COLUMNS: Mapping[str, str] = {
    "Asked for": "Share of the multiply-adds that the graph asks for in the engine's precision; the rest stays wider on purpose.",
    "Ran": "Share of the multiply-adds that really ran in that precision, by the runtime's own account.",
    "All that ran": "Every precision with its share.",
    "Attention": "Fused: the products of attention and the softmax between them run as one kernel and never write the scores to memory.",
    "Reformats": "Kernels that compute nothing: casts, copies, changes of layout or scale. Many of them can eat what INT8 saves.",
    "Where": "Kernels by device or provider, of both towers; small ones that only compute shapes may run on the CPU.",
}


def proof_of(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return an engine's proof, or None where it has none (PyTorch, comparisons, reports of an older form)."""
    layers = entry.get("layers")
    return layers if isinstance(layers, Mapping) and "multiply_adds" in layers else None


def ran_table(report: Mapping[str, Any]) -> Table | None:
    """Return engine x what ran, or None where nothing was looked into."""
    rows = [(engine, _cells(entry["precision"], layers)) for engine, entry in report["engines"].items() if (layers := proof_of(entry))]
    if not rows:
        return None
    towers = " and ".join(
        dict.fromkeys(tower for entry in report["engines"].values() for tower in (proof_of(entry) or {}).get("towers", ()))
    )
    note = f"Figures are of the {towers} tower. PyTorch runs as it is: FP32, TF32 and autocast off."
    return Table("What really ran", list(_COLUMNS), rows, list(_COLUMNS.values()), note)


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Return what has to be said of single engines: fallbacks that were allowed, shares below what was asked for, simulated bits."""
    said = [str(layers["note"]) for entry in report["engines"].values() if (layers := proof_of(entry)) and layers.get("note")]
    simulated = simulated_note(report, report["engines"])
    return [*said, simulated] if simulated else said


def in_words(entry: Mapping[str, Any]) -> str:
    """Return the shares that ran as one phrase, or nothing."""
    layers = proof_of(entry)
    return f"{_shares(layers['multiply_adds'])} of the multiply-adds, by the {layers['source']}" if layers else ""


def _cells(precision: str, layers: Mapping[str, Any]) -> list[Cell]:
    asked, ran = (layers[key].get(precision, 0.0) if layers[key] else None for key in ("asked", "multiply_adds"))
    fell_back = layers.get("fallback", False)
    name = precision.upper()
    return [
        Cell(MISSING if asked is None else f"{quantity(asked, 'fraction')} {name}"),
        Cell(
            "unknown" if ran is None else f"{quantity(ran, 'fraction')} {name}",
            "fell back" if fell_back else "",
            tone="worse" if fell_back else "",
        ),
        Cell(_shares(layers["multiply_adds"]) or "unknown"),
        Cell(layers["attention"]),
        Cell(str(layers["reformats"])),
        Cell(", ".join(f"{count} on {_short(provider)}" for provider, count in layers["providers"].items())),
    ]


def _shares(shares: Mapping[str, float]) -> str:
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{quantity(share, 'fraction')} {precision.upper()}" for precision, share in ordered)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
