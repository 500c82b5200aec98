"""A source whose images are classified among other class names: labels follow the names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from clipq.calib_data.source import Sample, Source
from clipq.errors import DataError
from clipq.files import sha256_json


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Classes and the templates that their texts are made with."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]

    def sha256(self) -> str:
        """Return the hash of the class texts: equal hashes mean the same classes in the same order, in the same words."""
        return sha256_json([list(self.classnames), list(self.templates)])


class Relabelled:
    """The images of a source with the class names of a classifier; see ``clipq.calib_data.source.Source``.

    Args:
        source: Images whose class names are among those of the classifier.
        classes: The classifier's.

    Raises:
        DataError: The source has no class names, or one that the classifier does not have, or has twice.
    """

    def __init__(self, source: Source, classes: ClassNames) -> None:
        self.id = source.id
        self.classnames, self.templates = classes.classnames, classes.templates
        self._source = source
        self._labels = _places(source, classes.classnames)
        self.labels: npt.NDArray[np.int64] = np.where(source.labels < 0, -1, self._labels[source.labels])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for sample in self._source.read(positions):
            yield replace(sample, label=-1 if sample.label < 0 else int(self._labels[sample.label]))


def _places(source: Source, classnames: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return for each label of the source the label of the class with the same name, int64 ``(classes of the source,)``."""
    if not source.classnames:
        raise DataError(f"{source.id} has no class names", expected="some of the classifier's", fix="Use imagefolder:PATH, or --ood.")
    if source.classnames == classnames:
        return np.arange(len(classnames), dtype=np.int64)
    for name in source.classnames:
        if classnames.count(name) != 1:
            near = difflib.get_close_matches(name, classnames, n=1, cutoff=0.4)
            raise DataError(
                f"{source.id} has a class that the classifier has {'twice' if name in classnames else 'not'}",
                found=repr(name),
                expected=f"a name such as {(near or classnames)[0]!r}",
                fix="Name the classes in classnames.txt as the classifier does.",
            )
    return np.asarray([classnames.index(name) for name in source.classnames], np.int64)
