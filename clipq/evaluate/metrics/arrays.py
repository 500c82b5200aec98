"""Checks that every metric makes on its arrays (shape, range, NaN) and the blocks in which it walks a large matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from clipq.errors import DataError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Lazy:
    """A matrix of which only the rows that are asked for stand in memory: read from a file, or computed, each time.

    Attributes:
        shape: ``(n, columns)``.
        make: Slice over the rows to their float32 or float64 values; equal slices give equal values.
        name: What it holds, for errors.
    """

    shape: tuple[int, int]
    make: Callable[[slice], Array]
    name: str

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        """Return some rows.

        Raises:
            DataError: One of them holds NaN or infinity.
        """
        block = self.make(rows)
        _require_finite(block, self.name, rows.start or 0)
        return block


Matrix = Array | Lazy

BLOCK_VALUES = 1 << 17  # 1 MiB of float64: a block and its temporaries stay in the processor's cache


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices over ``rows`` such that a block of ``columns`` wide rows stays small; memory does not grow with the data.

    >>> list(blocks(3, 1 << 17))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    step = max(1, BLOCK_VALUES // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def as_matrix(values: Array, name: str) -> Array:
    """Return a finite float matrix ``(n, classes)`` as it is, without copying float32 or float64.

    Raises:
        DataError: It is empty, not two-dimensional, not numeric, or holds NaN or infinity.
    """
    matrix = np.asarray(values)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise DataError(f"{name} have the wrong shape", found=matrix.shape, expected="(n, classes), neither of them 0")
    if matrix.dtype.kind not in "fiu":
        raise DataError(f"{name} are not numbers", found=matrix.dtype, expected="float32 or float64")
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float64)
    for rows in blocks(*matrix.shape):
        _require_finite(matrix[rows], name, rows.start)
    return matrix


def as_rows(values: Matrix, name: str) -> Matrix:
    """Return what ``as_matrix`` does, and a lazy matrix as it is: its rows are checked whenever they are asked for.

    Raises:
        DataError: As in ``as_matrix``.
    """
    if not isinstance(values, Lazy):
        return as_matrix(values, name)
    if 0 in values.shape:
        raise DataError(f"{name} have the wrong shape", found=values.shape, expected="(n, classes), neither of them 0")
    return values


def _require_finite(block: Array, name: str, start: int) -> None:
    if not np.isfinite(block).all():
        row = start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
        raise DataError(f"{name} hold NaN or infinity", found=f"the first at row {row}", expected="finite numbers")


def as_vector(values: Array, name: str) -> Float64:
    """Return a finite float64 vector.

    Raises:
        DataError: It is empty, not one-dimensional, not numeric, or holds NaN or infinity.
    """
    vector = np.asarray(values)
    if vector.ndim != 1 or len(vector) == 0:
        raise DataError(f"{name} have the wrong shape", found=vector.shape, expected="(n,), n at least 1")
    if vector.dtype.kind not in "fiub":
        raise DataError(f"{name} are not numbers", found=vector.dtype, expected="float64")
    vector = vector.astype(np.float64)
    if not np.isfinite(vector).all():
        raise DataError(f"{name} hold NaN or infinity", found=f"the first at {np.flatnonzero(~np.isfinite(vector))[0]}")
    return vector


def as_labels(values: Array, name: str, n: int | None = None, classes: int | None = None) -> Int64:
    """Return class indices as int64.

    Raises:
        DataError: They are not integers, not ``n`` of them, negative, or not below ``classes``.
    """
    labels = np.asarray(values)
    if labels.ndim != 1 or len(labels) == 0 or (n is not None and len(labels) != n):
        raise DataError(f"{name} have the wrong shape", found=labels.shape, expected=f"({'n' if n is None else n},)")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{name} are not integers", found=labels.dtype, expected="class indices from 0")
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{name} are outside the range of classes", found=f"{low} to {high}", expected=limit)
    return labels


@overload
def as_probabilities(values: Array, name: str = "probabilities") -> Array: ...


@overload
def as_probabilities(values: Matrix, name: str = "probabilities") -> Matrix: ...


def as_probabilities(values: Matrix, name: str = "probabilities") -> Matrix:
    """Return a matrix of probabilities ``(n, classes)``; nothing is rescaled or clipped.

    Raises:
        DataError: A value leaves [0, 1], or a row does not sum to 1 within 1e-3 (float16 softmax outputs pass).
    """
    matrix = as_rows(values, name)
    for rows in blocks(*matrix.shape):
        block = matrix[rows]
        if block.min() < 0 or block.max() > 1:
            raise DataError(f"{name} leave [0, 1]", found=f"{block.min():.6g} to {block.max():.6g}", fix="Are these logits? Name them so.")
        sums = block.sum(axis=1, dtype=np.float64)
        worst = int(np.abs(sums - 1).argmax())
        if abs(sums[worst] - 1) > 1e-3:
            raise DataError(
                f"{name} do not sum to 1", found=f"{sums[worst]:.6g} in row {rows.start + worst}", fix="Give softmax outputs, or logits."
            )
    return matrix


def as_confidence(confidence: Array, correct: Array) -> tuple[Float64, Float64]:
    """Return confidences in [0, 1] and whether each prediction was right as 0.0 or 1.0, both float64 ``(n,)``.

    Raises:
        DataError: The lengths differ, a confidence leaves [0, 1], or ``correct`` holds other values than 0 and 1.
    """
    values, hits = as_vector(confidence, "confidences"), as_vector(correct, "correct flags")
    if len(values) != len(hits):
        raise DataError("confidences and correct flags differ in number", found=f"{len(values)} and {len(hits)}")
    if values.min() < 0 or values.max() > 1:
        raise DataError("confidences leave [0, 1]", found=f"{values.min():.6g} to {values.max():.6g}")
    if not np.isin(hits, (0.0, 1.0)).all():
        raise DataError("correct flags are not 0 or 1", found=sorted(set(hits.tolist()))[:4])
    return values, hits
