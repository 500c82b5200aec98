"""The paired bootstrap: the same resamples for every engine and metric, as weights per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Bool, Float64
from clipq.evaluate.statistics.significance import mcnemar

RESAMPLES = 2000
CHUNK_VALUES = 1 << 18  # 2 MiB of float64: a chunk of weights stays in the processor's cache


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


def resample_weights(n: int, resamples: int, seed: int, *, stream: int = 0, chunk_rows: int | None = None) -> Iterator[Float64]:
    """Yield how often each sample was drawn, as chunks ``(n, some resamples)``; every column sums to ``n``.

    The draws depend on ``n``, ``seed`` and ``stream`` alone, so two engines on the same samples meet the same resamples.

    Args:
        n: Number of samples.
        resamples: Number of resamples in all chunks together.
        seed: Seed.
        stream: Which of several independent sets is drawn (ID 0, OOD 1).
        chunk_rows: The ``n`` by which the width of a chunk is chosen, where two sets go side by side; it does not change the draws.
    """
    if resamples < 1:
        raise DataError("the bootstrap needs resamples", found=resamples, expected="at least 1")
    generator = np.random.default_rng([seed, stream])
    width = max(4, CHUNK_VALUES // (chunk_rows or n))
    for start in range(0, resamples, width):
        columns = min(width, resamples - start)
        drawn = generator.integers(0, n, size=(columns, n), dtype=np.int64)
        drawn *= columns
        drawn += np.arange(columns)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * columns).reshape(n, columns).astype(np.float64)


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
