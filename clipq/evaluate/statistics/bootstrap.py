"""The paired bootstrap: the same resamples for every engine and metric, as counts per sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Bool, Float64, Int64
from clipq.evaluate.statistics.significance import mcnemar

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number of a report; the fields are None where they do not apply.

    Attributes:
        value: The metric on the full sample.
        ci95: 95 % percentile interval of the value.
        n: Number of samples behind it; for OOD metrics ID and OOD together.
        delta: Engine minus baseline, on the same samples.
        delta_ci95: 95 % percentile interval of the delta, paired.
        p_value: Two-sided, of the delta being 0: exact McNemar (mid-p) for acc1 and acc5, bootstrap for all others.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int
    delta: float | None = None
    delta_ci95: tuple[float, float] | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class Resampled:
    """One engine's metrics on the full sample and on every resample; made once per engine, compared at will.

    Attributes:
        values: METRIC key -> value on the full sample.
        draws: METRIC key -> ``(resamples,)`` values; metrics that are not resampled are missing.
        n: Number of samples.
        key: What must be equal for two engines to be paired: the samples, the number of resamples, the seed.
        correct: METRIC key -> ``(n,)`` flags of metrics that are a share of right samples; their delta is tested by McNemar.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Float64]
    n: int
    key: tuple[str | int, ...]
    correct: Mapping[str, Bool] = field(default_factory=dict)


def compare(baseline: Resampled | None, engine: Resampled) -> dict[str, Estimate]:
    """Return METRIC key -> estimate, with paired deltas where there is a baseline; metrics without resamples have no interval.

    Raises:
        DataError: The two were not run on the same samples, or not resampled alike.
    """
    if baseline is not None and baseline.key != engine.key:
        raise DataError(
            "baseline and engine cannot be paired",
            found=f"samples, resamples, seed {baseline.key} and {engine.key}",
            expected="the same samples in the same order, resampled alike",
        )
    return {name: _estimate(name, baseline, engine) for name in engine.values}


def _estimate(name: str, baseline: Resampled | None, engine: Resampled) -> Estimate:
    draws = engine.draws.get(name)
    interval = None if draws is None else percentile_interval(draws)
    value = engine.values[name]
    if baseline is None or name not in baseline.values or not np.isfinite([value, baseline.values[name]]).all():
        return Estimate(value, interval, engine.n)
    delta = value - baseline.values[name]
    if draws is None or name not in baseline.draws:
        return Estimate(value, interval, engine.n, delta)
    deltas = draws - baseline.draws[name]
    paired = name in engine.correct and name in baseline.correct
    p_value = mcnemar(baseline.correct[name], engine.correct[name]) if paired else bootstrap_p_value(deltas)
    return Estimate(value, interval, engine.n, delta, percentile_interval(deltas), p_value)


def resample_counts(n: int, resamples: int, seed: int, *, stream: int = 0) -> Iterator[Int64]:
    """Yield, for each resample, how often each of ``n`` samples was drawn: int64 ``(n,)`` that sums to ``n``.

    The draws depend on the arguments alone, so all engines and metrics on the same samples meet the same resamples.

    Args:
        n: Number of samples.
        resamples: Number of resamples.
        seed: Seed.
        stream: Which of several independent sets is drawn (ID 0, OOD 1).
    """
    if resamples < 1:
        raise DataError("the bootstrap needs resamples", found=resamples, expected="at least 1")
    generator = np.random.Generator(np.random.SFC64([seed, stream]))
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, n, size=n), minlength=n)


def collected(rows: Iterable[Mapping[str, float]]) -> dict[str, Float64]:
    """Return METRIC key -> ``(resamples,)`` from one mapping per resample."""
    listed = list(rows)
    return {name: np.array([row[name] for row in listed]) for name in listed[0]}


def percentile_interval(values: Float64) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % percentiles of resampled values (Efron 1979).

    A biased metric (ECE at small n) is biased once more in each resample: its interval then lies above its value.

    >>> percentile_interval(np.arange(1001.0))
    (25.0, 975.0)
    """
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def bootstrap_p_value(deltas: Float64) -> float:
    """Return the two-sided p-value of no difference: twice the smaller tail of the resampled deltas beyond 0, never 0.

    The level at which the percentile interval just touches 0 (Davison & Hinkley 1997, section 4.2 for the + 1).

    >>> bootstrap_p_value(np.zeros(99)), bootstrap_p_value(np.ones(99))
    (1.0, 0.02)
    """
    tail = min(int(np.count_nonzero(deltas <= 0)), int(np.count_nonzero(deltas >= 0)))
    return min(1.0, 2.0 * (tail + 1) / (len(deltas) + 1))
