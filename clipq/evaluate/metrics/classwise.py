"""Calibration of every class's probability, not of the top label only."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels, as_probabilities, blocks
from clipq.evaluate.metrics.calibration import BINS, bin_index

SMALL = 0.01  # probabilities above it make ``ece_classwise_above_1``


class ClassBins:
    """What falls into each equal-width bin of each class's probabilities, gathered block by block.

    A row has few probabilities that are not tiny, so only those are binned one by one.

    Attributes:
        n: Number of samples so far.
        gaps: ``(bins, classes)`` sums of (label - probability).
        gaps_above: The same of the probabilities above the threshold alone; 0 without one.
        hits: ``(bins, classes)`` samples of the class.
    """

    def __init__(self, classes: int, bins: int = BINS, threshold: float = 0.0) -> None:
        self.bins, self.threshold, self.n = bins, threshold, 0
        self.gaps: Float64 = np.zeros((bins, classes))
        self.gaps_above: Float64 = np.zeros((bins, classes))
        self.hits: Float64 = np.zeros((bins, classes))
        self._high: Float64 = np.zeros((bins, classes))

    def add(self, probabilities: Array, labels: Int64) -> None:
        """Add a block: probabilities ``(n, classes)``, labels ``(n,)``."""
        lowest = 0.5 / self.bins  # below it a probability is in the lowest bin, whatever rounding does to the edge
        rows, columns = np.nonzero(probabilities > min(self.threshold or lowest, lowest))
        high = probabilities[rows, columns].astype(np.float64)
        place = bin_index(high, self.bins) * self.gaps.shape[1] + columns
        sums = self._sums(place, high)
        self._high += self._sums(place)
        own = probabilities[np.arange(len(labels)), labels]
        hit = bin_index(own, self.bins) * self.gaps.shape[1] + labels
        hits = self._sums(hit)
        if self.threshold:
            self.gaps_above += self._sums(hit[own > self.threshold]) - self._sums(place, np.where(high > self.threshold, high, 0.0))
        sums[0] += probabilities.sum(axis=0, dtype=np.float64) - sums.sum(axis=0)
        self.hits += hits
        self.gaps += hits - sums
        self.n += len(labels)

    def counts(self) -> Float64:
        """Return ``(bins, classes)`` probabilities per bin; what is not in a higher bin is in the lowest."""
        counts = self._high.copy()
        counts[0] = self.n - counts[1:].sum(axis=0)
        return counts

    def value(self) -> float:
        """Return the mean over classes of the sum over bins of |gap| / n, in [0, 2]."""
        return self._mean(self.gaps)

    def value_above(self) -> float:
        """Return the same of the probabilities above the threshold alone."""
        return self._mean(self.gaps_above)

    def _mean(self, gaps: Float64) -> float:
        return float(np.abs(gaps).sum() / (self.n * gaps.shape[1]))

    def _sums(self, place: Int64, weights: Float64 | None = None) -> Float64:
        """Return what falls into each place, ``(bins, classes)``; the number of values without weights."""
        return np.bincount(place, weights, self.gaps.size).astype(np.float64).reshape(self.gaps.shape)


def ece_classwise(probabilities: Array, labels: Array, bins: int = BINS, threshold: float = 0.0) -> float:
    """Return the classwise (static) calibration error: ``1/K sum_k sum_b n_bk/n |acc_bk - p_bk|`` over equal-width bins.

    Kull et al. 2019 (arXiv 1910.12656); Nixon et al. 2019's SCE (arXiv 1904.01685). It goes to 0 as the number of classes K grows, because
    nearly all probabilities are near 0: compare it only at equal K, or leave out probabilities up to ``threshold``, as Nixon et al. do,
    here still divided by all samples and classes. The report has it with 0.01 too, as ``ece_classwise_above_1``.

    Args:
        probabilities: ``(n, classes)``.
        labels: ``(n,)``.
        bins: Number of bins.
        threshold: Only probabilities above it count; 0 counts all.

    >>> round(ece_classwise(np.array([[0.8, 0.2], [0.8, 0.2]]), np.array([0, 1])), 6)
    0.3
    """
    matrix = as_probabilities(probabilities)
    targets = as_labels(labels, "labels", *matrix.shape)
    table = ClassBins(matrix.shape[1], bins, threshold)
    for rows in blocks(*matrix.shape):
        table.add(matrix[rows], targets[rows])
    return table.value_above() if threshold else table.value()
