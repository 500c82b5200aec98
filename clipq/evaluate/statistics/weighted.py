"""The metrics on resampled data, for many resamples at once: weights ``(n, resamples)`` in, values ``(resamples,)`` out.

Each equals the plain metric on the samples repeated as often as their weights say (tests hold it); nothing loops over samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, Int64
from clipq.evaluate.metrics.calibration import BINS


@dataclass(frozen=True, slots=True)
class Curves:
    """Weights cumulated over ascending confidence, at the ends of tied blocks and from 0: each ``(blocks + 1, resamples)``."""

    mass: Float64
    confidence: Float64
    correct: Float64
    width_edges: Int64

    @property
    def n(self) -> float:
        """Size of a resample."""
        return float(self.mass[-1, 0])

    def ece_and_mce(self) -> tuple[Float64, Float64]:
        """Return the equal-width expected and maximum calibration errors."""
        mass = np.diff(self.mass[self.width_edges], axis=0)
        gaps = np.abs(np.diff((self.correct - self.confidence)[self.width_edges], axis=0))
        return gaps.sum(axis=0) / self.n, np.divide(gaps, mass, out=np.zeros_like(gaps), where=mass > 0).max(axis=0)

    def equal_mass_ece(self) -> tuple[Float64, Float64]:
        """Return the equal-mass calibration error and its debiased L2 form."""
        edges = np.linspace(0.0, self.n, BINS + 1)[1:-1]
        size = self.n / BINS
        hits, values = (means / size for means in self._between(edges))
        squares = ((hits - values) ** 2 - hits * (1.0 - hits) / (size - 1.0)) if size > 1 else np.zeros_like(hits)
        return np.abs(hits - values).mean(axis=0), np.sqrt(np.maximum(0.0, squares.mean(axis=0)))

    def aurc(self, harmonic: Float64) -> Float64:
        """Return the area under the risk-coverage curve; ``harmonic`` holds ``H(0..n)``."""
        block = np.diff(self.mass, axis=0)
        errors = block - np.diff(self.correct, axis=0)
        above = self.n - self.mass  # samples more confident than each point
        errors_above = (self.n - self.correct[-1]) - (self.mass - self.correct)
        table = harmonic[above.astype(np.int64)]
        gained = table[:-1] - table[1:]  # sum of 1/k over the ranks k of the block
        share = np.divide(errors, block, out=np.zeros_like(errors), where=block > 0)
        areas = errors_above[1:] * gained + share * (block - above[1:] * gained)
        return np.asarray(areas.sum(axis=0) / self.n)

    def _between(self, edges: Float64) -> tuple[Float64, Float64]:
        """Return how much ``correct`` and ``confidence`` grow between cumulative masses 0, ``edges`` and n, by linear interpolation."""
        columns = np.arange(self.mass.shape[1])
        low = np.zeros((len(edges), len(columns)), dtype=np.int64)
        high = np.full_like(low, len(self.mass) - 1)
        for _ in range(len(self.mass).bit_length()):  # bisection: mass[low] <= edge < mass[high]
            middle = (low + high) // 2
            reached = self.mass[middle, columns] <= edges[:, None]
            low, high = np.where(reached, middle, low), np.where(reached, high, np.maximum(middle, low + 1))
        start = self.mass[low, columns]
        part = (edges[:, None] - start) / (self.mass[high, columns] - start)
        return tuple(self._growth(curve, low, high, part) for curve in (self.correct, self.confidence))  # type: ignore[return-value]

    @staticmethod
    def _growth(curve: Float64, low: Int64, high: Int64, part: Float64) -> Float64:
        columns = np.arange(curve.shape[1])
        start = curve[low, columns]
        inner = start + part * (curve[high, columns] - start)
        return np.diff(np.concatenate((curve[:1], inner, curve[-1:])), axis=0)


class ConfidenceOrder:
    """Samples sorted by confidence once, so that each chunk of weights needs one gather and three cumulative sums."""

    def __init__(self, confidence: Float64, correct: Array) -> None:
        self._order = np.argsort(confidence, kind="stable")
        self._confidence = confidence[self._order][:, None]
        self._correct = correct[self._order].astype(np.float64)[:, None]
        distinct = np.append(np.diff(self._confidence[:, 0]) > 0, True)
        self._ends = np.flatnonzero(distinct)
        inner = np.searchsorted(self._confidence[self._ends, 0], np.arange(1, BINS) / BINS, side="left")
        self._width_edges = np.concatenate(([0], inner, [len(self._ends)])).astype(np.int64)

    def curves(self, weights: Float64) -> Curves:
        """Return the cumulated curves of a chunk of weights."""
        sorted_weights = weights[self._order]
        mass, confidence, correct = (
            self._cumulated(values) for values in (sorted_weights, sorted_weights * self._confidence, sorted_weights * self._correct)
        )
        return Curves(mass, confidence, correct, self._width_edges)

    def _cumulated(self, values: Float64) -> Float64:
        output = np.zeros((len(self._ends) + 1, values.shape[1]))
        if len(self._ends) == len(values):
            np.cumsum(values, axis=0, out=output[1:])
        else:
            output[1:] = np.cumsum(values, axis=0)[self._ends]
        return output


class LabelOrder:
    """Samples sorted by label once, for the recall of each class."""

    def __init__(self, labels: Int64, correct: Array) -> None:
        self._order = np.argsort(labels, kind="stable")
        self._correct = correct[self._order].astype(np.float64)[:, None]
        self._starts = np.flatnonzero(np.append(True, np.diff(labels[self._order]) > 0))

    def mean_per_class_recall(self, weights: Float64) -> Float64:
        """Return the mean recall over the classes that a resample holds."""
        sorted_weights = weights[self._order]
        counts = np.add.reduceat(sorted_weights, self._starts, axis=0)
        found = np.add.reduceat(sorted_weights * self._correct, self._starts, axis=0)
        recalls = np.divide(found, counts, out=np.zeros_like(found), where=counts > 0)
        return np.asarray(recalls.sum(axis=0) / np.count_nonzero(counts, axis=0))


def optimal_aurc_of(error_rate: Float64, n: int, harmonic: Float64) -> Float64:
    """Return the AURC of the best order for resamples of size ``n`` with these error rates."""
    errors = np.rint(error_rate * n).astype(np.int64)
    right = n - errors
    return np.asarray((errors - right * (harmonic[n] - harmonic[right])) / n)
