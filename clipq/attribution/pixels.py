"""One decoding pass: every image once, as our pixels and, where they are compared, as open_clip's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from clipq.calib_data.pipeline import MAX_SKIPPED_FRACTION, decode, without_border
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.source import Sample
from clipq.engines.base import Float32
from clipq.errors import DataError
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Work, in_order
from clipq.evaluate.metrics.arrays import Bool

Transform = Callable[[Any], Float32]


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """The images of consecutive rows of an index.

    Attributes:
        start: The first row.
        readable: bool ``(size,)``: which rows could be decoded.
        ours: float32 ``(m, 3, height, width)``, the readable ones.
        reference: open_clip's own of the same images; None where they are not compared.
    """

    start: int
    readable: Bool
    ours: Float32
    reference: Float32 | None


def read_pixels(
    images: EvalSet, preprocess: Preprocess, transform: Transform | None, work: Work, begin: tuple[int, int]
) -> Iterator[Pixels]:
    """Yield the images in batches, in order, decoded by several threads; memory does not grow with their number.

    Args:
        images: Which images.
        preprocess: How they become our pixels.
        transform: open_clip's own preprocessing, or None.
        work: Size of a batch and threads.
        begin: First row, and how many of those before it were unreadable.

    Raises:
        DataError: More than 1 % of the images are unreadable, or the data set changed since it was indexed.
    """
    first, skipped = begin
    chunks = _chunks(images, first, work.batch_size)
    for pixels in in_order(partial(_decode, preprocess=preprocess, transform=transform), chunks, work.workers):
        skipped += int((~pixels.readable).sum())
        if skipped > MAX_SKIPPED_FRACTION * len(images.index):
            raise DataError(
                f"more than 1 % of the {len(images.index)} images of {images.index.data_id} are unreadable",
                found=f"{skipped} so far",
                fix="Repair or remove them; clipq eval names them.",
            )
        yield pixels


def pixel_difference(pixels: Pixels) -> Float32:
    """Return, per readable image, the largest absolute difference of a normalised pixel and the share of numbers that differ.

    Returns:
        float32 ``(m, 2)``; zeros where open_clip's pixels are not compared.
    """
    if pixels.reference is None:
        return np.zeros((len(pixels.ours), 2), np.float32)
    away = np.abs(pixels.ours - pixels.reference).reshape(len(pixels.ours), -1)
    return np.stack([away.max(axis=1), (away > 0).mean(axis=1)], axis=1).astype(np.float32)


def _chunks(images: EvalSet, first: int, size: int) -> Iterator[tuple[int, list[Sample]]]:
    samples = images.source.read(images.index.positions[first:].tolist())
    for start in range(first, len(images.index), size):
        expected = images.index.ids[start : start + size]
        found = list(islice(samples, len(expected)))
        if tuple(sample.id for sample in found) != tuple(expected):
            raise DataError(f"{images.source.id} changed while it was read", found=f"another image at row {start}", fix="Run again.")
        yield start, found


def _decode(chunk: tuple[int, list[Sample]], *, preprocess: Preprocess, transform: Transform | None) -> Pixels:
    start, samples = chunk
    shape = (len(samples), 3, *preprocess.size)
    ours, reference = np.empty(shape, np.float32), None if transform is None else np.empty(shape, np.float32)
    readable = np.zeros(len(samples), np.bool_)
    for row, sample in enumerate(samples):
        try:
            image = without_border(decode(sample.data), sample.border)
            raw = preprocess.pixels_u8(image)
            preprocess.normalise((raw if sample.change is None else sample.change.apply(raw, sample.id))[None], out=ours[row : row + 1])
            theirs = None if transform is None else transform(image)
        except Exception:  # noqa: BLE001, S112 - Pillow raises many kinds on broken bytes; the row is counted as unreadable
            continue
        readable[row] = True
        if theirs is not None and reference is not None:
            reference[row] = _same_shape(theirs, shape[1:])
    return Pixels(start, readable, ours[readable], None if reference is None else reference[readable])


def _same_shape(pixels: Float32, shape: tuple[int, ...]) -> Float32:
    if pixels.shape != shape:
        raise DataError(
            "the bundle's preprocessing makes images of another size than the model's own",
            found=f"{shape[1]} x {shape[2]}",
            expected=f"{pixels.shape[1]} x {pixels.shape[2]}",
            fix="Export the bundle again.",
        )
    return pixels
