"""The mean of a metric over several data sets, with its resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Float64
from clipq.evaluate.statistics.bootstrap import Resampled


def mean_of_data(parts: Sequence[Resampled], *, seed: int = 0) -> Resampled:
    """Return the unweighted mean over data sets of every metric that all of them have.

    The images of two data sets are independent, but the resamples of equally large ones drew the same rows. Those of each data set are
    therefore put into an order of its own, the same for every engine, so that engines stay paired and data sets do not.

    Args:
        parts: One engine on each data set, in an order that is the same for every engine.
        seed: Of the orders.

    Raises:
        DataError: There is no data set, or they were resampled differently often.
    """
    if not parts:
        raise DataError("a mean over data sets needs some", found=0, expected="at least 1")
    names = [name for name in parts[0].values if all(name in part.values for part in parts)]
    drawn = [name for name in names if all(name in part.draws for part in parts)]
    lengths = {len(part.draws[name]) for part in parts for name in drawn}
    if len(lengths) > 1:
        raise DataError("data sets were resampled differently often", found=sorted(lengths), expected="equally often")
    orders = [np.random.default_rng([seed, place]).permutation(max(lengths, default=0)) for place in range(len(parts))]
    draws: dict[str, Float64] = {
        name: np.mean([part.draws[name][order] for part, order in zip(parts, orders, strict=True)], axis=0) for name in drawn
    }
    influence: dict[str, tuple[Float64, ...]] = {
        name: tuple(one / len(parts) for part in parts for one in part.influence[name])
        for name in drawn
        if all(name in part.influence for part in parts)
    }
    values = {name: float(np.mean([part.values[name] for part in parts])) for name in names}
    key = tuple(piece for part in parts for piece in part.key)
    return Resampled(values, draws, sum(part.n for part in parts), key, influence=influence)
