"""The axis of spurious correlation: how much more is lost where a cue that usually goes with the class does not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from clipq.evaluate.metrics.arrays import Bool, Float64, Int64
from clipq.evaluate.metrics.robustness import relative_loss, relative_spurious_gap
from clipq.evaluate.robustness.measured import Row, TwoSets, entries
from clipq.evaluate.statistics.bootstrap import resample_counts

AGAINST = ("relative_loss_common", "relative_loss_counter", "vuln_add")
MOST_CLASSES = 10  # beyond these the worst group is the one with the worst luck


def spurious_entry(
    engine: TwoSets, baseline: TwoSets | None, worst: Row | None = None, baseline_worst: Row | None = None
) -> dict[str, Any]:
    """Return METRIC -> measurement of one engine on one pair of groups.

    Args:
        engine: The common group first, then the counter group.
        baseline: The baseline on the same images; None for the baseline itself.
        worst: Accuracy of the engine in its worst group of class and cue, where that means something.
        baseline_worst: The same of the baseline.
    """
    own = _rows(engine, worst)
    if baseline is None:
        return entries(own, None, engine.n)
    lost_common = relative_loss(baseline.first.row, engine.first.row)
    lost_counter = relative_loss(baseline.second.row, engine.second.row)
    own |= {"relative_loss_common": lost_common, "relative_loss_counter": lost_counter, "vuln_add": lost_counter - lost_common}
    return entries(own, _rows(baseline, baseline_worst), engine.n, AGAINST)


def class_rows(labels: Int64, correct: Bool, *, resamples: int, seed: int) -> Float64:
    """Return the accuracy of each class that occurs, on all images and on every resample: ``(1 + resamples, classes)``.

    The resamples are those of the accuracies of the same images; a class that one of them lacks is NaN there.

    Args:
        labels: ``(n,)``.
        correct: ``(n,)``.
        resamples: How many.
        seed: Theirs.
    """
    _, classes = np.unique(labels, return_inverse=True)
    rows = np.full((1 + resamples, int(classes.max()) + 1), np.nan)
    counts = chain([np.ones(len(labels), np.int64)], resample_counts(len(labels), resamples, seed))
    for row, drawn in zip(rows, counts, strict=True):
        images = np.bincount(classes, drawn, len(row))
        np.divide(np.bincount(classes, drawn * correct, len(row)), images, out=row, where=images > 0)
    return rows


def worst_group(groups: Sequence[Float64]) -> Row:
    """Return the lowest accuracy of any class in any group, ``(1 + resamples,)``, from ``class_rows`` of each group.

    The lowest of several is too low on few images, and lower still in every resample (Sagawa et al. 2020 for the figure).
    """
    first, *others = groups
    moved = [np.concatenate((rows[:1], np.roll(rows[1:], 1, axis=0))) for rows in others]  # as in ``TwoSets``
    lowest: Row = np.nanmin(np.concatenate([first, *moved], axis=1), axis=1)
    return lowest


def _rows(sets: TwoSets, worst: Row | None) -> dict[str, Row]:
    rows = {"rsg": relative_spurious_gap(sets.first.row, sets.second.row)}
    return rows if worst is None else {**rows, "worst_group": worst}
