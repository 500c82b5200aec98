"""Accuracies with their resamples, and what is computed from those of two data sets: value, interval, difference and p-value."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipq.evaluate.entries import measurements
from clipq.evaluate.metrics.arrays import Bool, Float64
from clipq.evaluate.statistics.bootstrap import Estimate, Resampled, bootstrap_p_value, compare, resample_counts
from clipq.evaluate.statistics.significance import minimum_detectable_effect

Row = Float64  # the value first, then every resampled one: (1 + resamples,)


@dataclass(frozen=True, slots=True, eq=False)
class Accuracy:
    """The accuracy of one engine on one data set.

    Attributes:
        row: ``(1 + resamples,)``: on all images, then on every resample. Engines on the same data set meet the same resamples.
        n: Images.
    """

    row: Row
    n: int

    @classmethod
    def of(cls, correct: Bool, *, resamples: int, seed: int) -> Accuracy:
        """Return the accuracy of answers ``(n,)`` with the resamples that every metric of the same images meets."""
        drawn = [float(counts @ correct) / len(correct) for counts in resample_counts(len(correct), resamples, seed)]
        return cls(np.array([float(correct.mean()), *drawn]), len(correct))


@dataclass(frozen=True, slots=True, eq=False)
class TwoSets:
    """One engine on two data sets, which are taken as independent samples.

    Attributes:
        first: The known, common or clean one.
        second: The shifted, counter or altered one.
    """

    first: Accuracy
    second: Accuracy

    @classmethod
    def of(cls, first: Accuracy, second: Accuracy) -> TwoSets:
        """Return both with the resamples of the second shifted by one.

        Resamples of sets with equally many images draw the same positions. Different images share nothing at a position but the order
        of the classes, so that their resamples must not move together; moved by one, the same for all engines, they do not.
        """
        return cls(first, Accuracy(np.concatenate((second.row[:1], np.roll(second.row[1:], 1))), second.n))

    @property
    def n(self) -> int:
        """Return the images of the smaller set, which decides how sure a figure of both can be."""
        return min(self.first.n, self.second.n)


def entries(rows: Mapping[str, Row], baseline: Mapping[str, Row] | None, n: int, against: Collection[str] = ()) -> dict[str, Any]:
    """Return METRIC -> measurement of one engine.

    Args:
        rows: METRIC -> value and resampled values.
        baseline: Those of the baseline; None for the baseline itself.
        n: Images behind them.
        against: Metrics that compare with the baseline themselves: they have no delta, and their p-value is of the value being 0.
    """
    own, other = _resampled(rows, n), None if baseline is None else _resampled(baseline, n)
    estimates = compare(other, own)
    return measurements({name: _tested(rows[name], found) if name in against else found for name, found in estimates.items()})


def _resampled(rows: Mapping[str, Row], n: int) -> Resampled:
    draws = {name: row[1:] for name, row in rows.items() if len(row) > 1 and np.isfinite(row).all()}
    return Resampled({name: float(row[0]) for name, row in rows.items()}, draws, n, (n, len(next(iter(rows.values())))))


def _tested(row: Row, estimate: Estimate) -> Estimate:
    """Return the estimate of a comparison with the p-value of no difference."""
    plain = Estimate(estimate.value, estimate.ci95, estimate.n, interval=estimate.interval)
    if estimate.ci95 is None:
        return plain
    error = float(np.std(row[1:], ddof=1)) if len(row) > 2 else 0.0
    least = minimum_detectable_effect(error) if error > 0 else None
    return replace(plain, p_value=bootstrap_p_value(row[1:]), test="bootstrap", minimum_detectable=least)
