"""Images to batches of pixels: one thread reads, several decode ahead, and the order stays that of the index."""

from __future__ import annotations

import io
import os
import queue
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from clipq.calib_data.index import DataIndex
from clipq.calib_data.preprocess import Float32, Preprocess, UInt8
from clipq.calib_data.source import MAX_ENCODED_BYTES, Sample, Source
from clipq.errors import DataError, UsageError

MAX_SKIPPED_FRACTION = 0.01
_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "GIF", "TIFF")  # named, because some of Pillow's other readers start programs
_GROUP = 8  # images per task: enough to make the cost of a task small, few enough to spread one batch over the workers
_NAMED = 3

warnings.filterwarnings("ignore", module=r"PIL\.")  # broken metadata of a photograph; what makes it unreadable is raised, not warned


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be decoded, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Preprocessed images of consecutive rows of an index.

    Attributes:
        start: The first row of the index that this batch covers, skipped or not.
        pixels: float32 ``(m, 3, height, width)``; m is 0 when every image of the batch was skipped.
        rows: int64 ``(m,)``: the rows of the index that the pixels belong to, ascending.
        skipped: The unreadable images of this batch.
    """

    start: int
    pixels: Float32
    rows: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A batch in the making: each task fills its part of the pixels and returns one reason (empty when decoded) per image."""

    start: int
    pixels: Float32
    tasks: list[Future[list[str]]]


def batches(  # noqa: PLR0913 - each is one choice of the caller
    source: Source,
    index: DataIndex,
    preprocess: Preprocess,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    start: int = 0,
    skipped_before: int = 0,
) -> Iterator[Batch]:
    """Yield the images of an index, decoded and preprocessed, while threads decode the next ones.

    Batches cover the rows from ``start`` in blocks of ``batch_size``: an unreadable image makes its batch smaller and moves no other.

    Args:
        source: The source the index was built from.
        index: Which images to read.
        preprocess: What the model wants.
        batch_size: Images per batch; the last one may be smaller.
        workers: Decoding threads; None means one per usable core.
        start: First row to yield, to resume.
        skipped_before: Unreadable images among the rows before ``start``; they count towards the limit.

    Raises:
        UsageError: ``batch_size`` or ``workers`` is below 1.
        DataError: More than 1 % of the index's images are unreadable, or the data set changed since it was indexed.
    """
    threads = len(os.sched_getaffinity(0)) if workers is None else workers
    if batch_size < 1 or threads < 1:
        raise UsageError("batch size and workers are too small", found=f"{batch_size} and {threads}", expected="at least 1")
    with _ReadAhead(source, index, preprocess, range(start, len(index), batch_size), threads) as read_ahead:
        skipped: list[Skipped] = []
        for pending in read_ahead:
            batch = _finish(pending, index)
            skipped += batch.skipped
            if skipped_before + len(skipped) > MAX_SKIPPED_FRACTION * len(index):
                raise _too_many(skipped, skipped_before, index)
            yield batch


def decode(data: bytes) -> Image.Image:
    """Return the decoded image, in its own mode and at its full size.

    Raises:
        OSError: It is empty, truncated, too large, or no image.
        Exception: Whatever else Pillow's decoders raise on broken bytes.
    """
    if not data:
        raise OSError("the file is empty or cannot be read")
    if len(data) > MAX_ENCODED_BYTES:
        raise OSError(f"the file is larger than {MAX_ENCODED_BYTES >> 20} MiB")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise OSError(f"the image is too large: {image.width} x {image.height} pixels")
    image.load()
    return image


def pixels_of(sample: Sample, preprocess: Preprocess) -> UInt8:
    """Return what a sample shows the model before normalisation: decoded, cut, resized, cropped and changed; uint8 ``(3, height, width)``.

    Raises:
        OSError: It cannot be decoded.
        Exception: Whatever else Pillow's decoders raise on broken bytes.
    """
    pixels = preprocess.pixels_u8(without_border(decode(sample.data), sample.border))
    return pixels if sample.change is None else sample.change.apply(pixels, sample.id)


def without_border(image: Image.Image, border: int) -> Image.Image:
    """Return an image without its outermost pixels, ``border`` of them on each side.

    Raises:
        OSError: Nothing would be left.
    """
    if not border:
        return image
    if min(image.size) <= 2 * border:
        raise OSError(f"the image is all border: {image.width} x {image.height} pixels, {border} on each side")
    return image.crop((border, border, image.width - border, image.height - border))


class _ReadAhead:
    """Reads in one thread, decodes in others, and holds a bounded number of batches; a context manager that leaves no thread behind."""

    def __init__(self, source: Source, index: DataIndex, preprocess: Preprocess, rows: range, workers: int) -> None:
        self._source, self._index, self._preprocess, self._rows = source, index, preprocess, rows
        self._pool = ThreadPoolExecutor(workers, "clipq-decode")
        self._room = threading.Semaphore(2 + workers * _GROUP // rows.step)
        self._queue: queue.SimpleQueue[_Pending | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, name="clipq-read", daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._room.release()
        self._reader.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[_Pending]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            self._room.release()

    def _read(self) -> None:
        try:
            samples = self._source.read(self._index.positions[self._rows.start :].tolist())
            for row in self._rows:
                self._room.acquire()  # given back by the consumer, or by __exit__
                if self._stopped.is_set():
                    return
                self._queue.put(self._submit(row, samples))
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._queue.put(error)

    def _submit(self, start: int, samples: Iterator[Sample]) -> _Pending:
        size = min(self._rows.step, len(self._index) - start)
        pixels = np.empty((size, 3, *self._preprocess.size), np.float32)
        tasks = []
        for offset in range(0, size, _GROUP):
            part = pixels[offset : offset + _GROUP]
            group = list(islice(samples, len(part)))
            self._check_ids(start + offset, group, len(part))
            tasks.append(self._pool.submit(_decode_into, part, group, self._preprocess))
        return _Pending(start, pixels, tasks)

    def _check_ids(self, row: int, group: list[Sample], expected: int) -> None:
        if tuple(sample.id for sample in group) != self._index.ids[row : row + expected]:
            raise DataError(f"{self._source.id} changed while it was read", found=f"another image at row {row}", fix="Run again.")


def _decode_into(pixels: Float32, samples: list[Sample], preprocess: Preprocess) -> list[str]:
    return [_decode_one(pixels[row : row + 1], sample, preprocess) for row, sample in enumerate(samples)]


def _decode_one(pixels: Float32, sample: Sample, preprocess: Preprocess) -> str:
    try:
        preprocess.normalise(pixels_of(sample, preprocess)[None], out=pixels)
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds on broken bytes; each is counted and listed
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _finish(pending: _Pending, index: DataIndex) -> Batch:
    reasons = [reason for task in pending.tasks for reason in task.result()]
    rows = np.arange(pending.start, pending.start + len(reasons), dtype=np.int64)
    if not any(reasons):
        return Batch(pending.start, pending.pixels, rows, ())
    readable = np.asarray([not reason for reason in reasons])
    skipped = tuple(Skipped(index.ids[row], reason) for row, reason in zip(rows.tolist(), reasons, strict=True) if reason)
    return Batch(pending.start, pending.pixels[readable], rows[readable], skipped)


def _too_many(skipped: list[Skipped], before: int, index: DataIndex) -> DataError:
    named = "; ".join(f"{item.id} ({item.reason})" for item in skipped[:_NAMED])
    return DataError(
        f"more than 1 % of the {len(index)} images of {index.data_id} are unreadable",
        found=f"{before + len(skipped)} so far: {named}",
        fix="Repair or remove them.",
    )
