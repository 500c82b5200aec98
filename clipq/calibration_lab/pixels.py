"""Every image decoded once into a file of 8-bit pixels, from which any draw is read as often as wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clipq.calib_data.index import DataIndex, Int64
from clipq.calib_data.pipeline import MAX_SKIPPED_FRACTION, pixels_of
from clipq.calib_data.preprocess import Preprocess, UInt8
from clipq.calib_data.source import Sample, Source
from clipq.engines.base import Float32
from clipq.errors import DataError
from clipq.evaluate.embed import in_order
from clipq.evaluate.metrics.arrays import Bool
from clipq.files import atomic_path, sha256_json
from clipq.progress import bar


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The decoded images of an index.

    Attributes:
        stored: uint8 ``(n, 3, height, width)``, on disk; rows that are not readable are 0.
        preprocess: Turns them into what a tower takes.
    """

    stored: UInt8
    preprocess: Preprocess

    def batches(self, rows: Int64, size: int) -> Iterator[Float32]:
        """Yield normalised pixels of some rows, float32 ``(up to size, 3, height, width)``, in order."""
        for start in range(0, len(rows), size):
            yield self.preprocess.normalise(self.stored[rows[start : start + size]])


class Decoder:
    """Decodes data sets, each once, and remembers where.

    Args:
        preprocess: Encoded image to pixels.
        workers: Threads that decode.
        folder: For the pixels, ``n * 3 * height * width`` bytes of each data set; who is done with them removes it.
        kept: For the list of readable images, which outlives the pixels.
    """

    def __init__(self, preprocess: Preprocess, workers: int, folder: Path, kept: Path) -> None:
        self._preprocess, self._workers, self._folder, self._kept = preprocess, workers, folder, kept

    def readable(self, source: Source, index: DataIndex) -> Bool:
        """Return which images of an index can be decoded, bool ``(n,)``.

        Raises:
            DataError: More than 1 % cannot, or the data set changed since it was indexed.
        """
        path = self._kept / f"readable-{self._name(index)}.npy"
        if not path.exists():
            self.pixels(source, index)
        flags: Bool = np.load(path, allow_pickle=False)
        return flags

    def pixels(self, source: Source, index: DataIndex) -> Pixels:
        """Return the pixels of an index.

        Raises:
            DataError: As in ``readable``.
        """
        path = self._folder / f"pixels-{self._name(index)}.npy"
        if not path.exists():
            self._decode(source, index, path)
        return Pixels(np.load(path, mmap_mode="r", allow_pickle=False), self._preprocess)

    def _name(self, index: DataIndex) -> str:
        return sha256_json([index.digest, self._preprocess.sha256()])[:32]

    def _decode(self, source: Source, index: DataIndex, path: Path) -> None:
        flags = np.zeros(len(index), np.bool_)
        with atomic_path(path) as part:
            stored = np.lib.format.open_memmap(part, "w+", np.uint8, (len(index), 3, *self._preprocess.size))
            samples = _checked(source.read(index.positions.tolist()), index)
            decoded = in_order(partial(_pixels_or_none, preprocess=self._preprocess), samples, self._workers)
            with bar(f"Decoding {index.data_id}", len(index)) as advance:
                for row, made in enumerate(decoded):
                    if made is not None:
                        stored[row], flags[row] = made, True
                    advance(1)
            _refuse_many(flags, index)
            stored.flush()
            with atomic_path(self._kept / f"readable-{self._name(index)}.npy") as flag_part, flag_part.open("wb") as stream:
                np.save(stream, flags, allow_pickle=False)


def _pixels_or_none(sample: Sample, preprocess: Preprocess) -> UInt8 | None:
    try:
        return pixels_of(sample, preprocess)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds on broken bytes; the image is counted and listed
        return None


def _checked(samples: Iterator[Sample], index: DataIndex) -> Iterator[Sample]:
    for row, expected in enumerate(index.ids):
        sample = next(samples, None)
        if sample is None or sample.id != expected:
            raise DataError(f"{index.data_id} changed while it was read", found=f"another image at row {row}", fix="Run again.")
        yield sample


def _refuse_many(flags: Bool, index: DataIndex) -> None:
    bad = np.flatnonzero(~flags)
    if len(bad) > MAX_SKIPPED_FRACTION * len(index):
        raise DataError(
            f"more than 1 % of the {len(index)} images of {index.data_id} are unreadable",
            found=f"{len(bad)}, the first {index.ids[bad[0]]}",
            fix="Repair or remove them.",
        )
