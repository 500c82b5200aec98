"""Temperature scaling: how much of the miscalibration is a mere change of scale?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Bool, Float64, Int64, Matrix, as_labels, as_rows, blocks

FOLD_SEED = 0
LOWEST, HIGHEST = 0.01, 100.0  # temperatures
_STEPS = 60  # bisections of log 10,000 below any tolerance; Newton's method needs about six
_CLOSE = 1e-5  # relative change of a temperature below which the search ends


def fit_temperature(logits: Matrix, labels: Array) -> float:
    """Return the T in [0.01, 100] that minimises the mean NLL of ``softmax(logits / T)``, to three digits.

    Guo et al. 2017 (arXiv 1706.04599). Above 1 the logits are over-confident, below 1 under-confident; below 0.05 means
    that there is no minimum (no errors: sharper is always better), near 100 that the logits say nothing.

    The NLL is convex in 1 / T: Newton's method on it, kept between bounds, walks over all logits about six times, block by block.

    Args:
        logits: ``(n, classes)``; log-probabilities will do.
        labels: ``(n,)``.

    >>> round(fit_temperature(np.array([[2 * np.log(3), 0.0]] * 4), np.array([0, 0, 0, 1])), 2)
    2.0
    """
    matrix = as_rows(logits, "logits")
    targets = as_labels(labels, "labels", *matrix.shape)
    return _fit(matrix, targets, np.ones((1, len(matrix)), dtype=np.bool_))[0]


def has_minimum(temperature: float) -> bool:
    """Tell whether a fitted temperature is a minimum, not the end of the range that was searched.

    >>> has_minimum(1.7), has_minimum(0.01)
    (True, False)
    """
    return 0.05 < temperature < 95.0


def cross_fitted_confidence(logits: Matrix, labels: Array) -> tuple[Float64, float]:
    """Return the confidence of every sample after temperature scaling, and the temperature.

    Two random halves of fixed seed: each is scaled by the temperature fitted on the other, so no sample is judged by a temperature
    it helped to choose.

    Returns:
        Confidences ``(n,)``, and the geometric mean of the two temperatures.
    """
    matrix = as_rows(logits, "logits")
    targets = as_labels(labels, "labels", *matrix.shape)
    in_first = np.zeros(len(matrix), dtype=np.bool_)
    in_first[halves(len(matrix))[0]] = True
    first, second = _fit(matrix, targets, np.stack([in_first, ~in_first]))
    confidence = _confidence(matrix, np.where(in_first, second, first))
    return confidence, math.exp((math.log(first) + math.log(second)) / 2)


def halves(n: int) -> tuple[Int64, Int64]:
    """Return the indices of the two random halves of ``n`` samples, the same for every engine, each in ascending order."""
    order = np.random.default_rng(FOLD_SEED).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


@dataclass(slots=True)
class _Search:
    """Where the slope of the mean NLL over ``beta = 1 / T``, which rises with beta, crosses 0."""

    beta: float = 1.0
    low: float = 1.0 / HIGHEST
    high: float = 1.0 / LOWEST
    low_seen: bool = False
    high_seen: bool = False
    done: bool = False

    def step(self, slope: float, curvature: float) -> None:
        """Take the slope and the curvature at ``beta`` and move on."""
        if slope > 0:
            self.high, self.high_seen = self.beta, True
        else:  # 0 where nothing is wrong and nothing can be surer: sharper never hurts
            self.low, self.low_seen = self.beta, True
        newton = self.beta - slope / curvature if curvature > 0 else math.inf if slope <= 0 else -math.inf
        following = newton if self.low < newton < self.high else self._inside(newton)
        self.done = abs(following / self.beta - 1.0) < _CLOSE
        self.beta = following

    def _inside(self, newton: float) -> float:
        """Return the end that Newton's method is beyond where it was never seen, else the middle in logarithms."""
        if newton >= self.high and not self.high_seen:
            return self.high
        if newton <= self.low and not self.low_seen:
            return self.low
        return math.sqrt(self.low * self.high)


def _fit(matrix: Matrix, targets: Int64, folds: Bool) -> list[float]:
    """Return the best temperature of each fold, ``(folds, n)`` flags of which every sample has one; all are searched in the same passes."""
    searches = [_Search() for _ in folds]
    fold_of = folds.argmax(axis=0)
    sizes = folds.sum(axis=1)
    for _ in range(_STEPS):
        slopes, curvatures = _derivatives(matrix, targets, fold_of, np.array([search.beta for search in searches]))
        for search, size, slope, curvature in zip(searches, sizes, slopes, curvatures, strict=True):
            if not search.done:
                search.step(float(slope / size), float(curvature / size))
        if all(search.done for search in searches):
            break
    return [1.0 / search.beta for search in searches]


def _derivatives(matrix: Matrix, targets: Int64, fold_of: Int64, betas: Float64) -> tuple[Float64, Float64]:
    """Return, summed per fold, the first and second derivative of each sample's NLL over its fold's beta: mean and variance of logits."""
    slopes, curvatures = np.zeros(len(betas)), np.zeros(len(betas))
    for rows in blocks(*matrix.shape):
        shifted = _shifted(matrix[rows])
        own = shifted[np.arange(len(shifted)), targets[rows]]
        weights = shifted * betas[fold_of[rows], None].astype(np.float32)
        np.exp(weights, out=weights)
        total = weights.sum(axis=1, dtype=np.float64)
        weights *= shifted
        mean = weights.sum(axis=1, dtype=np.float64) / total
        square = np.einsum("ij,ij->i", weights, shifted) / total
        slopes += np.bincount(fold_of[rows], weights=mean - own, minlength=len(betas))
        curvatures += np.bincount(fold_of[rows], weights=np.maximum(square - mean**2, 0.0), minlength=len(betas))
    return slopes, curvatures


def _confidence(matrix: Matrix, temperatures: Float64) -> Float64:
    parts = (np.exp(_shifted(matrix[rows]) / temperatures[rows, None]).sum(axis=1, dtype=np.float64) for rows in blocks(*matrix.shape))
    return 1.0 / np.concatenate(list(parts))


def _shifted(block: Array) -> Array:
    """Return the block minus its row maxima in float32: values at most 0, of which only those near 0 matter."""
    return np.asarray(block - block.max(axis=1, keepdims=True), dtype=np.float32)
