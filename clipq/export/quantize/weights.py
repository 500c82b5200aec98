"""Symmetric integers of a constant weight, one scale per output channel: to the nearest, with the largest value or the best as range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 127  # -128 stays unused, so that the grid is symmetric
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_STEPS_PER_OCTAVE, _OCTAVES = 32, 2  # of the ranges that mse_scales tries
_CACHED = 1 << 17  # values worked on at once


def scale_of(largest: npt.ArrayLike, levels: float = LARGEST) -> npt.NDArray[np.float32]:
    """Return the float32 step that maps ``largest`` (>= 0) to the largest number of the format; 1 where there are only zeros.

    >>> scale_of([254.0, 0.0]).tolist()
    [2.0, 1.0]
    """
    value = np.asarray(largest, np.float64)
    return np.where(value > 0, np.maximum(value / levels, SMALLEST_SCALE), 1.0).astype(np.float32)


def quantize_weight(weight: npt.NDArray[Any], axis: int, limit: int = LARGEST) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the integers in [-limit, limit] and the scales ``(channels,)`` of a weight, channels along ``axis``; nothing saturates.

    >>> integers, scales = quantize_weight(np.array([[1.0, -2.0], [0.0, 0.5]]), axis=0)
    >>> integers.tolist()
    [[64, -127], [0, 127]]
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scales = scale_of(np.abs(weight).max(axis=others), limit)
    return round_weight(weight, scales, axis, limit), scales


def round_weight(weight: npt.NDArray[Any], scales: npt.NDArray[np.float32], axis: int, limit: int = LARGEST) -> npt.NDArray[np.int8]:
    """Return the nearest integers in [-limit, limit] of a weight whose channels along ``axis`` have these scales.

    >>> round_weight(np.array([[1.0, -2.0], [0.0, 0.5]]), np.float32([0.5, 0.1]), axis=0, limit=3).tolist()
    [[2, -3], [0, 3]]
    """
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    return np.clip(np.rint(weight / scales.reshape(shape)), -limit, limit).astype(np.int8)


def mse_scales(weight: npt.NDArray[Any], axis: int, limit: int = LARGEST) -> npt.NDArray[np.float32]:
    """Return the scale ``(channels,)`` of least squared error for each channel along ``axis``, of 65 tried.

    Ranges from the largest value down to a quarter of it are tried, 32 per octave; what lies beyond saturates. Nagel et al. 2021,
    arXiv 2106.08295, section 3.2, searches the range of least squared error likewise.

    >>> mse_scales(np.array([[1.0] * 99 + [1.9]]), axis=0, limit=1).tolist()  # 0.95 would keep 1.9 and cost all the others
    [1.0075...]
    """
    rows = np.ascontiguousarray(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), np.float32)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    best = np.full(len(rows), np.inf)
    chosen = scale_of(largest, limit)
    for factor in 2.0 ** (-np.arange(_OCTAVES * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE):
        scales = scale_of(largest * factor, limit)
        error = np.concatenate([_squared_error(part, scale, limit) for part, scale in _parts(rows, scales)])
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scales, chosen)
    return chosen.astype(np.float32)


def _parts(rows: npt.NDArray[np.float32], scales: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[np.float32], ...]]:
    """Yield rows and scales in parts that fit a processor's cache."""
    size = max(1, _CACHED // max(1, rows.shape[1]))
    for start in range(0, len(rows), size):
        yield rows[start : start + size], scales[start : start + size, None]


def _squared_error(rows: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.float64]:
    rounded = rows / scales
    np.rint(rounded, out=rounded)
    np.clip(rounded, -limit, limit, out=rounded)
    rounded *= scales
    rounded -= rows
    return np.einsum("ij,ij->i", rounded, rounded).astype(np.float64)
