"""Scenes drawn on demand: a classification set, two out-of-distribution sets and three robustness axes, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from clipq.calib_data.dice import Dice
from clipq.calib_data.scene_changes import corrupt, texture
from clipq.calib_data.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, TEXTURES, UNSEEN_SHAPES, Scene, Uint8, draw
from clipq.calib_data.source import Sample, Source
from clipq.errors import unknown_name

Kind = tuple[str, str, str]  # texture, colour, shape

_ALL_KINDS: tuple[Kind, ...] = tuple(product(TEXTURES, COLOURS, SHAPES))


def _is_unseen(place: int) -> bool:
    """Return whether a combination is held out: every shape, colour and texture is seen, 12 of the 72 combinations are not."""
    pair, shape = divmod(place, len(SHAPES))
    return shape == pair * 5 % 12 % len(SHAPES)


KINDS = tuple(kind for place, kind in enumerate(_ALL_KINDS) if not _is_unseen(place))
UNSEEN_KINDS = tuple(kind for place, kind in enumerate(_ALL_KINDS) if _is_unseen(place))
CLASSNAMES = tuple(" ".join(kind) for kind in KINDS)
TEMPLATES = ("a photo of a {c}.", "a drawing of a {c}.", "a picture of a {c}.", "there is a {c} here.", "a {c}.")
_HABIT = 102  # of 256: how often a shape stands before its usual background, beyond chance


def scene_of(label: int, key: str) -> Scene:
    """Return the scene of class ``label`` that ``key`` gives; half of the shapes stand before the background that is usual for them."""
    return _scene(KINDS[label], key)


def picture(variant: str, split: str, index: int) -> tuple[int, Uint8]:
    """Return label (-1: none) and pixels, uint8 ``(SIZE, SIZE, 3)``, of one image of a variant.

    The image depends on the three arguments only. The robustness variants show the scenes of ``scenes:test`` with one thing changed.
    """
    return _VARIANTS[variant].picture(f"{split}/{index}", index)


def usual_background(shape: str) -> str:
    """Return the background that the shape is mostly seen before."""
    return BACKGROUNDS[tuple(SHAPES).index(shape)]


def _scene(kind: Kind, key: str) -> Scene:
    dice = Dice(key)
    weave, colour, shape = kind
    habit = shape in SHAPES and dice.below(256) < _HABIT
    background = usual_background(shape) if habit else dice.pick(BACKGROUNDS)
    return Scene(shape, colour, weave, background, dice.below(len(POSITIONS)), key)


def _plain(place: str, index: int) -> tuple[int, Uint8]:
    label = index % len(KINDS)
    return label, draw(scene_of(label, f"scenes/{place}"))


def _near(place: str, index: int) -> tuple[int, Uint8]:
    """Draw an unseen combination or an unseen shape, in turn."""
    dice = Dice(f"near/{place}")
    unseen = (dice.pick(TEXTURES), dice.pick(tuple(COLOURS)), dice.pick(tuple(UNSEEN_SHAPES)))
    return -1, draw(_scene(dice.pick(UNSEEN_KINDS) if index % 2 else unseen, f"near/{place}/scene"))


def _far(place: str, _index: int) -> tuple[int, Uint8]:
    return -1, texture(Dice(f"far/{place}"))


def _noise(place: str, index: int) -> tuple[int, Uint8]:
    label, pixels = _plain(place, index)
    return label, corrupt(pixels, Dice(f"noise/{place}"))


def _shift(place: str, index: int) -> tuple[int, Uint8]:
    """Draw the scene in a style that training never showed: dark rims, another palette, another scale."""
    scene, dice = scene_of(index % len(KINDS), f"scenes/{place}"), Dice(f"shift/{place}")
    style = dice.below(4)
    if style == 0:
        return index % len(KINDS), draw(replace(scene, rim=True))
    if style == 1:
        return index % len(KINDS), draw(replace(scene, palette=dice.pick((-60, 70))))
    return index % len(KINDS), draw(replace(scene, scale=dice.between(130, 170) if style == 2 else dice.between(330, 400)))


def _spurious(place: str, index: int) -> tuple[int, Uint8]:
    """Draw the scene before the usual background of another shape."""
    scene, dice = scene_of(index % len(KINDS), f"scenes/{place}"), Dice(f"spurious/{place}")
    others = [background for background in BACKGROUNDS if background != usual_background(scene.shape)]
    return index % len(KINDS), draw(replace(scene, background=dice.pick(others)))


@dataclass(frozen=True, slots=True)
class _Variant:
    picture: Callable[[str, int], tuple[int, Uint8]]
    counts: dict[str, int]
    labelled: bool = True


_VARIANTS = {
    "scenes": _Variant(_plain, {"test": 4000, "calibration": 2000, "train": 1_000_000}),
    "scenes-near": _Variant(_near, {"test": 2000}, labelled=False),
    "scenes-far": _Variant(_far, {"test": 2000}, labelled=False),
    "scenes-noise": _Variant(_noise, {"test": 2000}),
    "scenes-shift": _Variant(_shift, {"test": 2000}),
    "scenes-spurious": _Variant(_spurious, {"test": 2000}),
}


class SyntheticSource:
    """Drawn images as PPM; see ``clipq.calib_data.source.Source``.

    Args:
        variant: A name in the table of variants, e.g. ``scenes-near``.
        split: ``test``; the set ``scenes`` also has ``calibration`` and ``train``.
    """

    def __init__(self, variant: str, split: str) -> None:
        self.id = f"synthetic:{variant}" if split == "test" else f"synthetic:{variant}:{split}"
        self.classnames = CLASSNAMES if _VARIANTS[variant].labelled else ()
        self.templates = TEMPLATES
        self._variant, self._split = variant, split

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of each image, int64 ``(n,)``, -1 where there is none."""
        classes = len(self.classnames)
        return np.arange(len(self), dtype=np.int64) % classes if classes else np.full(len(self), -1, np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return _VARIANTS[self._variant].counts[self._split]

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        for index in range(len(self)) if positions is None else positions:
            label, pixels = picture(self._variant, self._split, index)
            header = f"P6 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode()
            yield Sample(f"{self._split}/{index:06d}.ppm", label, header + pixels.tobytes())


def open_synthetic(rest: str, split: str | None = None) -> Source:
    """Return the drawn data set named by what follows ``synthetic:`` in its data id.

    Args:
        rest: ``NAME`` or ``NAME:SPLIT``, e.g. ``scenes-near`` or ``scenes:calibration``.
        split: Overrides the split in ``rest``; default ``test``.

    Raises:
        UsageError: No such set or split.
    """
    variant, _, named = rest.partition(":")
    if variant not in _VARIANTS:
        raise unknown_name("synthetic data set", variant, _VARIANTS)
    chosen = split or named or "test"
    if chosen not in _VARIANTS[variant].counts:
        raise unknown_name(f"split of synthetic:{variant}", chosen, _VARIANTS[variant].counts)
    return SyntheticSource(variant, chosen)
