"""Means over the near OOD sets, over the far ones and over all, as OpenOOD v1.5 reports them."""

from __future__ import annotations

from collections.abc import Mapping

from clipq.evaluate.statistics.bootstrap import Estimate, Resampled, compare
from clipq.evaluate.statistics.ood_mean import mean_of_sets

Scored = Mapping[tuple[str, str], Resampled]  # (OOD data, score)


def sets_to_average(distances: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Return ``near``, ``far`` and ``all`` -> OOD data ids; the first two where sets are named so, ``all`` where there are several sets.

    Args:
        distances: OOD data id -> ``near``, ``far`` or None.

    >>> sets_to_average({"a": "near", "b": None})
    {'near': ['a'], 'all': ['a', 'b']}
    """
    named = {distance: [data for data, own in distances.items() if own == distance] for distance in ("near", "far")}
    every = {"all": list(distances)} if len(distances) > 1 else {}
    return {name: sets for name, sets in (named | every).items() if sets}


def mean_estimates(baseline: Scored | None, engine: Scored, groups: Mapping[str, list[str]]) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return group -> SCORE -> METRIC -> estimate, paired with the baseline's mean where there is a baseline.

    Args:
        baseline: The baseline's resampled scores.
        engine: The engine's.
        groups: Group -> OOD data ids; scores that one of them lacks have no mean.
    """
    return {group: _estimates(baseline, engine, sets) for group, sets in groups.items()}


def _estimates(baseline: Scored | None, engine: Scored, sets: list[str]) -> dict[str, dict[str, Estimate]]:
    found = {}
    for score in dict.fromkeys(score for data, score in engine if data in sets):
        if (own := _mean(engine, sets, score)) is not None:
            found[score] = compare(None if baseline is None else _mean(baseline, sets, score), own)
    return found


def _mean(scored: Scored, sets: list[str], score: str) -> Resampled | None:
    parts = [scored[data, score] for data in sets if (data, score) in scored]
    return mean_of_sets(parts) if len(parts) == len(sets) else None
