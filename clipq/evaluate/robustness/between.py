"""The axes between two stored reports: the pairs that both have, computed anew from the samples of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.evaluate.robustness.measured import Accuracy, Row, TwoSets
from clipq.evaluate.robustness.pairs import scheme_of
from clipq.evaluate.robustness.shift import LINE, shift_entry
from clipq.evaluate.robustness.spurious import class_rows, spurious_entry, worst_group

Columns = Mapping[str, npt.NDArray[Any]]
SameImages = Callable[[str], tuple[Columns, Columns] | None]


def between_axes(part: Mapping[str, Mapping[str, Any]], same_images: SameImages, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Return axis -> pair -> METRIC -> measurement of the second side, compared with the first.

    Errors on corrupted copies are left out: no report has their samples.

    Args:
        part: The axes of the second side's report.
        same_images: Data id -> rows of the first and of the second side in one order, or None where the images differ.
        resamples: Bootstrap resamples.
        seed: Theirs.
    """
    found: dict[str, dict[str, Any]] = {}
    for axis, entries in part.items():
        for key, entry in entries.items():
            rows = [same_images(data) for data in key.split("|")] if "|" in key else [None]
            if None not in rows:
                first, second = ([pair[side] for pair in rows if pair] for side in (0, 1))
                made = _spurious if axis == "spurious" else _shift
                found.setdefault(axis, {})[key] = made(key, entry, _Side(first, resamples, seed), _Side(second, resamples, seed))
    return found


class _Side:
    """One side's answers on both data sets of a pair."""

    def __init__(self, rows: list[Columns], resamples: int, seed: int) -> None:
        self._rows = rows
        self._resampling: dict[str, int] = {"resamples": resamples, "seed": seed}

    def both(self) -> TwoSets:
        first, second = (Accuracy.of(_correct(rows), **self._resampling) for rows in self._rows)
        return TwoSets.of(first, second)

    def worst(self) -> Row:
        return worst_group([class_rows(rows["label"].astype(np.int64), _correct(rows), **self._resampling) for rows in self._rows])


def _correct(rows: Columns) -> npt.NDArray[np.bool_]:
    return np.asarray(rows["prediction"] == rows["label"], np.bool_)


def _shift(key: str, entry: Mapping[str, Any], first: _Side, second: _Side) -> dict[str, Any]:
    return shift_entry(second.both(), first.both(), scheme_of(key.split("|")[1]) if LINE in entry else "")


def _spurious(_key: str, entry: Mapping[str, Any], first: _Side, second: _Side) -> dict[str, Any]:
    worst = (second.worst(), first.worst()) if "worst_group" in entry else (None, None)
    return spurious_entry(second.both(), first.both(), *worst)
