"""``corrupt-synth:NAME/SEVERITY:DATA``: the images of another data set, each corrupted after it was resized and cropped.

``-synth`` because the pictures are made here, from the pixels the model would see: the published ImageNet-C is another set of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from clipq.calib_data.corruptions.table import VERSION, check_corruption, corrupt
from clipq.calib_data.index import DataIndex, changed_index
from clipq.calib_data.source import Change, Sample, Source, UInt8
from clipq.calib_data.table import open_source
from clipq.errors import UsageError

SCHEME = "corrupt-synth"


class CorruptedSource:
    """The samples of another source with a change; ids, labels, names and encoded bytes stay. See ``clipq.calib_data.source.Source``.

    Args:
        inner: The images.
        name: A corruption.
        severity: 1 to 5.

    Raises:
        UsageError: The corruption or the severity is unknown.
    """

    def __init__(self, inner: Source, name: str, severity: int) -> None:
        check_corruption(name, severity)

        def apply(pixels: UInt8, image_id: str) -> UInt8:
            return corrupt(pixels, name, severity, image_id)

        self.id = f"{SCHEME}:{name}/{severity}:{inner.id}"
        self.classnames = inner.classnames
        self.templates = inner.templates
        self.change = Change(f"{SCHEME}/{VERSION}:{name}/{severity}", apply)
        self._inner = inner

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each image, int64 ``(n,)``, -1 where there is none."""
        return self._inner.labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._inner)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for sample in self._inner.read(positions):
            yield replace(sample, change=self.change)

    def index_from(self, index: DataIndex) -> DataIndex:
        """Return this source's index from the one of the images as they are, without reading them again."""
        return changed_index(index, self.id, self.change.name)


def open_corrupted(rest: str, split: str | None = None) -> CorruptedSource:
    """Return the data set named by what follows ``corrupt-synth:`` in its data id.

    Args:
        rest: ``NAME/SEVERITY:DATA``, e.g. ``fog/3:imagefolder:photos``.
        split: Overrides the split that ``DATA`` names.

    Raises:
        UsageError: The corruption, the severity or ``DATA`` is unknown, or ``DATA`` is corrupted already.
    """
    head, _, inner = rest.partition(":")
    name, _, severity = head.partition("/")
    expected = f"{SCHEME}:NAME/SEVERITY:DATA, e.g. {SCHEME}:fog/3:imagefolder:photos"
    if not severity.isdecimal() or not inner:
        raise UsageError(f"cannot read the data id {SCHEME}:{rest}", expected=expected)
    check_corruption(name, int(severity))
    if inner.partition(":")[0] == SCHEME:
        raise UsageError(f"{SCHEME}:{rest} corrupts pictures that are corrupted already", expected=expected)
    return CorruptedSource(open_source(inner, split=split), name, int(severity))
