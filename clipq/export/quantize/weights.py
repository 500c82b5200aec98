"""Symmetric INT8 of a constant weight, one scale per output channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 127  # -128 stays unused, so that the grid is symmetric
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def scale_of(largest: npt.ArrayLike, levels: float = LARGEST) -> npt.NDArray[np.float32]:
    """Return the float32 step that maps ``largest`` (>= 0) to the largest number of the format; 1 where there are only zeros.

    >>> scale_of([254.0, 0.0]).tolist()
    [2.0, 1.0]
    """
    value = np.asarray(largest, np.float64)
    return np.where(value > 0, np.maximum(value / levels, SMALLEST_SCALE), 1.0).astype(np.float32)


def quantize_weight(weight: npt.NDArray[Any], axis: int, limit: int = LARGEST) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the integers in [-limit, limit] and the scales ``(channels,)`` of a weight, channels along ``axis``.

    >>> integers, scales = quantize_weight(np.array([[1.0, -2.0], [0.0, 0.5]]), axis=0)
    >>> integers.tolist()
    [[64, -127], [0, 127]]
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scales = scale_of(np.abs(weight).max(axis=others), limit)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    return np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit).astype(np.int8), scales
