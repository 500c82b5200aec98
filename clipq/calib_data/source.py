"""What a data source is: encoded images with stable ids, read in one fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

DEFAULT_TEMPLATES = ("a photo of a {c}.",)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image as it is stored: nothing is decoded yet.

    Attributes:
        id: Stable and unique inside its source, e.g. ``0.tar/s0000001.jpg`` or ``tench/n01440764_10026.jpg``.
        label: Index into the source's class names, or -1 where the source has no labels.
        data: The encoded image (JPEG, PNG, PPM, ...), byte for byte.
    """

    id: str
    label: int
    data: bytes


class Source(Protocol):
    """Encoded images in one fixed order.

    Attributes:
        id: The canonical data id, e.g. ``wds:/data/cifar10:test``.
        classnames: One name per label, empty where the source has no labels.
        templates: Prompt templates with ``{c}`` for the class name.
    """

    id: str
    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions; memory does not grow with their number."""
        ...
