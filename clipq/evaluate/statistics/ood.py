"""Estimates of every OOD detection metric: value, interval, paired delta and p-value; ID and OOD samples are resampled apart."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics import detection
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_vector
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate, Resampled, compare, resample_weights

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


def resample_ood(id_scores: Array, ood_scores: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Return the detection metrics of one score on the full samples and on every resample; make it once per engine and score.

    Args:
        id_scores: ``(n_id,)``, higher = more OOD.
        ood_scores: ``(n_ood,)``.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; the same for all engines that will be compared.
    """
    inside, outside = as_vector(id_scores, "ID scores"), as_vector(ood_scores, "OOD scores")
    values = {name: metric(inside, outside) for name, metric in METRICS.items()}
    plan = _Plan(inside, outside)
    rows = max(len(inside), len(outside))
    id_weights = resample_weights(len(inside), resamples, seed, stream=0, chunk_rows=rows)
    ood_weights = resample_weights(len(outside), resamples, seed, stream=1, chunk_rows=rows)
    chunks = [plan.metrics(*weights) for weights in zip(id_weights, ood_weights, strict=True)]
    draws = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in METRICS}
    return Resampled(values, draws, len(inside) + len(outside), (len(inside), len(outside), resamples, seed))


class _Plan:
    """Where the sorted scores of each side stand among those of the other, found once and used for every chunk of weights."""

    def __init__(self, inside: Float64, outside: Float64) -> None:
        self._id_order, self._ood_order = np.argsort(inside, kind="stable"), np.argsort(outside, kind="stable")
        self._inside, self._outside = inside[self._id_order], outside[self._ood_order]
        self._id_below = np.searchsorted(self._inside, self._outside, side="left")
        self._id_up_to = np.searchsorted(self._inside, self._outside, side="right")
        self._ood_below = np.searchsorted(self._outside, self._inside, side="left")
        self._ood_up_to = np.searchsorted(self._outside, self._inside, side="right")
        self._own_id_up_to = np.searchsorted(self._inside, self._inside, side="right")
        self._own_ood_below = np.searchsorted(self._outside, self._outside, side="left")

    def metrics(self, id_weights: Float64, ood_weights: Float64) -> dict[str, Float64]:
        """Return METRIC key -> ``(resamples,)`` for chunks ``(n_id, resamples)`` and ``(n_ood, resamples)``."""
        inside, outside = id_weights[self._id_order], ood_weights[self._ood_order]
        id_sum, ood_sum = _cumulated(inside), _cumulated(outside)
        n_id, n_ood = len(inside), len(outside)
        below = id_sum[self._id_below]
        halves = np.einsum("ij,ij->j", outside, below + id_sum[self._id_up_to])
        id_cut = _first_reaching(id_sum, detection.count_95(n_id))
        ood_cut = _first_reaching(ood_sum[-1] - ood_sum[::-1], detection.count_95(n_ood))
        columns = np.arange(inside.shape[1])
        return {
            "auroc": halves / (2.0 * n_id * n_ood),
            "aupr_in": _mean_precision(inside, id_sum[self._own_id_up_to], ood_sum[self._ood_up_to]),
            "aupr_out": _mean_precision(outside, n_ood - ood_sum[self._own_ood_below], n_id - below),
            "fpr95_id_pos": ood_sum[self._ood_up_to[id_cut - 1], columns] / n_ood,
            "fpr95_ood_pos": 1.0 - id_sum[self._id_below[n_ood - ood_cut], columns] / n_id,
        }


def _cumulated(weights: Float64) -> Float64:
    """Return cumulative weights from 0, ``(n + 1, resamples)``."""
    output = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=output[1:])
    return output


def _first_reaching(sums: Float64, count: int) -> Int64:
    """Return, per resample, the first position at which the cumulative weight is at least ``count``."""
    low, high = np.zeros(sums.shape[1], dtype=np.int64), np.full(sums.shape[1], len(sums) - 1)
    columns = np.arange(sums.shape[1])
    for _ in range(len(sums).bit_length()):  # bisection: sums[low] < count <= sums[high]
        middle = (low + high) // 2
        reached = sums[middle, columns] >= count
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.asarray(high, dtype=np.int64)


def _mean_precision(weights: Float64, own: Float64, other: Float64) -> Float64:
    """Return the weighted mean of own / (own + other): the average precision of each resample."""
    total = own + other
    precision = np.divide(own, total, out=np.zeros_like(own), where=total > 0)
    return np.asarray(np.einsum("ij,ij->j", weights, precision) / len(weights))
