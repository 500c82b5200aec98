"""The metrics on one resample: how often each sample was drawn in, values out.

Each equals the plain metric on the samples repeated that often (tests hold it); what does not depend on the draw is computed once.
Counts stay integers, whose cumulative sums are several times faster than those of floats, and exact.
"""

from __future__ import annotations

import math

import numpy as np

from clipq.evaluate.metrics.arrays import Bool, Float64, Int64
from clipq.evaluate.metrics.calibration import BINS, bin_index, rms_edges
from clipq.evaluate.metrics.selective import harmonic_numbers

RISK_AT = (80, 90, 95)  # per cent of coverage
COVERAGE_AT_RISK = (1, 5)  # per cent of risk


class WidthBins:
    """Equal-width calibration errors."""

    def __init__(self, confidence: Float64, correct: Bool) -> None:
        self._bins, self._gap = bin_index(confidence), correct - confidence

    def ece(self, counts: Int64) -> float:
        """Return the expected calibration error."""
        return float(np.abs(self._gaps(counts)).sum() / len(counts))

    def metrics(self, counts: Int64) -> dict[str, float]:
        """Return ``ece15`` and ``mce``, the maximum calibration error."""
        gaps = np.abs(self._gaps(counts))
        mass = np.bincount(self._bins, weights=counts, minlength=BINS)
        return {"ece15": float(gaps.sum() / len(counts)), "mce": float((gaps / np.maximum(mass, 1)).max())}

    def _gaps(self, counts: Int64) -> Float64:
        return np.asarray(np.bincount(self._bins, weights=counts * self._gap, minlength=BINS), dtype=np.float64)


class ClassRecall:
    """Mean recall over the classes that a resample holds."""

    def __init__(self, labels: Int64, correct: Bool) -> None:
        self._labels, self._correct = np.unique(labels, return_inverse=True)[1], correct.astype(np.int64)

    def mean(self, counts: Int64) -> float:
        """Return the mean per-class recall."""
        drawn = np.bincount(self._labels, weights=counts)
        found = np.bincount(self._labels, weights=counts * self._correct)
        return float((found[drawn > 0] / drawn[drawn > 0]).mean())


class ConfidenceOrder:
    """Metrics of samples sorted by confidence: equal-mass calibration errors and risk over coverage; tied confidences form one block."""

    NAMES = (
        "ece_em15",
        "ece_debiased",
        "rmsce",
        "aurc",
        "eaurc",
        "augrc",
        *(f"coverage_at_risk_{share}" for share in COVERAGE_AT_RISK),
        *(f"risk_at_{share}" for share in RISK_AT),
    )

    def __init__(self, confidence: Float64, correct: Bool) -> None:
        self._n = len(confidence)
        self._order = np.argsort(confidence, kind="stable")
        self._correct = correct[self._order].astype(np.int64)
        self._ends = _last_of_ties(confidence[self._order])
        self._confidence = confidence[self._order][self._ends]
        self._harmonic = harmonic_numbers(self._n)
        equal, rms = np.linspace(0.0, self._n, BINS + 1), rms_edges(self._n)
        refused = self._n - np.array(RISK_AT) / 100 * self._n
        self._ranks = np.unique(np.concatenate((equal, rms, refused)))
        self._equal, self._rms, self._refused = (np.searchsorted(self._ranks, ranks) for ranks in (equal, rms, refused))
        self._rms_sizes = np.diff(rms)

    def metrics(self, counts: Int64) -> dict[str, float]:
        """Return the metrics of ``NAMES``."""
        drawn = counts[self._order]
        mass, correct = self._cumulated(drawn), self._cumulated(drawn * self._correct)
        block = mass[1:] - mass[:-1]
        hits, values = _sums_up_to(mass, correct, block * self._confidence, self._ranks[1:-1])
        errors_above = mass[-1] - mass - (correct[-1] - correct)
        risks = 1.0 - (hits[-1] - hits[self._refused]) / (self._n - self._ranks[self._refused])
        found = (*self._calibration(hits, values), *self._selective(mass, block, errors_above), *map(float, risks))
        return dict(zip(self.NAMES, found, strict=True))

    def _cumulated(self, drawn: Int64) -> Int64:
        output = np.zeros(len(self._ends) + 1, dtype=np.int64)
        if len(self._ends) == len(drawn):
            np.cumsum(drawn, out=output[1:])
        else:
            output[1:] = np.cumsum(drawn)[self._ends]
        return output

    def _calibration(self, hits: Float64, values: Float64) -> tuple[float, float, float]:
        """Return ece_em15, ece_debiased and rmsce from the sums of correct and of confidence up to each rank."""
        size = self._n / BINS
        accuracy, gaps = np.diff(hits[self._equal]) / size, np.diff((hits - values)[self._equal]) / size
        squares = gaps**2 - accuracy * (1.0 - accuracy) / (size - 1.0) if size > 1 else np.zeros(BINS)
        rms = math.sqrt((np.diff((hits - values)[self._rms]) ** 2 / self._rms_sizes).sum() / self._n)
        return float(np.abs(gaps).sum() / BINS), math.sqrt(max(0.0, squares.sum() / BINS)), rms

    def _selective(self, mass: Int64, block: Int64, errors_above: Int64) -> tuple[float, ...]:
        """Return aurc, eaurc, augrc and the coverages at risk."""
        above = self._n - mass  # samples more confident than each point
        aurc = self._aurc(block, above, errors_above)
        augrc = int((block * (errors_above[1:] + errors_above[:-1])).sum()) / (2.0 * self._n**2)
        excess = aurc - self._optimal_aurc(self._n - int(errors_above[0]))
        return aurc, excess, augrc, *self._coverages(above, errors_above)

    def _coverages(self, above: Int64, errors_above: Int64) -> list[float]:
        per_cent = 100 * errors_above
        return [float(above[np.argmax(per_cent <= share * above)] / self._n) for share in COVERAGE_AT_RISK]

    def _aurc(self, block: Int64, above: Int64, errors_above: Int64) -> float:
        errors = errors_above[:-1] - errors_above[1:]
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


def _sums_up_to(mass: Int64, correct: Int64, spread: Float64, ranks: Float64) -> tuple[Float64, Float64]:
    """Return the sums of correct and of confidence up to rank 0, each of the inner ``ranks`` and the end.

    ``spread`` is the confidence of each block, summed; a rank inside a block takes its part of it.
    """
    cut = np.searchsorted(mass, ranks, side="right") - 1
    part = (ranks - mass[cut]) / (mass[cut + 1] - mass[cut])
    before = _sums_before(spread, cut)
    hits, values = np.zeros(len(ranks) + 2), np.zeros(len(ranks) + 2)
    hits[1:-1], hits[-1] = correct[cut] + part * (correct[cut + 1] - correct[cut]), correct[-1]
    values[1:-1], values[-1] = before[:-1] + part * spread[cut], before[-1]
    return hits, values


def _sums_before(values: Float64, cut: Int64) -> Float64:
    """Return the sum of ``values[:c]`` for each ascending c of ``cut``, and the sum of all."""
    starts = np.concatenate(([0], cut))
    sums = np.add.reduceat(values, starts)
    sums[:-1][starts[1:] == starts[:-1]] = 0.0  # reduceat gives the element itself where a segment is empty
    return np.cumsum(sums)
