"""Images of a data set decoded once for many changes: resized and cropped, in a temporary file beside the embeddings."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipq.calib_data.index import DataIndex
from clipq.calib_data.pipeline import pixels_of
from clipq.calib_data.pixels import as_ppm
from clipq.calib_data.preprocess import Preprocess, UInt8
from clipq.calib_data.source import Sample, Source
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import in_order
from clipq.progress import bar


class PreparedSource:
    """The indexed images of a source as pictures of the size the model takes; preprocessing leaves them as they are.

    Args:
        source: Where they are from.
        index: Which of its images.
        pixels: uint8 ``(n, 3, height, width)``, row i of the index.
        readable: bool ``(n,)``; the others yield no bytes and so count as unreadable again.
    """

    def __init__(self, source: Source, index: DataIndex, pixels: UInt8, readable: npt.NDArray[np.bool_]) -> None:
        self.id = source.id
        self.classnames = source.classnames
        self.templates = source.templates
        self.labels = source.labels
        self._index, self._pixels, self._readable = index, pixels, readable

    def __len__(self) -> int:
        """Return the number of images of the whole source."""
        return len(self.labels)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order, those at the given ascending positions of the source; all of the index without."""
        rows = range(len(self._index)) if positions is None else np.searchsorted(self._index.positions, positions).tolist()
        for row in rows:
            data = as_ppm(self._pixels[row].transpose(1, 2, 0)) if self._readable[row] else b""
            yield Sample(self._index.ids[row], int(self._index.labels[row]), data)


@contextlib.contextmanager
def prepared(images: EvalSet, preprocess: Preprocess, workers: int, folder: Path) -> Iterator[PreparedSource]:
    """Decode every image once and yield them as a source; the file goes when the block ends.

    Args:
        images: Which images; ``n * 3 * height * width`` bytes of disk.
        preprocess: Encoded image to pixels.
        workers: Threads that decode.
        folder: Where the file is made.
    """
    count = len(images.index)
    readable = np.zeros(count, np.bool_)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pixels-", dir=folder) as place:
        pixels = np.lib.format.open_memmap(Path(place) / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, 3, *preprocess.size))
        samples = images.source.read(images.index.positions.tolist())

        def decoded(sample: Sample) -> UInt8 | None:
            try:
                return pixels_of(sample, preprocess)
            except Exception:  # noqa: BLE001 - counted and named by the pipeline, which meets it again as an empty file
                return None

        with bar(f"Decoding {images.index.data_id}", count) as advance:
            for row, made in enumerate(in_order(decoded, samples, workers)):
                if made is not None:
                    pixels[row], readable[row] = made, True
                advance(1)
        yield PreparedSource(images.source, images.index, pixels, readable)
