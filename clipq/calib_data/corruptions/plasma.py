"""Clouds by the diamond-square algorithm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipq.calib_data.corruptions.draws import Draws


def plasma(side: int, decay: float, draws: Draws) -> npt.NDArray[np.float64]:
    """Return a cloud in [0, 1] by the diamond-square algorithm on a torus, ``(side, side)``; ``side`` is a power of two.

    Each halving of the step divides the amplitude by ``decay`` squared, as in ImageNet-C.
    """
    field, step, amplitude = np.zeros((side, side)), side, 1e4
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        beside = corners + np.roll(corners, -1, axis=0)
        middles = (beside + np.roll(beside, -1, axis=1)) / 4 + draws.uniform(*corners.shape, low=-amplitude, high=amplitude)
        across = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        down = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        field[half::step, half::step] = middles
        field[::step, half::step] = across / 4 + draws.uniform(*corners.shape, low=-amplitude, high=amplitude)
        field[half::step, ::step] = down / 4 + draws.uniform(*corners.shape, low=-amplitude, high=amplitude)
        step, amplitude = half, amplitude / decay**2
    field -= field.min()
    return np.asarray(field / field.max())
