"""Estimates of every classification metric: value, interval, paired delta and p-value."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics import calibration, selective
from clipq.evaluate.metrics.accuracy import mean_per_class_recall
from clipq.evaluate.metrics.arrays import Array, Int64
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate, Resampled, collected, compare, resample_counts
from clipq.evaluate.statistics.weighted import ClassRecall, ConfidenceOrder, WidthBins
from clipq.files import sha256_bytes

PER_SAMPLE = ("acc1", "acc5", "nll", "brier")
CALIBRATION = {
    "ece15": calibration.ece,
    "ece_em15": calibration.ece_em15,
    "ece_sweep": calibration.ece_sweep,
    "ece_debiased": calibration.ece_debiased,
    "mce": calibration.mce,
    "signed_gap": calibration.signed_gap,
    "aurc": selective.aurc,
    "eaurc": selective.eaurc,
}


def classification_estimates(
    baseline: Outcomes | None, engine: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Return METRIC key -> estimate for one engine, paired against a baseline where there is one.

    With several engines, ``resample_classification`` once for each and ``compare`` for each pair does less work.
    ``ece_sweep``, ``ece_classwise`` and ``temperature`` are not resampled and have no interval.

    Raises:
        DataError: The two were not run on the same samples.
    """
    resampled = None if baseline is None else resample_classification(baseline, resamples=resamples, seed=seed)
    return compare(resampled, resample_classification(engine, resamples=resamples, seed=seed))


def resample_classification(outcomes: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Return one engine's metrics on the full sample and on every resample.

    Args:
        outcomes: The engine's outcomes.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; the same for all engines that will be compared.
    """
    values = classification_values(outcomes)
    plan = _Plan(outcomes)
    draws = collected(plan.metrics(counts) for counts in resample_counts(len(outcomes), resamples, seed))
    draws = {name: column for name, column in draws.items() if np.isfinite(values.get(name, np.inf))}
    flags = {name: column for name, column in (("acc1", outcomes.correct), ("acc5", outcomes.in_top5)) if column is not None}
    return Resampled(values, draws, len(outcomes), (sha256_bytes(outcomes.labels.tobytes())[:12], resamples, seed), flags)


def classification_values(outcomes: Outcomes) -> dict[str, float]:
    """Return METRIC key -> value on the full sample, without those the outcomes do not allow.

    ``ece_debiased`` needs 30 samples; the columns of ``Outcomes`` that are None take their metrics with them.
    """
    confidence, correct = outcomes.confidence, outcomes.correct
    values = {name: float(column.mean()) for name, column in _per_sample(outcomes).items()}
    values["mean_per_class_recall"] = mean_per_class_recall(outcomes.predictions, outcomes.labels)
    for name, metric in CALIBRATION.items():
        if name != "ece_debiased" or len(outcomes) >= 2 * calibration.BINS:
            values[name] = metric(confidence, correct)
    if outcomes.ece_classwise is not None:
        values["ece_classwise"] = outcomes.ece_classwise
    if outcomes.tempered_confidence is not None and outcomes.temperature is not None:
        values["ece15_after_temperature"] = calibration.ece(outcomes.tempered_confidence, correct)
        values["temperature"] = outcomes.temperature
    return values


class _Plan:
    """What is sorted once per engine and then used for every resample."""

    def __init__(self, outcomes: Outcomes) -> None:
        correct, tempered = outcomes.correct, outcomes.tempered_confidence
        columns = {name: column for name, column in _per_sample(outcomes).items() if np.isfinite(column).all()}
        columns["signed_gap"] = outcomes.confidence - correct
        self._names, self._columns = tuple(columns), np.stack([column.astype(np.float64) for column in columns.values()])
        self._recall = ClassRecall(outcomes.labels, correct)
        self._width = WidthBins(outcomes.confidence, correct)
        self._tempered = None if tempered is None else WidthBins(tempered, correct)
        self._order = ConfidenceOrder(outcomes.confidence, correct)

    def metrics(self, counts: Int64) -> dict[str, float]:
        """Return METRIC key -> value for one resample."""
        # einsum, not @: threads of a BLAS, beside other work, have made this product a hundred times slower
        means = np.einsum("mj,j->m", self._columns, counts) / len(counts)
        values = dict(zip(self._names, means.tolist(), strict=True))
        values["mean_per_class_recall"] = self._recall.mean(counts)
        values["ece15"], values["mce"] = self._width.ece_and_mce(counts)
        if self._tempered is not None:
            values["ece15_after_temperature"], _ = self._tempered.ece_and_mce(counts)
        return values | self._order.metrics(counts)


def _per_sample(outcomes: Outcomes) -> dict[str, Array]:
    """Return the columns whose plain mean is a metric."""
    columns = zip(PER_SAMPLE, (outcomes.correct, outcomes.in_top5, outcomes.nll, outcomes.brier), strict=True)
    return {name: column for name, column in columns if column is not None}
