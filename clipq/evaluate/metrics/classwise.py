"""Calibration of every class's probability, not of the top label only."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels, as_probabilities, blocks
from clipq.evaluate.metrics.calibration import BINS, bin_index


class ClassBins:
    """What falls into each equal-width bin of each class's probabilities, gathered block by block.

    A row has at most ``bins`` probabilities outside the lowest bin, so only those are binned one by one.

    Attributes:
        n: Number of samples so far.
        gaps: ``(bins, classes)`` sums of (label - probability).
        hits: ``(bins, classes)`` samples of the class.
    """

    def __init__(self, classes: int, bins: int = BINS, threshold: float = 0.0) -> None:
        self.bins, self.threshold, self.n = bins, threshold, 0
        self.gaps: Float64 = np.zeros((bins, classes))
        self.hits: Float64 = np.zeros((bins, classes))
        self._high: Float64 = np.zeros((bins, classes))

    def add(self, probabilities: Array, labels: Int64) -> None:
        """Add a block: probabilities ``(n, classes)``, labels ``(n,)``."""
        kept = probabilities if self.threshold == 0.0 else np.where(probabilities > self.threshold, probabilities, 0.0)
        rows, columns = np.nonzero(kept >= 1.0 / self.bins)
        high = kept[rows, columns].astype(np.float64)
        flat = bin_index(high, self.bins) * self.gaps.shape[1] + columns
        sums = np.bincount(flat, weights=high, minlength=self.gaps.size).astype(np.float64).reshape(self.gaps.shape)  # int64 when empty
        self._high += np.bincount(flat, minlength=self.gaps.size).reshape(self.gaps.shape)
        sums[0] += kept.sum(axis=0, dtype=np.float64) - sums.sum(axis=0)
        own = kept[np.arange(len(labels)), labels]
        shown = own > self.threshold if self.threshold else np.ones(len(own), dtype=bool)
        hit = bin_index(own[shown], self.bins) * self.gaps.shape[1] + labels[shown]
        hits = np.bincount(hit, minlength=self.gaps.size).reshape(self.gaps.shape)
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
        return float(np.abs(self.gaps).sum() / (self.n * self.gaps.shape[1]))


def ece_classwise(probabilities: Array, labels: Array, bins: int = BINS, threshold: float = 0.0) -> float:
    """Return the classwise (static) calibration error: ``1/K sum_k sum_b n_bk/n |acc_bk - p_bk|`` over equal-width bins.

    Kull et al. 2019 (arXiv 1910.12656); Nixon et al. 2019's SCE (arXiv 1904.01685). It goes to 0 as the number of classes K grows, because
    nearly all probabilities are near 0: compare it only at equal K, or leave out probabilities up to ``threshold`` (0.01 is usual).

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
    return table.value()
