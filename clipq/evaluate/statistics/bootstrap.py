"""The paired bootstrap: the same resamples for every engine and metric, as counts per sample."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Bool, Float64, Int64
from clipq.evaluate.statistics.bca import bca_interval, bca_p_value
from clipq.evaluate.statistics.delong import delong_p_value
from clipq.evaluate.statistics.significance import mcnemar, minimum_detectable_effect, minimum_detectable_loss

RESAMPLES = 2000
Interval = tuple[float, float]
_Column = TypeVar("_Column")


@dataclass(frozen=True, slots=True)
class Estimate:
    """One number of a report; the fields are None where they do not apply.

    Attributes:
        value: The metric on the full sample.
        ci95: 95 % bootstrap interval of the value.
        n: Number of samples behind it; for OOD metrics ID and OOD together.
        delta: Engine minus baseline, on the same samples.
        delta_ci95: 95 % bootstrap interval of the delta, paired.
        delta_interval: How ``delta_ci95`` was taken from the resamples: ``bca`` or ``percentile``.
        p_value: Two-sided, of the delta being 0.
        test: Where ``p_value`` comes from: ``mcnemar`` (exact, mid-p; acc1 and acc5), ``delong`` (auroc) or ``bootstrap`` (all others: the
            level at which ``delta_ci95`` touches 0).
        minimum_detectable: The smallest true delta that this comparison would find, two-sided 5 %, in four of five repetitions; None where
            no sample moves the metric, so that nothing is known of its spread.
        interval: How ``ci95`` was taken from the resamples.
    """

    value: float
    ci95: Interval | None
    n: int
    delta: float | None = None
    delta_ci95: Interval | None = None
    delta_interval: str | None = None
    p_value: float | None = None
    test: str | None = None
    minimum_detectable: float | None = None
    interval: str | None = None


@dataclass(frozen=True, slots=True)
class Resampled:
    """One engine's metrics on the full sample and on every resample; made once per engine, compared at will.

    Attributes:
        values: METRIC key -> value on the full sample.
        draws: METRIC key -> ``(resamples,)`` values; metrics that are not resampled are missing.
        n: Number of samples.
        key: What must be equal for two engines to be paired: the samples, the number of resamples, the seed.
        correct: METRIC key -> ``(n,)`` flags of metrics that are a share of right samples; their delta is tested by McNemar.
        influence: METRIC key -> of each independent set of samples (all; or ID and OOD), ``(n,)``: what each sample adds to the value, less
            the mean, as the jackknife finds it. Metrics with it get BCa intervals; where a jackknife is too dear (it would sort or bin anew
            for every sample) or the metric is not smooth (FPR95, calibration errors), the percentile interval stays.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Float64]
    n: int
    key: tuple[str | int, ...]
    correct: Mapping[str, Bool] = field(default_factory=dict)
    influence: Mapping[str, tuple[Float64, ...]] = field(default_factory=dict)

    def only(self, names: Collection[str]) -> Resampled:
        """Return the same with the named metrics alone."""
        correct, influence = _only(self.correct, names), _only(self.influence, names)
        return Resampled(_only(self.values, names), _only(self.draws, names), self.n, self.key, correct, influence)


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


def _only(columns: Mapping[str, _Column], names: Collection[str]) -> dict[str, _Column]:
    return {name: column for name, column in columns.items() if name in names}


def _estimate(name: str, baseline: Resampled | None, engine: Resampled) -> Estimate:
    value, draws, influence = engine.values[name], engine.draws.get(name), engine.influence.get(name)
    interval, method = (None, None) if draws is None else _Spread(value, draws, influence).interval()
    if baseline is None or name not in baseline.values or not np.isfinite([value, baseline.values[name]]).all():
        return Estimate(value, interval, engine.n, interval=method)
    delta = value - baseline.values[name]
    if draws is None or name not in baseline.draws:
        return Estimate(value, interval, engine.n, delta, interval=method)
    moved = None if influence is None else tuple(new - old for new, old in zip(influence, baseline.influence[name], strict=True))
    spread = _Spread(delta, draws - baseline.draws[name], moved)
    p_value, test = _test(name, baseline, engine, spread)
    least = _minimum_detectable(name, baseline, engine, spread.draws)
    return Estimate(value, interval, engine.n, delta, *spread.interval(), p_value, test, least, interval=method)


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """A value or a delta with its resampled values, and with the influence of each sample where it is known."""

    value: float
    draws: Float64
    influence: tuple[Float64, ...] | None

    def interval(self) -> tuple[Interval, str]:
        """Return the 95 % interval and how it was taken."""
        corrected = None if self.influence is None else bca_interval(self.draws, self.value, self.influence)
        return (percentile_interval(self.draws), "percentile") if corrected is None else (corrected, "bca")

    def p_value(self) -> float:
        """Return the level at which the interval touches 0."""
        corrected = None if self.influence is None else bca_p_value(self.draws, self.value, self.influence)
        return bootstrap_p_value(self.draws) if corrected is None else corrected


def _test(name: str, baseline: Resampled, engine: Resampled, spread: _Spread) -> tuple[float, str]:
    """Return the p-value of a delta and the test it comes from."""
    if name in engine.correct and name in baseline.correct:
        return mcnemar(baseline.correct[name], engine.correct[name]), "mcnemar"
    if name == "auroc" and spread.influence is not None:
        return delong_p_value(spread.value, spread.influence), "delong"
    return spread.p_value(), "bootstrap"


def _minimum_detectable(name: str, baseline: Resampled, engine: Resampled, deltas: Float64) -> float | None:
    if name in engine.correct and name in baseline.correct:
        return minimum_detectable_loss(engine.n, float(np.mean(baseline.correct[name] != engine.correct[name])))
    error = float(np.std(deltas, ddof=1)) if len(deltas) > 1 else 0.0
    return minimum_detectable_effect(error) if error > 0 else None


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
