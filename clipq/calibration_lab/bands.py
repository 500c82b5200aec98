"""Two spreads of one figure: over the draws of calibration images (the band), and over the test images (the sampling interval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipq.calibration_lab.cells import Answered
from clipq.evaluate.metrics.arrays import Float64, Int64
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions
from clipq.evaluate.statistics.bootstrap import Estimate, Resampled, compare, resample_counts
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.statistics.ood import resample_ood
from clipq.evaluate.statistics.small_samples import no_narrower

LEVELS = ("acc1", "ece15", "signed_gap")
METRICS = ("disagreement", *LEVELS, "auroc", "cosine_centred")  # auroc only with OOD images
SHARES = ("disagreement", "acc1")  # of images: what none of n shows may still happen in 3 of n


def resampled(found: Answered, fp32: Answered, labels: Int64, *, resamples: int, seed: int) -> Resampled:
    """Return every metric of one graph on all test images and on every resample of them.

    Args:
        found: What the graph answers.
        fp32: What the FP32 graph answers to the same images.
        labels: ``(n,)``.
        resamples: Number of resamples.
        seed: Of the resamples; the same for all graphs, so that they are paired.
    """
    outcomes = outcomes_from_predictions(labels, found.predictions, found.confidence)
    parts = [
        resample_classification(outcomes, resamples=resamples, seed=seed, metrics=LEVELS, only=True),
        _means(_moved(found, fp32), resamples, seed),
    ]
    if len(found.ood_scores):
        scores = resample_ood(found.id_scores, found.ood_scores, resamples=resamples, seed=seed, metrics=["auroc"])
        parts.append(scores.only(["auroc"]))
    names = [name for name in METRICS if any(name in part.values for part in parts)]
    owner = {name: part for part in parts for name in part.values}
    return Resampled(
        values={name: owner[name].values[name] for name in names},
        draws={name: owner[name].draws[name] for name in names},
        n=len(labels),
        key=tuple(piece for part in parts for piece in part.key),
        influence={name: owner[name].influence[name] for name in names if name in owner[name].influence},
    )


def mean_over_draws(parts: Sequence[Resampled]) -> Resampled:
    """Return the mean of several graphs on the same images, resample by resample; its interval is that of the test images alone."""
    first = parts[0]
    return Resampled(
        values={name: float(np.mean([part.values[name] for part in parts])) for name in first.values},
        draws={name: np.mean([part.draws[name] for part in parts], axis=0) for name in first.draws},
        n=first.n,
        key=first.key,
        influence={
            name: tuple(np.mean(sides, axis=0) for sides in zip(*(part.influence[name] for part in parts), strict=True))
            for name in first.influence
        },
    )


def levels(fp32: Resampled) -> dict[str, dict[str, Any]]:
    """Return FP32's own figures with their intervals; those that compare with FP32 are left out."""
    found = compare(None, fp32)
    return {name: {"value": one.value, "ci95": list(one.ci95 or ())} for name, one in found.items() if name in {*LEVELS, "auroc"}}


def bands(parts: Sequence[Resampled], fp32: Resampled) -> dict[str, dict[str, Any]]:
    """Return METRIC -> both spreads of one form, source and number of images.

    ``values`` are those of the draws, ``mean``, ``min``, ``max`` and ``sd`` (with n - 1) are over them; ``ci95`` is the interval of the
    mean over test images, ``delta`` and ``delta_ci95`` the same of its difference from FP32, paired. ``band_within_interval`` tells
    whether every draw's difference from FP32 lies inside ``delta_ci95``.

    Args:
        parts: One per draw, at least two.
        fp32: The FP32 graph.
    """
    estimates = compare(fp32, mean_over_draws(parts))
    return {name: _band([part.values[name] for part in parts], fp32.values[name], estimate, name) for name, estimate in estimates.items()}


def shift(own: Sequence[Resampled], foreign: Sequence[Resampled]) -> dict[str, dict[str, Any]]:
    """Return METRIC -> what other calibration images change: the mean over draws less that of the own ones, paired on the test images.

    ``bands_apart`` tells whether no value of one lies between values of the other, so that the draws alone do not explain the difference.
    """
    moved = compare(mean_over_draws(own), mean_over_draws(foreign))
    found = {}
    for name, estimate in moved.items():
        first, second = ([part.values[name] for part in parts] for parts in (own, foreign))
        ends = _ends(name, estimate.delta, estimate.delta_ci95, estimate.n)
        apart = max(first) < min(second) or max(second) < min(first)
        found[name] = {"delta": estimate.delta, "delta_ci95": ends, "bands_apart": apart}
    return found


def enough(rows: Mapping[int, Mapping[str, Mapping[str, Any]]], metric: str = "disagreement") -> int | None:
    """Return the smallest number of images from which on no draw is worse than the test images can tell from the largest number.

    That is: the largest value of every draw with so many images or more is at most the upper end of the interval at the largest number.

    Args:
        rows: Number of images -> what ``bands`` says.
        metric: One that is better when low.

    Returns:
        The number, or None where even the largest number has a draw beyond its own interval.
    """
    numbers = sorted(rows, reverse=True)
    limit, found = rows[numbers[0]][metric]["ci95"][1], None
    for n in numbers:
        if rows[n][metric]["max"] > limit:
            break
        found = n
    return found


def _band(values: list[float], before: float, estimate: Estimate, name: str) -> dict[str, Any]:
    interval, own = _ends(name, estimate.delta, estimate.delta_ci95, estimate.n), list(estimate.ci95 or ())
    if name == "disagreement":  # a share whose difference from FP32's is itself
        interval = own = [max(0.0, interval[0]), min(1.0, interval[1])]
    low, high = min(values), max(values)
    return {
        "values": values,
        "mean": estimate.value,
        "min": low,
        "max": high,
        "sd": float(np.std(values, ddof=1)),
        "ci95": own,
        "delta": estimate.delta,
        "delta_ci95": interval,
        "band_within_interval": bool(low - before >= interval[0] and high - before <= interval[1]),
    }


def _ends(name: str, value: float | None, ends: tuple[float, float] | None, n: int) -> list[float]:
    if value is None or ends is None:
        return []
    return list(no_narrower(value, ends, n) if name in SHARES else ends)


def _moved(found: Answered, fp32: Answered) -> dict[str, Float64]:
    """Return METRIC -> what each image adds to it, for the metrics that compare with FP32 image by image."""
    return {"disagreement": (found.predictions != fp32.predictions).astype(np.float64), "cosine_centred": found.cosines}


def _means(columns: Mapping[str, Float64], resamples: int, seed: int) -> Resampled:
    names, matrix = tuple(columns), np.stack(list(columns.values()))
    n = matrix.shape[1]
    draws = np.stack([np.einsum("mj,j->m", matrix, counts) / n for counts in resample_counts(n, resamples, seed)], axis=1)
    means = matrix.mean(axis=1)
    return Resampled(
        values=dict(zip(names, means.tolist(), strict=True)),
        draws=dict(zip(names, draws, strict=True)),
        n=n,
        key=(),
        influence={name: (column - mean,) for name, column, mean in zip(names, matrix, means, strict=True)},
    )
