"""The bias-corrected and accelerated (BCa) interval of the bootstrap, and the p-value that agrees with it.

It is for smooth metrics: means and AUROC. Of calibration errors it is kept away though their jackknife is cheap: near perfect calibration
their bias is as large as their spread, and the correction for it finds differences between equally calibrated engines (a 95 % interval
that covers 0 in 81 of 100 repetitions, where the percentile interval does in 97; tests/evaluate/test_statistics_coverage.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from clipq.evaluate.metrics.arrays import Float64

_ENDS = np.array([0.025, 0.975])


def acceleration(influence: Sequence[Float64]) -> float:
    """Return how fast the standard error changes with the value: a sixth of the skewness of the jackknife, 0 where nothing varies.

    With U = (n - 1) (mean of the leave-one-out values - leave-one-out value) of each sample,
    a = sum(U^3 / n^3) / (6 sum(U^2 / n^2)^1.5), both sums over all independent sets (Efron & Tibshirani 1993, section 14.3).

    Args:
        influence: U of each independent set of samples: one array, or ID and OOD.

    >>> acceleration([np.array([-1.0, 0.0, 1.0])])
    0.0
    """
    cubes = sum(float((part**3).sum()) / len(part) ** 3 for part in influence)
    squares = sum(float((part**2).sum()) / len(part) ** 2 for part in influence)
    return cubes / (6.0 * squares**1.5) if squares > 0 else 0.0


def bias_correction(draws: Float64, value: float) -> float:
    """Return z0, the normal quantile of the share of resampled values below the value, ties counting half; infinite where it is 0 or 1.

    Values closer than a billionth of the spread are tied: accuracies that are equal as fractions differ in their last bit.

    >>> bias_correction(np.array([1.0, 2.0, 3.0]), 2.0)
    0.0
    """
    tie = 1e-9 * float(np.ptp(draws))
    return float(ndtri((np.count_nonzero(draws < value - tie) + np.count_nonzero(draws <= value + tie)) / (2.0 * len(draws))))


def bca_interval(draws: Float64, value: float, influence: Sequence[Float64]) -> tuple[float, float] | None:
    """Return the 95 % BCa interval (Efron 1987), or None where it is undefined.

    The percentiles Phi(z0 + u / (1 - a u)) with u = z0 + z at z = -1.96 and 1.96 take the place of 2.5 and 97.5 %.
    Undefined: every resampled value lies on one side of the value, or nearly so with a strong skewness (1 - a u <= 0).

    Args:
        draws: ``(resamples,)`` values.
        value: The value on the full sample.
        influence: As for ``acceleration``.

    >>> [round(end) for end in bca_interval(np.arange(1001.0), 500.0, [np.array([-1.0, 0.0, 1.0])])]
    [25, 975]
    """
    z0, a = bias_correction(draws, value), acceleration(influence)
    u = z0 + ndtri(_ENDS)
    if not np.isfinite(z0) or (1.0 - a * u <= 0).any():
        return None
    low, high = np.percentile(draws, 100.0 * ndtr(z0 + u / (1.0 - a * u)))
    return float(low), float(high)


def bca_p_value(deltas: Float64, delta: float, influence: Sequence[Float64]) -> float | None:
    """Return the two-sided p-value of no difference: the level at which the BCa interval just touches 0, or None where it is undefined.

    For a tail of the resampled deltas beyond 0 with the share s, w = Phi^-1(s) becomes Phi((w - z0) / (1 + a (w - z0)) - z0), the
    inverse of the interval's formula; p is twice the smaller tail, and at least what this number of resamples can tell from 0.

    Args:
        deltas: ``(resamples,)`` resampled deltas.
        delta: The delta on the full sample.
        influence: As for ``acceleration``, of the delta.
    """
    z0, a, n = bias_correction(deltas, delta), acceleration(influence), len(deltas)
    below, above = ((np.count_nonzero(side) + 1) / (n + 1) for side in (deltas <= 0, deltas >= 0))
    shift = ndtri(np.clip([below, 1.0 - above], 1.0 / (n + 1), n / (n + 1))) - z0
    if not np.isfinite(z0) or (1.0 + a * shift <= 0).any():
        return None
    low, high = ndtr(shift / (1.0 + a * shift) - z0)
    return float(np.clip(2.0 * min(low, 1.0 - high), 2.0 / (n + 1), 1.0))
