"""What everyone who evaluates CLIP on ImageNet and its relatives agrees on: classes, names and prompt templates."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

_FACTS = files("clipq.calib_data") / "facts"


@dataclass(frozen=True, slots=True)
class ImageNetClass:
    """One of the 1,000 classes of ILSVRC 2012.

    Attributes:
        index: 0 to 999, the order of the sorted wnids.
        wnid: WordNet id, the name of its folder.
        in_r: Whether ImageNet-R has it.
        in_a: Whether ImageNet-A has it.
        name: OpenAI's curated name.
    """

    index: int
    wnid: str
    in_r: bool
    in_a: bool
    name: str


@dataclass(frozen=True, slots=True)
class ObjectNetClass:
    """One of the 113 classes that ObjectNet shares with ImageNet.

    Attributes:
        folder: The name of its folder.
        name: As ObjectNet calls it, in lower case.
        imagenet: The indices of the ImageNet classes that are this one.
    """

    folder: str
    name: str
    imagenet: tuple[int, ...]


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes in order of index."""
    return tuple(
        ImageNetClass(int(row["index"]), row["wnid"], row["in_r"] == "1", row["in_a"] == "1", row["name"])
        for row in csv.DictReader(_lines("imagenet_classes.csv"))
    )


@functools.cache
def objectnet_classes() -> tuple[ObjectNetClass, ...]:
    """Return the 113 classes in order of their folders, which is the order of the published labels."""
    return tuple(
        ObjectNetClass(row["folder"], row["name"], tuple(map(int, row["imagenet"].split())))
        for row in csv.DictReader(_lines("objectnet_classes.csv"))
    )


@functools.cache
def imagenet_templates() -> tuple[str, ...]:
    """Return OpenAI's 80 prompt templates, ``{c}`` where the name belongs."""
    return tuple(_lines("imagenet_templates.txt"))


def _lines(name: str) -> Iterable[str]:
    return (_FACTS / name).read_text("utf-8").splitlines()
