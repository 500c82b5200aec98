"""Percentiles of latency with intervals that know that neighbouring calls resemble each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000


def interval(samples_s: Sequence[float], percentile: float, block: int, *, seed: int = 0) -> list[float]:
    """Return the 95 % interval of a percentile by resampling whole turns: the calls of one turn are not independent.

    Args:
        samples_s: Seconds of every call, turn after turn.
        percentile: 0 to 100.
        block: Calls of one turn.
        seed: Of the resampling.
    """
    turns = np.asarray(samples_s[: len(samples_s) // block * block], np.float64).reshape(-1, block)
    rng = np.random.default_rng(seed)
    draws = [np.percentile(turns[rng.integers(0, len(turns), len(turns))], percentile) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return [float(low), float(high)]


def with_intervals(summary: Mapping[str, Any], block: int) -> dict[str, Any]:
    """Return a latency summary with ``p50_s_ci95`` and so on in place of its raw samples; a percentile that is None has None."""
    samples = summary["samples_s"]
    made = {name: value for name, value in summary.items() if name != "samples_s"}
    for percentile in (50, 90, 99):
        known = summary[f"p{percentile}_s"] is not None
        made[f"p{percentile}_s_ci95"] = interval(samples, percentile, block) if known else None
    return made


def ratio(slow_s: Sequence[float], fast_s: Sequence[float], block: int, *, seed: int = 0) -> dict[str, Any]:
    """Return how many times as fast the second is by the median, with a 95 % interval from resampled turns.

    Both were measured in turns, so the same turns are drawn for both.
    """
    count = min(len(slow_s), len(fast_s)) // block
    slow, fast = (np.asarray(values[: count * block], np.float64).reshape(count, block) for values in (slow_s, fast_s))
    rng = np.random.default_rng(seed)

    def of(rows: npt.NDArray[np.int64]) -> float:
        return float(np.median(slow[rows]) / np.median(fast[rows]))

    draws = [of(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": of(np.arange(count)), "ci95": [float(low), float(high)], "turns": count}
