"""Exact McNemar, Holm's correction, and the smallest difference a sample can show."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr, ndtri

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, as_vector


def mcnemar(baseline_correct: Array, engine_correct: Array, *, mid_p: bool = True) -> float:
    """Return the two-sided p-value that two engines are right equally often, from the samples on which one is right and one wrong.

    Exact binomial (McNemar 1947). The mid-p variant counts half of the observed outcome's probability and is less conservative (Fagerland,
    Lydersen & Laake 2013); ``mid_p=False`` gives the plain exact test.

    Args:
        baseline_correct: ``(n,)`` 0 or 1.
        engine_correct: ``(n,)`` 0 or 1.
        mid_p: Which of the two.

    >>> mcnemar(np.array([1, 1, 1, 1]), np.array([1, 0, 0, 0])), mcnemar(np.array([1, 1, 1, 1]), np.array([1, 0, 0, 0]), mid_p=False)
    (0.125, 0.25)
    """
    before, after = as_vector(baseline_correct, "baseline's correct flags") > 0, as_vector(engine_correct, "engine's correct flags") > 0
    if len(before) != len(after):
        raise DataError("baseline and engine differ in number of samples", found=f"{len(before)} and {len(after)}")
    lost, won = int(np.count_nonzero(before & ~after)), int(np.count_nonzero(~before & after))
    fewer, both = min(lost, won), lost + won
    if both == 0:
        return 1.0
    two_sided = 2.0 * float(bdtr(fewer, both, 0.5))
    observed = float(bdtr(fewer, both, 0.5)) - (float(bdtr(fewer - 1, both, 0.5)) if fewer else 0.0)
    return min(1.0, two_sided - observed) if mid_p else min(1.0, two_sided)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for looking at several engines (Holm 1979), in the given order.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def minimum_detectable_loss(n: int, disagreement: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest accuracy difference that a paired comparison of ``n`` samples would find with the given power.

    Connor 1987 for McNemar's test: the difference d with ``sqrt(n) d = z_alpha sqrt(psi) + z_power sqrt(psi - d^2)``. An observed
    disagreement of 0 is replaced by 3/n, its upper 95 % limit ("rule of three"), so that a tiny sample never claims to see everything.
    A difference takes at least as much disagreement: where the equation asks for more than psi, it is solved with psi = d.

    Args:
        n: Number of samples.
        disagreement: psi, the share of samples on which exactly one engine is right.
        alpha: Two-sided level.
        power: Chance to find it.

    Returns:
        A fraction in (0, 1]; 1 when no difference could be found.

    >>> round(minimum_detectable_loss(10_000, 0.03), 4)
    0.0049
    """
    if n < 1 or not 0 <= disagreement <= 1:
        raise DataError("no such comparison", found=f"n = {n}, disagreement = {disagreement}", expected="n of 1 or more, a share in [0, 1]")
    psi = min(1.0, max(disagreement, 3.0 / n))
    z_alpha, z_power = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    # The equation squared is quadratic in d: (n + z_power^2) d^2 - 2 sqrt(n psi) z_alpha d + psi (z_alpha^2 - z_power^2) = 0.
    half = math.sqrt(n * psi) * z_alpha
    quadratic = n + z_power**2
    discriminant = half**2 - quadratic * psi * (z_alpha**2 - z_power**2)
    smallest = (half + math.sqrt(max(0.0, discriminant))) / quadratic
    if discriminant >= 0 and smallest <= psi:
        return smallest

    def short_of(d: float) -> float:
        return math.sqrt(n * d) - z_alpha - z_power * math.sqrt(1 - d)

    return float(brentq(short_of, 0.0, 1.0)) if short_of(1.0) > 0 else 1.0


def minimum_detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided test would find with the given power: (z_{1-alpha/2} + z_power) standard errors.

    Bloom 1995, for an estimate that is nearly normal; for accuracy ``minimum_detectable_loss`` knows better.

    Args:
        standard_error: Of the difference; the standard deviation of its resampled values.
        alpha: Two-sided level.
        power: Chance to find it.

    Returns:
        In the unit of the difference, at least 0.

    >>> round(minimum_detectable_effect(0.01), 4)
    0.028
    """
    if not standard_error >= 0:
        raise DataError("no such standard error", found=standard_error, expected="0 or more")
    return float(ndtri(1 - alpha / 2) + ndtri(power)) * standard_error
