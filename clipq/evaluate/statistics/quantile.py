"""The threshold that keeps 95 % of the known images, with an interval that asks nothing of the distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, as_vector
from clipq.evaluate.metrics.detection import accepted_share, threshold_id_pos

KEEPS = 0.95


def quantile_interval(values: Array, share: float, level: float = 0.95) -> tuple[float, float]:
    """Return two of the values between which the true quantile lies with at least about ``level``, whatever the distribution.

    How many of n values lie at or below the true quantile is binomial (Conover 1999, section 3.2). With so few values that the upper
    rank would be beyond the last one, the last one stands in and the interval covers less.

    Args:
        values: ``(n,)``.
        share: Which quantile, in (0, 1).
        level: How often the interval should cover it.

    Raises:
        DataError: There is no value, or one is not finite.

    >>> quantile_interval(np.arange(1.0, 101.0), 0.95)
    (90.0, 100.0)
    """
    from scipy.stats import binom

    ordered = np.sort(as_vector(values, "values"))
    low, high = binom.ppf([(1 - level) / 2, (1 + level) / 2], len(ordered), share).astype(int)
    return float(ordered[max(low, 1) - 1]), float(ordered[min(high + 1, len(ordered)) - 1])


def thresholds_of(scores: Mapping[str, Float64]) -> dict[str, dict[str, Any]]:
    """Return SCORE -> threshold, its 95 % interval, the images behind it and the share of them that it accepts.

    An image is accepted, as known, where its score is at or below the threshold.

    Args:
        scores: SCORE -> ``(n,)`` of known images, higher = more OOD.

    >>> thresholds_of({"mcm": np.arange(100.0)})
    {'mcm': {'threshold': 94.0, 'ci95': [89.0, 99.0], 'n': 100, 'tpr': 0.95}}
    """
    return {name: _threshold(values) for name, values in scores.items()}


def _threshold(values: Float64) -> dict[str, Any]:
    threshold = threshold_id_pos(values)
    ends = list(quantile_interval(values, KEEPS))
    return {"threshold": threshold, "ci95": ends, "n": len(values), "tpr": accepted_share(values, threshold)}
