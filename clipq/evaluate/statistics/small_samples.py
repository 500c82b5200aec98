"""What an interval from few images must at least cover."""

from __future__ import annotations

import math

Interval = tuple[float, float]


def no_narrower(value: float, ends: Interval, n: int) -> Interval:
    """Widen an interval to the rule of three: what was never seen in n images may still happen in 3 of n (Hanley 1983), at most in all.

    >>> no_narrower(0.5, (0.5, 0.5), 300), no_narrower(0.0, (0.0, 0.0), 1)
    ((0.49, 0.51), (-1.0, 1.0))
    """
    floor = 3 / max(n, 3)
    return min(ends[0], value - floor), max(ends[1], value + floor)


def wilson_interval(fraction: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a fraction seen in ``n`` images (Wilson 1927).

    >>> [round(end, 3) for end in wilson_interval(0.0, 100)]
    [0.0, 0.037]
    """
    z2 = 1.959964**2
    centre = (fraction + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(fraction * (1 - fraction) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
