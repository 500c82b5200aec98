"""Holm's correction over the engines of a report: whoever compares many engines finds differences by chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clipq.evaluate.statistics.significance import holm

Path = tuple[str, ...]
FAMILY = "all engines that were compared, for each data set (or pair and score) and metric by itself"


def add_holm(part: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``p_value_holm`` beside the ``p_value`` of every measurement of ``report["results"]`` or ``report["ood"]``.

    A family is what stands in the same place of every engine: one metric on one data set, or of one score on one ``ID|OOD``. Metrics and
    data sets are not corrected for each other: they answer different questions, and those of one engine are strongly dependent.

    Args:
        part: ENGINE -> nested names -> measurement, changed in place; the baseline's measurements have no p-value and keep none.
    """
    families: dict[Path, dict[str, dict[str, Any]]] = {}
    for engine, tree in part.items():
        for path, measurement in _measurements(tree, ()):
            families.setdefault(path, {})[engine] = measurement
    for family in families.values():
        corrected = holm({engine: entry["p_value"] for engine, entry in family.items() if entry["p_value"] is not None})
        for engine, entry in family.items():
            entry["p_value_holm"] = corrected.get(engine)


def _measurements(tree: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for name, below in tree.items():
        if "p_value" in below:
            yield (*path, name), below
        else:
            yield from _measurements(below, (*path, name))
