"""Images that lie as single files under one folder: what ``imagefolder:`` and ``imglist:`` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipq.calib_data.layout import check_labels
from clipq.calib_data.source import MAX_ENCODED_BYTES, Sample


class FileSource:
    """Image files below a root; an id is the path from there. See ``clipq.calib_data.source.Source``.

    Args:
        data_id: The canonical data id.
        root: The folder that the names are relative to.
        names: Relative paths, in order.
        labels: One per name, -1 where there is none.
        classnames: One per label, or empty.
        templates: Prompt templates.
        every_class: Whether each class name must have images; without, some only compete for those of others.
        border: As in ``Sample``, of every image.

    Raises:
        DataError: There are no images, or labels and class names do not fit each other.
    """

    def __init__(  # noqa: PLR0913 - the fields of a source
        self,
        data_id: str,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int],
        *,
        classnames: tuple[str, ...],
        templates: tuple[str, ...],
        every_class: bool = True,
        border: int = 0,
    ) -> None:
        self.id = data_id
        self.classnames = classnames
        self.templates = templates
        self.labels: npt.NDArray[np.int64] = np.asarray(labels, np.int64)
        self._root, self._names, self._border = root, names, border
        check_labels(data_id, self.labels, classnames, every_class=every_class)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for position in range(len(self)) if positions is None else positions:
            name = self._names[position]
            yield Sample(name, int(self.labels[position]), _read_bytes(self._root / name), self._border)


def _read_bytes(path: Path) -> bytes:
    """Return a file's content; nothing when it cannot be read, which then counts as an unreadable image."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_ENCODED_BYTES + 1)
    except OSError:
        return b""
