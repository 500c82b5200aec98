"""Isotonic regression: how much of the miscalibration would any monotone map of the confidence mend?"""

from __future__ import annotations

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, as_confidence
from clipq.evaluate.metrics.temperature import halves


def fit_isotonic(confidence: Array, correct: Array) -> tuple[Float64, Float64]:
    """Return the non-decreasing accuracy with the least squared error, as ``(knots, accuracy)`` for ``np.interp``.

    Zadrozny & Elkan 2002, by the pool-adjacent-violators algorithm; tied confidences are averaged first. Between two knots
    the accuracy is interpolated, outside it stays that of the nearest knot, as in scikit-learn's ``IsotonicRegression``.

    Args:
        confidence: ``(n,)`` in [0, 1].
        correct: ``(n,)`` 0 or 1.

    Returns:
        The distinct confidences, ascending, and the accuracy at each, in [0, 1].

    >>> fit_isotonic(np.array([0.2, 0.6, 0.9]), np.array([0, 1, 0]))[1].tolist()
    [0.0, 0.5, 0.5]
    """
    from scipy.optimize import isotonic_regression

    values, hits = as_confidence(confidence, correct)
    knots, block, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.bincount(block, weights=hits) / counts
    fitted = isotonic_regression(means, weights=counts)
    return knots, np.clip(np.asarray(fitted.x, dtype=np.float64), 0.0, 1.0)


def cross_fitted_isotonic(confidence: Array, correct: Array) -> Float64:
    """Return the confidence of every sample after isotonic regression, ``(n,)`` in [0, 1].

    The two halves of ``cross_fitted_confidence``: each is mapped by the regression on the other, so no sample is judged by a map it
    helped to choose. Which sample is in which half depends on the order of the samples.

    Raises:
        DataError: There are fewer than two samples, or the arrays are not what they should be.

    >>> cross_fitted_isotonic(np.array([0.9, 0.9]), np.array([1, 1])).tolist()
    [1.0, 1.0]
    """
    values, hits = as_confidence(confidence, correct)
    if len(values) < 2:
        raise DataError("too few samples for a cross-fitted isotonic regression", found=len(values), expected="at least 2")
    mapped = np.empty(len(values))
    first, second = halves(len(values))
    for fitted, held_out in ((first, second), (second, first)):
        mapped[held_out] = np.interp(values[held_out], *fit_isotonic(values[fitted], hits[fitted]))
    return mapped
