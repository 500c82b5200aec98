"""Arrays of ``.npy`` files and ``.npz`` archives, read a few rows at a time: large ones never stand in memory as a whole."""

from __future__ import annotations

import shutil
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clipq.errors import DataError, RefusedError
from clipq.evaluate.metrics.arrays import Array, Lazy, Matrix

KEPT_BYTES = 1 << 28  # smaller arrays are read whole
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


@dataclass(frozen=True, slots=True, eq=False)
class DiskArray:
    """Where an array lies in a file.

    Attributes:
        path: The file.
        offset: Of the first value.
        shape: Of the array.
        dtype: Of its values.
        by_columns: Whether whole columns follow each other (Fortran's order).
        keep: What must live as long as this does, such as the folder of an unpacked copy.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    by_columns: bool = False
    keep: object = None

    def read(self) -> Array:
        """Return the whole array."""
        values = np.fromfile(self.path, self.dtype, count=int(np.prod(self.shape)), offset=self.offset)
        return values.reshape(self.shape, order="F" if self.by_columns else "C")

    def matrix(self, name: str) -> Matrix:
        """Return a small array whole, and of a large one the rows that are asked for, as float32 or float64.

        Only rows that follow each other in the file can be read by themselves: large matrices stored by columns are read whole.
        """
        size = int(np.prod(self.shape)) * (4 if self._is_float32() else 8)
        if size <= KEPT_BYTES or len(self.shape) != 2 or self.by_columns or self.dtype.kind not in "fiu":
            return self.read()
        columns = self.shape[1]

        def rows(wanted: slice) -> Array:
            start, stop, _ = wanted.indices(self.shape[0])
            offset = self.offset + start * columns * self.dtype.itemsize
            block = np.fromfile(self.path, self.dtype, count=(stop - start) * columns, offset=offset).reshape(-1, columns)
            return block.astype(np.float32 if self._is_float32() else np.float64, copy=False)

        return Lazy((self.shape[0], columns), rows, name)

    def _is_float32(self) -> bool:
        return bool(self.dtype.newbyteorder("=") == np.float32)


class _Folder:
    """A temporary folder that is removed with the last that holds it, or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="clipq-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def open_npy(path: Path) -> DiskArray:
    """Return the array of a ``.npy`` file.

    Raises:
        DataError: It is none, or shorter than it says.
        RefusedError: It holds Python objects.
    """
    with path.open("rb") as stream:
        return _described(path, stream, path)


def open_npz(path: Path) -> dict[str, Callable[[], DiskArray]]:
    """Return name -> how to open the array, for every array of an ``.npz`` archive; nothing is read before that.

    An array that was stored without compression is read where it lies; a compressed one is first unpacked, piece by piece, into a
    temporary file that goes away with the array.

    Raises:
        DataError: It is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is not an .npz file", found=error, fix="Write it with numpy.savez.") from error
    return {info.filename.removesuffix(".npy"): lambda info=info: _open_member(path, info) for info in members}  # type: ignore[misc]


def _open_member(path: Path, info: zipfile.ZipInfo) -> DiskArray:
    with zipfile.ZipFile(path) as archive, archive.open(info) as stream:
        if info.compress_type == zipfile.ZIP_STORED:
            while stream.read(1 << 20):  # compares the checksum at the end
                pass
            return _stored_member(path, info)
        folder = _Folder()
        unpacked = folder.path / "array.npy"
        with unpacked.open("wb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)
    with unpacked.open("rb") as stream:
        return _described(unpacked, stream, path, keep=folder)


def _stored_member(path: Path, info: zipfile.ZipInfo) -> DiskArray:
    with path.open("rb") as stream:
        stream.seek(info.header_offset)
        name, extra = struct.unpack("<HH", stream.read(_LOCAL_HEADER)[26:30])
        begin = info.header_offset + _LOCAL_HEADER + name + extra
        stream.seek(begin)
        return _described(path, stream, path, end=begin + info.file_size)


def _described(path: Path, stream: BinaryIO, told: Path, *, end: int | None = None, keep: object = None) -> DiskArray:
    """Return the array whose header comes next in the stream; ``told`` is the file that a message names."""
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
    except ValueError as error:
        raise DataError(f"{told} is not an array", found=error, fix="Write it with numpy.save or numpy.savez.") from error
    if dtype.hasobject:
        raise RefusedError(
            f"{told} holds Python objects, which can run code when they are read", fix="Save plain number arrays with numpy.savez."
        )
    offset = stream.tell()
    here = (path.stat().st_size if end is None else end) - offset
    needed = int(np.prod(shape)) * dtype.itemsize
    if here < needed:
        raise DataError(f"{told} is cut short", found=f"{here:,} bytes of an array", expected=f"{needed:,}", fix="Copy it again.")
    return DiskArray(path, offset, shape, dtype, by_columns, keep)
