"""The metrics on one resample: how often each sample was drawn in, values out.

Each equals the plain metric on the samples repeated that often (tests hold it); what does not depend on the draw is computed once.
Counts stay integers, whose cumulative sums are several times faster than those of floats, and exact.
"""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Bool, Float64, Int64
from clipq.evaluate.metrics.calibration import BINS, bin_index
from clipq.evaluate.metrics.selective import harmonic_numbers


class WidthBins:
    """Equal-width calibration errors."""

    def __init__(self, confidence: Float64, correct: Bool) -> None:
        self._bins, self._gap = bin_index(confidence), correct - confidence

    def ece(self, counts: Int64) -> float:
        """Return the expected calibration error."""
        return float(np.abs(self._gaps(counts)).sum() / len(counts))

    def mce(self, counts: Int64) -> float:
        """Return the maximum calibration error."""
        mass = np.bincount(self._bins, weights=counts, minlength=BINS)
        filled = mass > 0
        return float(np.abs(self._gaps(counts)[filled] / mass[filled]).max())

    def _gaps(self, counts: Int64) -> Float64:
        return np.asarray(np.bincount(self._bins, weights=counts * self._gap, minlength=BINS), dtype=np.float64)


class ClassRecall:
    """Mean recall over the classes that a resample holds."""

    def __init__(self, labels: Int64, correct: Bool) -> None:
        self._labels, self._correct = labels, correct.astype(np.int64)

    def mean(self, counts: Int64) -> float:
        """Return the mean per-class recall."""
        drawn = np.bincount(self._labels, weights=counts)
        found = np.bincount(self._labels, weights=counts * self._correct)
        return float((found[drawn > 0] / drawn[drawn > 0]).mean())


class ConfidenceOrder:
    """Metrics of samples sorted by confidence: equal-mass calibration errors and AURC; tied confidences form one block."""

    def __init__(self, confidence: Float64, correct: Bool) -> None:
        self._n = len(confidence)
        self._order = np.argsort(confidence, kind="stable")
        self._correct = correct[self._order].astype(np.int64)
        self._ends = _last_of_ties(confidence[self._order])
        self._confidence = confidence[self._order][self._ends]
        self._harmonic = harmonic_numbers(self._n)

    def metrics(self, counts: Int64) -> dict[str, float]:
        """Return ``ece_em15``, ``ece_debiased``, ``aurc`` and ``eaurc``."""
        drawn = counts[self._order]
        mass, correct = self._cumulated(drawn), self._cumulated(drawn * self._correct)
        aurc = self._aurc(mass, correct)
        em15, debiased = self._equal_mass(mass, correct)
        return {"ece_em15": em15, "ece_debiased": debiased, "aurc": aurc, "eaurc": aurc - self._optimal_aurc(int(correct[-1]))}

    def _cumulated(self, drawn: Int64) -> Int64:
        output = np.zeros(len(self._ends) + 1, dtype=np.int64)
        if len(self._ends) == len(drawn):
            np.cumsum(drawn, out=output[1:])
        else:
            output[1:] = np.cumsum(drawn)[self._ends]
        return output

    def _equal_mass(self, mass: Int64, correct: Int64) -> tuple[float, float]:
        size = self._n / BINS
        edges = np.linspace(0.0, self._n, BINS + 1)[1:-1]
        cut = np.searchsorted(mass, edges, side="right") - 1  # the block that each edge falls into
        block = mass[cut + 1] - mass[cut]
        part = (edges - mass[cut]) / block
        hits = _between(correct[cut] + part * (correct[cut + 1] - correct[cut]), correct[-1]) / size
        confidence_sum = _sums_before(np.diff(mass) * self._confidence, cut)
        values = _between(confidence_sum[:-1] + part * block * self._confidence[cut], confidence_sum[-1]) / size
        squares = (hits - values) ** 2 - hits * (1.0 - hits) / (size - 1.0) if size > 1 else np.zeros(BINS)
        return float(np.abs(hits - values).mean()), float(np.sqrt(max(0.0, squares.mean())))

    def _aurc(self, mass: Int64, correct: Int64) -> float:
        block = np.diff(mass)
        errors = block - np.diff(correct)
        above = self._n - mass  # samples more confident than each point
        errors_above = above - (correct[-1] - correct)
        table = self._harmonic[above]
        gained = table[:-1] - table[1:]  # sum of 1/k over the ranks k of the block
        share = errors / np.maximum(block, 1)
        # Over a block, sum of (errors_above + share * (k - above)) / k = gained * (errors_above - share * above) + errors.
        return float((np.einsum("i,i->", gained, errors_above[1:] - share * above[1:]) + errors.sum()) / self._n)

    def _optimal_aurc(self, right: int) -> float:
        errors = self._n - right
        return float((errors - right * (self._harmonic[-1] - self._harmonic[right])) / self._n)


def _last_of_ties(ordered: Float64) -> Int64:
    return np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)


def _between(inner: Array, total: float) -> Float64:
    """Return the growth of a cumulative sum from 0 over its values at the inner edges to its total."""
    return np.diff(np.concatenate(([0.0], inner, [total])))


def _sums_before(values: Float64, cut: Int64) -> Float64:
    """Return the sum of ``values[:c]`` for each ascending c of ``cut``, and the sum of all."""
    starts = np.concatenate(([0], cut))
    sums = np.add.reduceat(values, starts)
    sums[:-1][starts[1:] == starts[:-1]] = 0.0  # reduceat gives the element itself where a segment is empty
    return np.cumsum(sums)
