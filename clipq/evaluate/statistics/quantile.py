"""An interval for a quantile that asks nothing of the distribution."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, as_vector


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
