"""``synthetic:scenes-captions``: the first scenes of ``synthetic:scenes`` with captions made from their parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from clipq.calib_data.captions import Captioned
from clipq.calib_data.scenes import POSITIONS
from clipq.calib_data.source import DEFAULT_TEMPLATES, Sample
from clipq.calib_data.synthetic import CLASSNAMES, SyntheticSource, scene_of
from clipq.errors import unknown_name

IMAGES = 1000
_NAME = "scenes-captions"
# Of the words that the demo models know. Some scenes share their captions, so perfect recall is out of reach.
_CAPTIONS = ("a photo of a {c} {p} on a {b} background.", "a {c} {p} on a {b} background.")


class CaptionedScenes:
    """The images, without labels; see ``clipq.calib_data.source.Source``."""

    id = f"synthetic:{_NAME}"
    classnames: tuple[str, ...] = ()
    templates = DEFAULT_TEMPLATES

    def __init__(self) -> None:
        self._scenes = SyntheticSource("scenes", "test")

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each image, int64 ``(n,)``: none."""
        return np.full(len(self), -1, np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return IMAGES

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for sample in self._scenes.read(range(IMAGES) if positions is None else positions):
            yield replace(sample, label=-1)


def open_scene_captions(rest: str, _split: str | None) -> Captioned:
    """Return the scenes with their captions.

    Raises:
        UsageError: There is no such set.
    """
    if rest not in {_NAME, f"{_NAME}:test"}:
        raise unknown_name("synthetic data set with captions", rest, [_NAME])
    return Captioned(CaptionedScenes(), [captions_of(index) for index in range(IMAGES)])


def captions_of(index: int) -> tuple[str, ...]:
    """Return what is said of one image: its class, its place, its background.

    >>> captions_of(0)[1]
    'a solid red square at the bottom on a gradient background.'
    """
    label = index % len(CLASSNAMES)
    scene = scene_of(label, f"scenes/test/{index}")
    return tuple(text.format(c=CLASSNAMES[label], p=POSITIONS[scene.position], b=scene.background) for text in _CAPTIONS)
