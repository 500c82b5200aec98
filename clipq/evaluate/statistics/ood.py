"""Estimates of every OOD detection metric: value, interval, paired delta and p-value; ID and OOD samples are resampled apart."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from clipq.evaluate.metrics import detection
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_vector
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate, Resampled, collected, compare, resample_counts
from clipq.evaluate.statistics.delong import placements

METRICS = {
    "auroc": detection.auroc,
    "aupr_in": detection.aupr_in,
    "aupr_out": detection.aupr_out,
    "fpr95_id_pos": detection.fpr95_id_pos,
    "fpr95_ood_pos": detection.fpr95_ood_pos,
}


def ood_estimates(
    baseline: tuple[Array, Array] | None, engine: tuple[Array, Array], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Return METRIC key -> estimate for one score of one engine, paired against the baseline's same score where there is one.

    Args:
        baseline: ``(id_scores, ood_scores)``, higher = more OOD.
        engine: The same of the engine, for the same samples in the same order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: The numbers of samples differ, or a score is not finite.
    """
    resampled = None if baseline is None else resample_ood(*baseline, resamples=resamples, seed=seed)
    return compare(resampled, resample_ood(*engine, resamples=resamples, seed=seed))


def resample_ood(
    id_scores: Array, ood_scores: Array, *, resamples: int = RESAMPLES, seed: int = 0, metrics: Collection[str] | None = None
) -> Resampled:
    """Return the detection metrics of one score on the full samples and on every resample; make it once per engine and score.

    Args:
        id_scores: ``(n_id,)``, higher = more OOD.
        ood_scores: ``(n_ood,)``.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; the same for all engines that will be compared.
        metrics: METRIC keys to resample; None for all. The values of the others are there all the same.
    """
    inside, outside = as_vector(id_scores, "ID scores"), as_vector(ood_scores, "OOD scores")
    values = {name: metric(inside, outside) for name, metric in METRICS.items()}
    plan = _Plan(inside, outside, frozenset(METRICS if metrics is None else metrics))
    inside_counts = resample_counts(len(inside), resamples, seed, stream=0)
    outside_counts = resample_counts(len(outside), resamples, seed, stream=1)
    draws = collected(plan.metrics(*counts) for counts in zip(inside_counts, outside_counts, strict=True))
    key = (len(inside), len(outside), resamples, seed)
    influence = {"auroc": tuple(side - side.mean() for side in placements(inside, outside))} if "auroc" in draws else {}
    return Resampled(values, draws, len(inside) + len(outside), key, influence=influence)


class _Plan:
    """Where the sorted scores of each side stand among those of the other, found once and used for every resample."""

    def __init__(self, inside: Float64, outside: Float64, wanted: Collection[str]) -> None:
        self._wanted = wanted
        self._id_order, self._ood_order = np.argsort(inside, kind="stable"), np.argsort(outside, kind="stable")
        inside, outside = inside[self._id_order], outside[self._ood_order]
        self._id_below, self._id_up_to = _positions(inside, outside)
        _, self._ood_up_to = _positions(outside, inside)
        _, self._own_id_up_to = _positions(inside, inside)
        self._own_ood_below, _ = _positions(outside, outside)

    def metrics(self, id_counts: Int64, ood_counts: Int64) -> dict[str, float]:
        """Return METRIC key -> value for one resample of each side."""
        inside, outside = id_counts[self._id_order], ood_counts[self._ood_order]
        id_sum, ood_sum = _cumulated(inside), _cumulated(outside)
        n_id, n_ood = len(inside), len(outside)
        id_below = id_sum[self._id_below]
        id_cut = np.searchsorted(id_sum, detection.count_95(n_id)) - 1  # the score at which 95 % of ID are accepted
        ood_cut = np.searchsorted(ood_sum, n_ood - detection.count_95(n_ood), side="right") - 1
        table: dict[str, Callable[[], float]] = {
            "auroc": lambda: int((outside * (id_below + id_sum[self._id_up_to])).sum()) / (2.0 * n_id * n_ood),
            "aupr_in": lambda: _mean_precision(inside, id_sum[self._own_id_up_to], ood_sum[self._ood_up_to]),
            "aupr_out": lambda: _mean_precision(outside, n_ood - ood_sum[self._own_ood_below], n_id - id_below),
            "fpr95_id_pos": lambda: float(ood_sum[self._ood_up_to[id_cut]] / n_ood),
            "fpr95_ood_pos": lambda: float(1.0 - id_sum[self._id_below[ood_cut]] / n_id),
        }
        return {name: compute() for name, compute in table.items() if name in self._wanted}


def _positions(ordered: Float64, values: Float64) -> tuple[Int64, Int64]:
    """Return how many of ``ordered`` are below each value, and how many are not above it."""
    return np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")


def _cumulated(counts: Int64) -> Int64:
    """Return cumulative counts from 0, ``(n + 1,)``."""
    output = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=output[1:])
    return output


def _mean_precision(counts: Int64, own: Int64, other: Int64) -> float:
    """Return the mean of own / (own + other) over the drawn positives: the average precision."""
    return float((counts * (own / np.maximum(own + other, 1))).sum() / len(counts))
