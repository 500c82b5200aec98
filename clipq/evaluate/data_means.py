"""Means over the plain ID data sets: one number per engine and metric, as papers report accuracy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clipq.evaluate.correction import add_holm
from clipq.evaluate.entries import measurements
from clipq.evaluate.statistics.bootstrap import Resampled, compare
from clipq.evaluate.statistics.data_mean import mean_of_data


def sets_to_average(data_ids: Sequence[str], altered: Collection[str]) -> list[str]:
    """Return the data sets that are no alteration of another; none where there are fewer than two.

    >>> sets_to_average(["a", "a-noise", "b"], {"a-noise"})
    ['a', 'b']
    """
    plain = [data for data in data_ids if data not in altered]
    return plain if len(plain) > 1 else []


def data_means(resampled: Mapping[str, Mapping[str, Resampled]], data_ids: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return ``report["means"]``: every data set counts the same, however many images it has.

    Args:
        resampled: ENGINE -> DATA -> metrics with their resamples, the baseline first.
        data_ids: The data sets to average; empty for no means.
        seed: Of the resamples.

    Returns:
        ``data`` -> the data sets; ``results`` -> ENGINE -> METRIC -> measurement. Empty where nothing is averaged.
    """
    if not data_ids:
        return {}
    results: dict[str, dict[str, Any]] = {}
    baseline: Resampled | None = None
    for engine, own in resampled.items():
        mean = mean_of_data([own[data] for data in data_ids], seed=seed)
        results[engine] = measurements(compare(baseline, mean))
        baseline = baseline or mean
    add_holm(results)
    return {"data": list(data_ids), "results": results}
