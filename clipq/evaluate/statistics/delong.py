"""DeLong's test: the difference of two AUROCs on the same samples, by its variance instead of by resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, as_vector


def placements(id_scores: Array, ood_scores: Array) -> tuple[Float64, Float64]:
    """Return how each sample stands among those of the other side, each in [0, 1]; the mean of either is the AUROC.

    Of an ID sample the share of OOD scores above it, of an OOD sample the share of ID scores below it, ties counting half: the structural
    components V01 and V10 of DeLong, DeLong & Clarke-Pearson 1988. Found by ranks in O(n log n), as in Sun & Xu 2014: a mid-rank among
    all scores less the mid-rank among one's own is the number of scores of the other side below.

    Args:
        id_scores: ``(n_id,)``, higher = more OOD.
        ood_scores: ``(n_ood,)``.

    Returns:
        ``(n_id,)`` and ``(n_ood,)``.

    >>> [side.tolist() for side in placements(np.array([0.0, 1.0]), np.array([1.0, 2.0]))]
    [[1.0, 0.75], [0.75, 1.0]]
    """
    inside, outside = as_vector(id_scores, "ID scores"), as_vector(ood_scores, "OOD scores")
    return 1.0 - _share_below(outside, inside), _share_below(inside, outside)


def delong(baseline: tuple[Array, Array], engine: tuple[Array, Array]) -> float:
    """Return the two-sided p-value that two scores on the same samples have the same AUROC (DeLong, DeLong & Clarke-Pearson 1988).

    z = (AUROC_engine - AUROC_baseline) / sqrt(var(d_ID) / n_ID + var(d_OOD) / n_OOD), d the differences of the placements, is compared
    with the normal distribution.

    Args:
        baseline: ``(id_scores, ood_scores)``, higher = more OOD.
        engine: The same of the engine, for the same samples in the same order.

    Raises:
        DataError: The numbers of samples differ, or a score is not finite.

    >>> same = np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    >>> delong(same, same)
    1.0
    """
    before, after = placements(*baseline), placements(*engine)
    if [len(side) for side in before] != [len(side) for side in after]:
        raise DataError(
            "baseline and engine differ in number of samples",
            found=f"{len(before[0])} and {len(after[0])} ID, {len(before[1])} and {len(after[1])} OOD",
        )
    differences = [new - old for old, new in zip(before, after, strict=True)]
    return delong_p_value(float(differences[0].mean()), differences)


def delong_p_value(delta: float, differences: Sequence[Float64]) -> float:
    """Return the two-sided p-value of a difference of AUROCs from the differences of the placements.

    One sample on a side tells nothing of the variance: 1. A difference without any variance (one engine separates all, the other ties
    all) has p = 0.

    Args:
        delta: The difference.
        differences: Engine minus baseline, ``(n_id,)`` and ``(n_ood,)``; a constant added to a side changes nothing.
    """
    if delta == 0.0 or min(len(side) for side in differences) < 2:
        return 1.0
    error = math.sqrt(sum(float(side.var(ddof=1)) / len(side) for side in differences))
    return 2.0 * float(ndtr(-abs(delta) / error)) if error > 0 else 0.0


def _share_below(others: Float64, scores: Float64) -> Float64:
    ordered = np.sort(others)
    rank = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return np.asarray(rank / (2.0 * len(ordered)), dtype=np.float64)
