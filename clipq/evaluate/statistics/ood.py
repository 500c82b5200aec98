"""Estimates of every OOD detection metric: value, interval, paired delta and p-value; ID and OOD samples are resampled apart."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from clipq.errors import DataError
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
TRANSFER = ("tpr_transfer", "fpr_transfer")


def ood_estimates(
    baseline: tuple[Array, Array] | None,
    engine: tuple[Array, Array],
    *,
    tuned_on: Array | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return METRIC key -> estimate for one score of one engine, paired against the baseline's same score where there is one.

    With a baseline, or with ``tuned_on``, the metrics of ``TRANSFER`` are there too.

    Args:
        baseline: ``(id_scores, ood_scores)``, higher = more OOD.
        engine: The same of the engine, for the same samples in the same order.
        tuned_on: ``(n_id,)`` ID scores that a deployed threshold was chosen on; None: the baseline's where there is one.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        DataError: The numbers of samples differ, or a score is not finite.
    """
    tuned = baseline[0] if tuned_on is None and baseline is not None else tuned_on
    before = None if baseline is None else resample_ood(*baseline, tuned_on=tuned, resamples=resamples, seed=seed)
    return compare(before, resample_ood(*engine, tuned_on=tuned, resamples=resamples, seed=seed))


def resample_ood(  # noqa: PLR0913 - each is one choice of the caller
    id_scores: Array,
    ood_scores: Array,
    *,
    tuned_on: Array | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    metrics: Collection[str] | None = None,
    stream: int = 1,
) -> Resampled:
    """Return the detection metrics of one score on the full samples and on every resample; make it once per engine and score.

    With ``tuned_on`` there are ``tpr_transfer`` and ``fpr_transfer`` too: the shares of ID and of OOD samples that are accepted with the
    threshold that accepts 95 % of those scores. In every resample the threshold is chosen anew, from the same images as the rest. The
    baseline's own pair of shares is that of its own threshold, so a delta says what changes when the engine is replaced and the threshold
    is not; beside it, ``fpr95_id_pos`` is what the engine does with a threshold of its own.

    Args:
        id_scores: ``(n_id,)``, higher = more OOD.
        ood_scores: ``(n_ood,)``.
        tuned_on: ``(n_id,)`` the same images' scores that the threshold was chosen on, usually the baseline's.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; the same for all engines that will be compared.
        metrics: METRIC keys to resample; None for all. The values of the others are there all the same.
        stream: Which OOD set this is, from 1: sets are drawn independently of each other, the ID images alike for all.

    Raises:
        DataError: A score is not finite, or ``tuned_on`` is of another number of images.
    """
    inside, outside = as_vector(id_scores, "ID scores"), as_vector(ood_scores, "OOD scores")
    values = {name: metric(inside, outside) for name, metric in METRICS.items()}
    wanted = {*METRICS} if metrics is None else {*metrics}
    tuned = None
    if tuned_on is not None:
        tuned = _tuning_scores(tuned_on, len(inside))
        threshold = detection.threshold_id_pos(tuned)
        values |= {name: detection.accepted_share(side, threshold) for name, side in zip(TRANSFER, (inside, outside), strict=True)}
        wanted |= {*TRANSFER} if metrics is None else set()
    plan = _Plan(inside, outside, wanted, tuned)
    inside_counts = resample_counts(len(inside), resamples, seed, stream=0)
    outside_counts = resample_counts(len(outside), resamples, seed, stream=stream)
    draws = collected(plan.metrics(*counts) for counts in zip(inside_counts, outside_counts, strict=True))
    key = (len(inside), len(outside), resamples, seed, stream)
    influence = {"auroc": tuple(side - side.mean() for side in placements(inside, outside))} if "auroc" in draws else {}
    return Resampled(values, draws, len(inside) + len(outside), key, influence=influence)


class _Plan:
    """Where the sorted scores of each side stand among those of the other, found once and used for every resample."""

    def __init__(self, inside: Float64, outside: Float64, wanted: Collection[str], tuned: Float64 | None = None) -> None:
        self._wanted = wanted
        self._id_order, self._ood_order = np.argsort(inside, kind="stable"), np.argsort(outside, kind="stable")
        inside, outside = inside[self._id_order], outside[self._ood_order]
        self._id_below, self._id_up_to = _positions(inside, outside)
        _, self._ood_up_to = _positions(outside, inside)
        _, self._own_id_up_to = _positions(inside, inside)
        self._own_ood_below, _ = _positions(outside, outside)
        self._transfer = None if tuned is None or not {*TRANSFER} & {*wanted} else _Transfer(tuned, inside, outside)

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
        moved = {} if self._transfer is None else self._transfer.shares(id_counts, id_sum, ood_sum)
        return {name: compute() for name, compute in table.items() if name in self._wanted} | moved


class _Transfer:
    """Where the scores that a threshold is chosen on stand among the sorted scores of both sides."""

    def __init__(self, tuned: Float64, inside: Float64, outside: Float64) -> None:
        self._order = np.argsort(tuned, kind="stable")
        ordered = tuned[self._order]
        self._id_up_to, self._ood_up_to = (_positions(side, ordered)[1] for side in (inside, outside))

    def shares(self, id_counts: Int64, id_sum: Int64, ood_sum: Int64) -> dict[str, float]:
        """Return the accepted shares in one resample; the sums are cumulative counts of the sorted scores, from 0."""
        cut = int(np.searchsorted(np.cumsum(id_counts[self._order]), detection.count_95(len(id_counts))))
        accepted = id_sum[self._id_up_to[cut]] / id_sum[-1], ood_sum[self._ood_up_to[cut]] / ood_sum[-1]
        return {name: float(share) for name, share in zip(TRANSFER, accepted, strict=True)}


def _tuning_scores(scores: Array, n: int) -> Float64:
    tuned = as_vector(scores, "ID scores of the threshold")
    if len(tuned) != n:
        raise DataError("the threshold's ID scores are of other images", found=f"{len(tuned)} scores", expected=f"{n}, one per image")
    return tuned


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
