"""The mean of OOD detection over several foreign sets, with an interval: the sets share their ID images and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Float64
from clipq.evaluate.statistics.bootstrap import Resampled


def mean_of_sets(sets: Sequence[Resampled]) -> Resampled:
    """Return the mean of every metric over OOD sets, each set counting alike however many images it has (OpenOOD v1.5, arXiv 2306.09301).

    A resample of the mean is the mean of the sets' values in one resample: the ID images are drawn once for all sets, the images of each
    set by themselves. What a sample adds to the mean AUROC follows: an ID image the mean of what it adds to each, a foreign image its
    share of one set.

    Args:
        sets: One score of one engine, ``resample_ood`` on each set, with the same ID images, resamples and seed, and a stream per set.

    Raises:
        DataError: There is no set, they do not share their ID images, or two were drawn alike.
    """
    if not sets:
        raise DataError("there is no OOD set to average over", expected="at least one")
    shared = {(part.key[0], *part.key[2:4]) for part in sets}
    streams = {part.key[4] for part in sets}
    if len(shared) != 1 or len(streams) != len(sets):
        raise DataError(
            "OOD sets cannot be averaged",
            found=f"ID images, OOD images, resamples, seed, stream {[part.key for part in sets]}",
            expected="the same ID images, resamples and seed, and a stream of its own for each",
        )
    values = {name: float(np.mean([part.values[name] for part in sets])) for name in _in_all([part.values for part in sets])}
    draws = {name: np.mean([part.draws[name] for part in sets], axis=0) for name in _in_all([part.draws for part in sets])}
    influence = {name: _influence([part.influence[name] for part in sets]) for name in _in_all([part.influence for part in sets])}
    n_id = int(sets[0].key[0])
    key = tuple(value for part in sets for value in part.key)
    return Resampled(values, draws, n_id + sum(part.n - n_id for part in sets), key, influence=influence)


def _influence(sides: Sequence[tuple[Float64, ...]]) -> tuple[Float64, ...]:
    """Return what the ID images add, then what the images of each OOD set add, to the mean."""
    return (np.mean([inside for inside, _ in sides], axis=0), *(outside / len(sides) for _, outside in sides))


def _in_all(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that every table has, in the order of the first."""
    first, *others = tables
    return [name for name in first if all(name in other for other in others)]
