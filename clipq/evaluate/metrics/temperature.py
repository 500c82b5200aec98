"""Temperature scaling: how much of the miscalibration is a mere change of scale?"""

from __future__ import annotations

import math

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels, as_matrix, blocks

FOLD_SEED = 0


def fit_temperature(logits: Array, labels: Array) -> float:
    """Return the T in [0.01, 100] that minimises the mean NLL of ``softmax(logits / T)``, to three digits.

    Guo et al. 2017 (arXiv 1706.04599). Above 1 the logits are over-confident, below 1 under-confident; below 0.05 means
    that there is no minimum (no errors: sharper is always better), near 100 that the logits say nothing.

    Args:
        logits: ``(n, classes)``; log-probabilities will do.
        labels: ``(n,)``.

    >>> round(fit_temperature(np.array([[2 * np.log(3), 0.0]] * 4), np.array([0, 0, 0, 1])), 2)
    2.0
    """
    matrix = as_matrix(logits, "logits")
    return _fit(matrix, as_labels(labels, "labels", *matrix.shape), np.arange(len(matrix)))


def has_minimum(temperature: float) -> bool:
    """Tell whether a fitted temperature is a minimum, not the end of the range that was searched.

    >>> has_minimum(1.7), has_minimum(0.01)
    (True, False)
    """
    return 0.05 < temperature < 95.0


def cross_fitted_confidence(logits: Array, labels: Array) -> tuple[Float64, float]:
    """Return the confidence of every sample after temperature scaling, and the temperature.

    Two random halves of fixed seed: each is scaled by the temperature fitted on the other, so no sample is judged by a temperature
    it helped to choose.

    Returns:
        Confidences ``(n,)``, and the geometric mean of the two temperatures.
    """
    matrix = as_matrix(logits, "logits")
    targets = as_labels(labels, "labels", *matrix.shape)
    first, second = halves(len(matrix))
    confidence = np.empty(len(matrix))
    logs = 0.0
    for fitted, held_out in ((first, second), (second, first)):
        temperature = _fit(matrix, targets, fitted)
        confidence[held_out] = _confidence(matrix, held_out, temperature)
        logs += math.log(temperature) / 2
    return confidence, math.exp(logs)


def halves(n: int) -> tuple[Int64, Int64]:
    """Return the indices of the two random halves of ``n`` samples, the same for every engine, each in ascending order."""
    order = np.random.default_rng(FOLD_SEED).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def _fit(matrix: Array, targets: Int64, rows: Int64) -> float:
    from scipy.optimize import minimize_scalar

    def mean_nll(log_temperature: float) -> float:
        beta = math.exp(-log_temperature)
        total = 0.0
        for part in blocks(len(rows), matrix.shape[1]):
            scaled = _shifted(matrix[rows[part]]) * np.float32(beta)
            own = scaled[np.arange(len(scaled)), targets[rows[part]]]
            total += float(np.sum(np.log(np.exp(scaled).sum(axis=1, dtype=np.float64)) - own))
        return total / len(rows)

    limit = math.log(100.0)
    result = minimize_scalar(mean_nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(result.x))


def _confidence(matrix: Array, rows: Int64, temperature: float) -> Float64:
    parts = (
        np.exp(_shifted(matrix[rows[part]]) / temperature).sum(axis=1, dtype=np.float64) for part in blocks(len(rows), matrix.shape[1])
    )
    return 1.0 / np.concatenate(list(parts))


def _shifted(block: Array) -> Array:
    """Return the block minus its row maxima in float32: values at most 0, of which only those near 0 matter."""
    return np.asarray(block - block.max(axis=1, keepdims=True), dtype=np.float32)
