"""Calibration of the top label: does a confidence of 0.8 mean right in 80 of 100 cases?

Two ways of binning, used by every measure here:

* equal width: bin b of B holds ``b/B <= confidence < (b+1)/B``, edges compared in float64; the last bin is closed, so 1.0 is in it.
* equal mass: samples sorted by confidence, each bin holds exactly n/B of them. Where an edge cuts a sample, or a block of tied
  confidences, the block is split in proportion (each part keeps the block's accuracy), so neither the order of the samples nor
  how often the whole set is repeated matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_confidence, as_vector

BINS = 15
ECE_CHANCES = 3.5  # times the ECE by chance, above which intervals of the ECE and its differences were found to hold the truth


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """What a reliability diagram shows, one entry per equal-width bin; empty bins hold NaN.

    Attributes:
        edges: ``(bins + 1,)`` from 0 to 1.
        count: ``(bins,)`` samples in the bin.
        confidence: ``(bins,)`` their mean confidence.
        accuracy: ``(bins,)`` the share of them that is right.
    """

    edges: Float64
    count: Int64
    confidence: Float64
    accuracy: Float64


def bin_index(confidence: Array, bins: int = BINS) -> Int64:
    """Return the equal-width bin of each confidence, 0 to ``bins - 1``.

    >>> bin_index(np.array([0.0, 1 / 15, 0.999, 1.0])).tolist()
    [0, 1, 14, 14]
    """
    inner = np.arange(1, bins) / bins
    return np.asarray(np.searchsorted(inner, np.asarray(confidence, dtype=np.float64), side="right"), dtype=np.int64)


def reliability_bins(confidence: Array, correct: Array, bins: int = BINS) -> ReliabilityBins:
    """Return count, mean confidence and accuracy per equal-width bin.

    Args:
        confidence: ``(n,)`` in [0, 1].
        correct: ``(n,)`` 0 or 1.
        bins: Number of bins.

    >>> reliability_bins(np.array([0.9, 0.7]), np.array([1, 0]), bins=2).accuracy.tolist()
    [nan, 0.5]
    """
    values, hits = as_confidence(confidence, correct)
    index = bin_index(values, bins)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    mean_confidence = np.bincount(index, weights=values, minlength=bins) / divisor
    accuracy = np.bincount(index, weights=hits, minlength=bins) / divisor
    return ReliabilityBins(np.arange(bins + 1) / bins, count.astype(np.int64), mean_confidence, accuracy)


def ece(confidence: Array, correct: Array, bins: int = BINS) -> float:
    """Return the expected calibration error: sum over equal-width bins of n_b/n * |accuracy_b - confidence_b|, in [0, 1].

    Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017 (arXiv 1706.04599). Biased upward: perfectly calibrated data gives about
    0.061, 0.029, 0.013, 0.004 at n = 200, 1,000, 5,000, 50,000.

    >>> round(ece(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])), 6)
    0.1
    """
    values, hits = as_confidence(confidence, correct)
    gaps = np.bincount(bin_index(values, bins), weights=hits - values, minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def ece_by_chance(confidence: Array, bins: int = BINS) -> float:
    """Return the ECE that a perfectly calibrated model with these confidences shows by chance, in [0, 1].

    In bin b the gap is the mean of n_b independent Bernoulli errors, nearly normal, so that its mean absolute value is
    sqrt(2/pi) times its standard deviation: sum over bins of sqrt(2/pi * sum p (1 - p)) / n.

    Args:
        confidence: Probability of the prediction, ``(n,)``.
        bins: Number of bins.

    >>> round(ece_by_chance(np.full(100, 0.5)), 6)
    0.039894
    """
    values = as_vector(confidence, "confidences")
    variance = np.bincount(bin_index(values, bins), values * (1 - values))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(values))


def mce(confidence: Array, correct: Array, bins: int = BINS) -> float:
    """Return the maximum calibration error: the largest |accuracy_b - confidence_b| of a non-empty equal-width bin, in [0, 1].

    Naeini et al. 2015. One tiny bin can decide it: show it with ``reliability_bins(...).count``.

    >>> round(mce(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])), 6)
    0.1
    """
    table = reliability_bins(confidence, correct, bins)
    return float(np.nanmax(np.abs(table.accuracy - table.confidence)))


def signed_gap(confidence: Array, correct: Array) -> float:
    """Return mean confidence - accuracy, in [-1, 1]: above 0 is over-confident, below 0 under-confident.

    >>> signed_gap(np.array([1.0, 0.5]), np.array([1, 0]))
    0.25
    """
    values, hits = as_confidence(confidence, correct)
    return float(values.mean() - hits.mean())


def ece_em15(confidence: Array, correct: Array, bins: int = BINS) -> float:
    """Return the top-label ECE over equal-mass bins, in [0, 1].

    Nguyen & O'Connor 2015; lower bias than equal width (Roelofs et al. 2020, arXiv 2012.08668). Not Nixon's ACE, which is over all classes,
    nor netcal's ACE, which does not weight its bins.

    >>> round(ece_em15(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0]), bins=2), 6)
    0.1
    """
    hits, values = equal_mass_means(confidence, correct, bins)
    return float(np.abs(hits - values).mean())


def ece_sweep(confidence: Array, correct: Array) -> float:
    """Return the equal-mass ECE with as many bins as keep the bins' accuracies monotone, in [0, 1].

    Roelofs et al. 2020, algorithm 1: the number of bins grows from 1 until accuracy first falls from one bin to the next, at most to 1,000.

    >>> round(ece_sweep(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])), 6)
    0.1
    """
    values, hits = as_confidence(confidence, correct)
    mass, confidence_sum, correct_sum = _curves(values, hits)
    best = abs(correct_sum[-1] - confidence_sum[-1]) / len(values)
    for bins in range(2, min(len(values), 1000) + 1):
        edges = np.linspace(0.0, len(values), bins + 1)
        hit_sums = np.diff(np.interp(edges, mass, correct_sum))
        if (np.diff(hit_sums) < -1e-9).any():
            break
        best = np.abs(hit_sums - np.diff(np.interp(edges, mass, confidence_sum))).sum() / len(values)
    return float(best)


def rmsce(confidence: Array, correct: Array) -> float:
    """Return the root mean square calibration error, in [0, 1]: ``sqrt(sum_b n_b/n * (accuracy_b - confidence_b)^2)``.

    Hendrycks, Mazeika & Dietterich 2019 (arXiv 1812.04606): adaptive bins of 100 samples sorted by confidence. There are ``n // 100``
    bins (one below 200 samples) and the last also holds the rest; Hendrycks' code and its copies leave the last, most confident bin
    out of the sum, this does not. Bins of 100 show about 0.04 for perfectly calibrated data: compare it with itself only.

    >>> round(rmsce(np.repeat([0.6, 0.9], 100), np.repeat([1, 1], 100)), 6)
    0.291548
    """
    values, hits = as_confidence(confidence, correct)
    mass, confidence_sum, correct_sum = _curves(values, hits)
    edges = rms_edges(len(values))
    gaps = np.diff(np.interp(edges, mass, correct_sum)) - np.diff(np.interp(edges, mass, confidence_sum))
    return float(np.sqrt((gaps**2 / np.diff(edges)).sum() / len(values)))


def rms_edges(n: int) -> Float64:
    """Return the ranks between which the bins of ``rmsce`` lie, from 0 to ``n``.

    >>> rms_edges(250).tolist()
    [0.0, 100.0, 250.0]
    """
    return np.append(np.arange(0.0, 100.0 * max(1, n // 100), 100.0), float(n))


def ece_debiased(confidence: Array, correct: Array, bins: int = BINS) -> float:
    """Return the debiased L2 calibration error over equal-mass bins, in [0, 1].

    Kumar, Liang & Ma 2019 (arXiv 1909.10155): the root of ``sum_b n_b/n * [(acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)]``. The sum
    is negative when the data looks better than chance allows; then 0 is returned. It is a root of squares: compare it with itself only.

    Raises:
        DataError: There are fewer than two samples per bin.

    >>> ece_debiased(np.full(60, 0.5), np.tile([0, 1], 30))
    0.0
    """
    n = len(np.asarray(confidence))
    if n < 2 * bins:
        raise DataError("too few samples for the debiased calibration error", found=n, expected=f"at least {2 * bins}")
    hits, values = equal_mass_means(confidence, correct, bins)
    squares = (hits - values) ** 2 - hits * (1.0 - hits) / (n / bins - 1.0)
    return float(np.sqrt(max(0.0, squares.mean())))


def equal_mass_means(confidence: Array, correct: Array, bins: int = BINS) -> tuple[Float64, Float64]:
    """Return accuracy and mean confidence of each equal-mass bin, both ``(bins,)``, least confident bin first."""
    values, hits = as_confidence(confidence, correct)
    mass, confidence_sum, correct_sum = _curves(values, hits)
    edges = np.linspace(0.0, len(values), bins + 1)
    size = len(values) / bins
    return np.diff(np.interp(edges, mass, correct_sum)) / size, np.diff(np.interp(edges, mass, confidence_sum)) / size


def _curves(values: Float64, hits: Float64) -> tuple[Float64, Float64, Float64]:
    """Return cumulative mass, confidence and correct at the ends of the tied blocks, in ascending confidence, each from 0."""
    order = np.argsort(values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    confidence_sum, correct_sum = np.cumsum(values[order])[ends], np.cumsum(hits[order])[ends]
    zero = np.zeros(1)
    return np.concatenate((zero, ends + 1.0)), np.concatenate((zero, confidence_sum)), np.concatenate((zero, correct_sum))
