"""How far outputs are from FP32 PyTorch's, the limits of an exported graph, and what another machine may add to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.engines.base import Float32

BATCH_SIZES = (1, 5)  # of the golden inputs, in turn: dynamic quantization makes an output depend on its batch
MAX_RELATIVE_ERROR = 1e-3  # of the largest output; two FP32 runtimes differ by 1e-7 to 1e-5, a wrong graph by more than 1e-2
MIN_COSINE = 0.99999
MIN_CENTRED_COSINE = 0.999  # of what is left without the common mean, where a small wrong term shows first
FIGURES = ("max_abs_error", "max_abs_output", "min_cosine", "min_centred_cosine")


def compare_outputs(found: Float32, expected: Float32) -> dict[str, float]:
    """Return how far outputs ``(n, d)`` are from PyTorch's; ``found`` must be finite.

    Returns:
        ``max_abs_error`` (largest difference of one number), ``max_abs_output`` (largest output of PyTorch, its scale),
        ``min_cosine`` and ``min_centred_cosine`` (over the rows; centred on the mean of ``expected``).
    """
    mean = expected.mean(axis=0, dtype=np.float64)
    return {
        "max_abs_error": float(np.abs(found - expected).max()),
        "max_abs_output": float(np.abs(expected).max()),
        "min_cosine": float(row_cosines(found, expected).min()),
        "min_centred_cosine": float(row_cosines(found - mean, expected - mean).min()),
    }


def row_cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the cosine of each row of ``a`` with the same row of ``b``, float64 ``(n,)`` in [-1, 1] up to rounding."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine: npt.NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosine


def export_limits(max_abs_output: float) -> dict[str, float]:
    """Return what an FP32 graph must hold at its export: figure -> the largest error, the smallest cosine."""
    return {
        "max_abs_error": MAX_RELATIVE_ERROR * max_abs_output,
        "min_cosine": MIN_COSINE,
        "min_centred_cosine": MIN_CENTRED_COSINE,
    }


def limits_elsewhere(at_export: Mapping[str, float]) -> dict[str, float]:
    """Return how far the same graph may be from PyTorch on another machine: figure -> the largest error, the smallest cosine.

    Another runtime or processor rounds otherwise. What it changes is at most what rounding did to the graph at its export, once more,
    and what two FP32 runtimes may differ by (``export_limits``). Both are distances from PyTorch and obey the triangle inequality, so
    errors are added as they are and cosines as angles: ``2 * at export + the limit of an FP32 graph``.

    Args:
        at_export: The figures of ``compare_outputs`` that the export measured.

    >>> limits = limits_elsewhere({"max_abs_error": 0.1, "max_abs_output": 2.0, "min_cosine": 0.98, "min_centred_cosine": 0.9})
    >>> {name: round(value, 4) for name, value in limits.items()}
    {'max_abs_error': 0.202, 'min_cosine': 0.919, 'min_centred_cosine': 0.5842}
    """
    gate = export_limits(at_export["max_abs_output"])
    limits = {"max_abs_error": 2 * at_export["max_abs_error"] + gate["max_abs_error"]}
    for name in ("min_cosine", "min_centred_cosine"):
        angle = 2 * math.acos(min(1.0, max(-1.0, at_export[name]))) + math.acos(gate[name])
        limits[name] = math.cos(min(angle, math.pi))
    return limits


def beyond(figures: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Return the names of the figures that are beyond their limit; a figure that is not a number is."""
    kept = {name: figures[name] <= limit if name == "max_abs_error" else figures[name] >= limit for name, limit in limits.items()}
    return [name for name, inside in kept.items() if not inside]


def golden_blocks(rows: int) -> Iterator[slice]:
    """Yield the batches that golden inputs are run in: those of ``BATCH_SIZES``, which the export measured, then the rest in one.

    >>> list(golden_blocks(8))
    [slice(0, 1, None), slice(1, 6, None), slice(6, 8, None)]
    """
    start = 0
    for size in (*BATCH_SIZES, rows):
        stop = min(start + size, rows)
        if stop > start:
            yield slice(start, stop)
        start = stop
