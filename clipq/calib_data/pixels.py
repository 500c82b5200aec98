"""Images that lie as bare pixels in an array: handed out as PPM, which holds exactly these pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from clipq.calib_data.layout import check_labels
from clipq.calib_data.source import Sample

Uint8 = npt.NDArray[np.uint8]


class PixelSource:
    """Images of an array that need not be in memory; see ``clipq.calib_data.source.Source``.

    Args:
        data_id: The canonical data id.
        pixels: Position -> uint8 ``(height, width, 3)``.
        labels: int64 ``(n,)``.
        place: What stands before the position in an image's id, e.g. ``test``.
        classnames: One per label.
        templates: Prompt templates.

    Raises:
        DataError: There are no images, or labels and class names do not fit each other.
    """

    def __init__(  # noqa: PLR0913 - the fields of a source
        self,
        data_id: str,
        pixels: Callable[[int], Uint8],
        labels: npt.NDArray[np.int64],
        place: str,
        *,
        classnames: tuple[str, ...],
        templates: tuple[str, ...],
    ) -> None:
        self.id = data_id
        self.classnames = classnames
        self.templates = templates
        self.labels = labels
        self._pixels, self._place = pixels, place
        check_labels(data_id, labels, classnames)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for position in range(len(self)) if positions is None else positions:
            yield Sample(f"{self._place}/{position:06d}.ppm", int(self.labels[position]), as_ppm(self._pixels(position)))


def as_ppm(pixels: Uint8) -> bytes:
    """Return pixels ``(height, width, 3)`` as a PPM file."""
    return f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode() + np.ascontiguousarray(pixels).tobytes()
