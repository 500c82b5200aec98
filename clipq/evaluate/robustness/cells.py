"""Which data sets are corrupted copies of which: clean data id -> (corruption, severity) -> data id."""

from __future__ import annotations

import re
from collections.abc import Collection

Cell = tuple[str, int]
_MADE_HERE = re.compile(r"corrupt-synth:(?P<name>\w+)/(?P<severity>[1-5]):(?P<clean>.+)")
_PUBLISHED = re.compile(r"(?P<kind>cifar10|cifar100)-c:.+:(?P<name>\w+)/(?P<severity>[1-5])")


def find_cells(data_ids: Collection[str]) -> dict[str, dict[Cell, str]]:
    """Return the copies of every clean data set that was measured too, each corruption with the same severities.

    Copies made here name their clean set; published CIFAR-C belongs to the one CIFAR that was measured. Severities that some corruption
    lacks are left out: a mean over other severities is another figure.

    >>> find_cells(["synthetic:scenes", "corrupt-synth:fog/3:synthetic:scenes"])
    {'synthetic:scenes': {('fog', 3): 'corrupt-synth:fog/3:synthetic:scenes'}}
    """
    found: dict[str, dict[Cell, str]] = {}
    for data_id in data_ids:
        match = _MADE_HERE.fullmatch(data_id) or _PUBLISHED.fullmatch(data_id)
        if match is None:
            continue
        clean = match["clean"] if "clean" in match.groupdict() else _only(data_ids, match["kind"])
        if clean in data_ids:
            found.setdefault(clean, {})[match["name"], int(match["severity"])] = data_id
    whole = {clean: _rectangular(grid) for clean, grid in found.items()}
    return {clean: grid for clean, grid in whole.items() if grid}


def _only(data_ids: Collection[str], kind: str) -> str:
    """Return the one data set of a kind, or nothing where there is none or a choice."""
    own = [data_id for data_id in data_ids if data_id.startswith(f"{kind}:")]
    return own[0] if len(own) == 1 else ""


def _rectangular(grid: dict[Cell, str]) -> dict[Cell, str]:
    by_name: dict[str, set[int]] = {}
    for name, severity in grid:
        by_name.setdefault(name, set()).add(severity)
    shared = set.intersection(*by_name.values())
    return {cell: data_id for cell, data_id in grid.items() if cell[1] in shared}
