"""What a data source is: encoded images with stable ids, read in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

DEFAULT_TEMPLATES = ("a photo of a {c}.",)
MAX_ENCODED_BYTES = 64 << 20  # sources read at most one byte more of a file; an image that reaches it counts as unreadable


UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to every image of a source once it is resized and cropped, and before it is normalised.

    Attributes:
        name: Says all that decides the result beside the image and its id; part of the index's digest.
        apply: (uint8 ``(3, height, width)``, image id) -> the same shape; the same bytes in any thread and order.
    """

    name: str
    apply: Callable[[UInt8, str], UInt8]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it is stored: nothing is decoded yet.

    Attributes:
        id: Stable and unique inside its source, e.g. ``0.tar/s0000001.jpg`` or ``tench/n01440764_10026.jpg``.
        label: Index into the source's class names, or -1 where the source has no labels.
        data: The encoded image (JPEG, PNG, PPM, ...), byte for byte; empty when the file could not be read.
        border: How many pixels on each side are no part of the picture and are cut off before anything else is done with it.
        change: What is done to its pixels; None for nothing.
    """

    id: str
    label: int
    data: bytes
    border: int = 0
    change: Change | None = None


class Source(Protocol):
    """Encoded images in one fixed order."""

    @property
    def id(self) -> str:
        """The canonical data id, e.g. ``wds:/data/cifar10:test``."""

    @property
    def classnames(self) -> tuple[str, ...]:
        """One name per label, empty where the source has no names."""

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates with ``{c}`` for the class name."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each image, int64 ``(n,)``, -1 where there is none; known without reading any image."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions; memory does not grow with their number."""
        ...
