"""How far apart the calibration of two engines can be on the same samples, free of the chance that hides it in the ECE of each."""

from __future__ import annotations

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, as_confidence
from clipq.evaluate.metrics.calibration import BINS, bin_index

_ONE_SIDED = 1.959964  # normal quantile of 97.5 %: the upper end of a 95 % interval


def calibration_shift(baseline: tuple[Array, Array], engine: tuple[Array, Array]) -> float:
    """Return the upper 95 % end of how much the two ECEs of equal width can differ, 0 or more.

    With ``g_b`` the mean over all samples of (correct - confidence) of those in bin b, 0 for all others, the ECE is ``sum_b |g_b|``.
    So the ECEs differ by at most ``sum_b |g_b(engine) - g_b(baseline)|``, whatever they are (triangle inequality). Each difference is
    one of pairs: an image that both engines answer alike cancels, luck included. Chance only raises its absolute value, so the sum errs
    on the safe side where the ECEs themselves hide a rise: below about 3.5 times the ECE by chance. To the sum is added 1.96 times its
    standard error (the delta method: of ``sum_b sign_b d_b``, d the contributions of one image). Images whose confidence crosses the edge
    of a bin count as moved, which is what the sum consists of where the engine is as well calibrated as the baseline.

    Args:
        baseline: Confidence ``(n,)`` in [0, 1] and whether right, 0 or 1.
        engine: The same of the engine for the same samples.

    Raises:
        DataError: The two are not of the same number of samples.

    >>> calibration_shift((np.array([0.9, 0.5]), np.array([1, 0])), (np.array([0.9, 0.5]), np.array([1, 0])))
    0.0
    """
    first, second = _contributions(*baseline), _contributions(*engine)
    if len(first[0]) != len(second[0]):
        raise DataError("baseline and engine differ in number", found=f"{len(first[0])} and {len(second[0])} samples")
    n = len(first[0])
    moved = sum(sign * np.bincount(place, gap, BINS) for sign, (place, gap) in ((-1, first), (1, second))) / n
    direction = np.sign(moved)
    each = direction[second[0]] * second[1] - direction[first[0]] * first[1]
    return float(np.abs(moved).sum() + _ONE_SIDED * each.std() / np.sqrt(n))


def _contributions(confidence: Array, correct: Array) -> tuple[Array, Float64]:
    values, hits = as_confidence(confidence, correct)
    return bin_index(values), hits - values
