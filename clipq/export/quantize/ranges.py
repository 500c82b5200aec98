"""How an activation's range is chosen from its histogram: minmax, percentile, entropy, mse.

Each function takes the histogram of |x| and the largest integer of the grid (127 at 8 bits, 7 at 4), and returns the clipping value
``c >= 0``: values beyond ``c`` saturate, and the step is ``c / limit``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from clipq.export.quantize.histogram import Float64, Histogram
from clipq.export.quantize.weights import LARGEST

PERCENTILE = 99.99
_LINEAR_BINS = 2048
_ENTROPY_STRIDE = 8
_MSE_STEPS_PER_OCTAVE = 16
_MSE_OCTAVES = 8


def minmax(histogram: Histogram, limit: int = LARGEST) -> float:
    """Return the largest absolute value: nothing saturates, whatever the grid."""
    del limit
    return histogram.largest


def percentile(histogram: Histogram, limit: int = LARGEST) -> float:
    """Return the value below which 99.99 % of the absolute values lie, linear inside its bin; minmax where that value is zero.

    It does not depend on the grid.
    """
    del limit
    lower, upper, counts = histogram.occupied()
    total = np.cumsum(counts)
    rank = total[-1] * PERCENTILE / 100
    bin_ = int(np.searchsorted(total, rank))
    if lower[bin_] == 0:
        return histogram.largest
    share = (rank - (total[bin_] - counts[bin_])) / counts[bin_]
    return float(lower[bin_] + share * (upper[bin_] - lower[bin_]))


def entropy(histogram: Histogram, limit: int = LARGEST) -> float:
    """Return the clip whose distribution over ``limit + 1`` levels is nearest to the original one by Kullback-Leibler divergence.

    TensorRT's calibrator: S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 35-39. 2048 equal bins up to the largest
    value; for each number of kept bins the tail is added to the last kept bin (P), the kept bins are merged into the levels (128 at
    8 bits) and spread again over those that were not empty (Q). The bin of zero takes its neighbour's count, as in NVIDIA's
    pytorch-quantization, because zero is exact at every scale. Every 8th number of bins is tried.
    """
    counts = _linear(histogram)
    kept = np.arange(limit + 1, _LINEAR_BINS + 1, _ENTROPY_STRIDE)
    divergences = [_divergence(counts, int(number), limit + 1) for number in kept]
    best = int(kept[int(np.argmin(divergences))])
    return float(histogram.largest * best / _LINEAR_BINS)


def _linear(histogram: Histogram) -> Float64:
    """Return the counts over 2048 equal bins from 0 to the largest value, each bin of the histogram spread evenly."""
    lower, upper, counts = histogram.occupied()
    edges = np.linspace(0, histogram.largest, _LINEAR_BINS + 1)
    points = np.stack([lower, upper], axis=1).ravel()
    total = np.cumsum(counts)
    cumulated = np.stack([total - counts, total], axis=1).ravel()
    linear = np.diff(np.interp(edges, points, cumulated))
    linear[0] = linear[1]
    return linear


def _divergence(counts: Float64, kept: int, levels: int) -> float:
    inside = counts[:kept]
    reference = inside.copy()
    reference[-1] += counts[kept:].sum()
    filled = inside > 0
    starts = np.arange(levels) * kept // levels
    sums, members = np.add.reduceat(inside, starts), np.add.reduceat(filled.astype(np.float64), starts)
    level = np.repeat(sums / np.maximum(members, 1), np.diff(starts, append=kept))
    candidate = np.where(filled, level, 0.0)
    if not reference.sum() or not candidate.sum():
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], np.finfo(np.float64).tiny))))


def mse(histogram: Histogram, limit: int = LARGEST) -> float:
    """Return the clip with the least expected squared error of rounding and saturating to the grid.

    Values are taken as evenly spread inside their bin, so the error of each bin is an integral in closed form. Clips from the
    largest value down to 1/256 of it are tried, 16 per octave; 128 bins per octave are fine enough here.
    """
    lower, upper, counts = histogram.occupied(merge=4)
    clips = histogram.largest * 2.0 ** (-np.arange(_MSE_OCTAVES * _MSE_STEPS_PER_OCTAVE + 1) / _MSE_STEPS_PER_OCTAVE)
    width = np.maximum(upper - lower, np.finfo(np.float64).tiny)
    errors = [np.sum(counts * (_error_below(upper, clip, limit) - _error_below(lower, clip, limit)) / width) for clip in clips]
    return float(clips[int(np.argmin(errors))])


def _error_below(values: Float64, clip: float, limit: int) -> Float64:
    """Return the integral from 0 to each value of the squared quantization error ``(x - Q(x))^2``.

    Each whole step contributes ``step^3 / 12`` and the part step around its centre ``r^3 / 3``; beyond the clip the error is
    ``x - clip``, whose square integrates to ``(x - clip)^3 / 3``.
    """
    step = clip / limit
    inside = np.minimum(values, clip)
    level = np.rint(inside / step)
    error: npt.NDArray[np.float64] = level * step**3 / 12 + (inside - level * step) ** 3 / 3 + np.maximum(values - clip, 0) ** 3 / 3
    return error


METHODS: dict[str, Callable[[Histogram, int], float]] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}


def clip_of(histogram: Histogram, method: str, limit: int = LARGEST) -> float:
    """Return the clip that a method chooses, at most the largest value; 0 for a tensor that was zero everywhere.

    Args:
        histogram: Of the tensor's absolute values.
        method: One of ``METHODS``.
        limit: Largest integer of the grid: 127, 31 or 7 for 8, 6 or 4 bits.
    """
    return min(METHODS[method](histogram, limit), histogram.largest) if histogram.largest > 0 else 0.0
