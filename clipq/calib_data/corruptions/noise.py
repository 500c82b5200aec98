"""Noise of sensors and transmission: independent in every pixel and channel, at the strength it has in ImageNet-C whatever the size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import pdtr

from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.planes import Float32, to_u8


def gaussian_noise(picture: Float32, deviation: float, draws: Draws) -> Float32:
    """Add normal noise of the given standard deviation."""
    return np.asarray(picture + deviation * draws.normal(*picture.shape), np.float32)


def shot_noise(picture: Float32, photons: float, draws: Draws) -> Float32:
    """Replace each value by a Poisson count over ``photons``, its mean at white."""
    levels, table = to_u8(picture), _poisson_table(photons)
    found = np.searchsorted(table.ravel(), levels + draws.uniform(*picture.shape), side="right")
    return np.asarray((found - levels.astype(np.int64) * table.shape[1]) / photons, np.float32)


@lru_cache(maxsize=8)
def _poisson_table(photons: float) -> npt.NDArray[np.float64]:
    """Return level + distribution function of the count at that level, ``(256, counts)``: ascending, so that one search finds a count."""
    counts = np.arange(int(photons + 12 * np.sqrt(photons) + 12))
    table = np.minimum(pdtr(counts, np.arange(256)[:, None] / 255 * photons), 1.0)
    table[:, -1] = 1.0
    return np.asarray(np.arange(256)[:, None] + table)


def impulse_noise(picture: Float32, share: float, draws: Draws) -> Float32:
    """Turn this share of all values black or white, as often one as the other ("salt and pepper")."""
    dice = draws.uniform(*picture.shape)
    return np.where(dice < share / 2, np.float32(0), np.where(dice > 1 - share / 2, np.float32(1), picture))


def speckle_noise(picture: Float32, deviation: float, draws: Draws) -> Float32:
    """Add normal noise in proportion to each value."""
    return np.asarray(picture * (1.0 + deviation * draws.normal(*picture.shape)), np.float32)
