"""``imagenet:`` and its natural relatives: class folders, OpenAI's names and templates, a classifier over the set's own classes only.

``imagenet:PATH[:SUBSET]`` (the validation images in folders named by wnid; SUBSET ``r`` or ``a`` takes the 200 classes of ImageNet-R or
ImageNet-A, so that both sides of a shift are told apart from the same names), ``imagenet-v2:PATH`` (folders ``0`` to ``999`` as
published, or wnids), ``imagenet-r:PATH``, ``imagenet-a:PATH`` and ``imagenet-sketch:PATH`` (wnids).

Every class must be there: a partial copy is refused unless it is the subset that was named. Any other choice of classes is
``imagefolder:PATH`` with a ``classnames.txt``. Prompt templates are the 80 of OpenAI unless ``zeroshot_classification_templates.txt``
stands beside the folders (one line ``a photo of a {c}.`` for the single prompt).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clipq.calib_data.class_folders import check_class_folders, folders_of, images_by_class
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.imagenet import ImageNetClass, imagenet_classes, imagenet_templates
from clipq.calib_data.layout import existing_folder, path_and_split, read_templates
from clipq.calib_data.source import Source
from clipq.errors import unknown_name

_SUBSETS: Mapping[str, Callable[[ImageNetClass], bool]] = {"a": lambda known: known.in_a, "r": lambda known: known.in_r}


@dataclass(frozen=True, slots=True)
class _Set:
    """One of the family: its scheme, what it is called, the subset of classes it has, and whether it is published with numbered folders."""

    scheme: str
    title: str
    subset: str = ""
    numbered: bool = False


def open_imagenet(rest: str, _split: str | None) -> Source:
    """Return the images of ``PATH[:SUBSET]``.

    Raises:
        MissingDataError: The folder does not exist.
        UsageError: There is no class folder in it, or no such subset.
        DataError: Classes are missing, without images, or unknown.
    """
    path, subset = path_and_split(rest, None)
    if subset is not None and subset not in _SUBSETS:
        raise unknown_name("subset of ImageNet's classes", subset, _SUBSETS)
    return _open(_Set("imagenet", "ImageNet", subset or ""), path)


def open_imagenet_v2(rest: str, _split: str | None) -> Source:
    """Return the images of ImageNetV2; errors as in ``open_imagenet``."""
    return _open(_Set("imagenet-v2", "ImageNetV2", numbered=True), rest)


def open_imagenet_r(rest: str, _split: str | None) -> Source:
    """Return the images of ImageNet-R; errors as in ``open_imagenet``."""
    return _open(_Set("imagenet-r", "ImageNet-R", "r"), rest)


def open_imagenet_a(rest: str, _split: str | None) -> Source:
    """Return the images of ImageNet-A; errors as in ``open_imagenet``."""
    return _open(_Set("imagenet-a", "ImageNet-A", "a"), rest)


def open_imagenet_sketch(rest: str, _split: str | None) -> Source:
    """Return the images of ImageNet-Sketch; errors as in ``open_imagenet``."""
    return _open(_Set("imagenet-sketch", "ImageNet-Sketch"), rest)


def _open(kind: _Set, path: str) -> Source:
    root = existing_folder(path)
    chosen = [known for known in imagenet_classes() if not kind.subset or _SUBSETS[kind.subset](known)]
    numbered = kind.numbered and any(name.isdigit() for name in folders_of(root))
    folders = [str(known.index) if numbered else known.wnid for known in chosen]
    named = kind.scheme == "imagenet" and kind.subset
    others = [known.wnid for known in imagenet_classes()] if named else []
    check_class_folders(root, kind.title, folders, others, _advice(kind))
    names, labels = images_by_class(root, folders)
    data_id = f"{kind.scheme}:{root}" + (f":{kind.subset}" if named else "")
    templates = read_templates(root, default=imagenet_templates())
    return FileSource(data_id, root, names, labels, classnames=tuple(known.name for known in chosen), templates=templates)


def _advice(kind: _Set) -> str:
    if kind.scheme == "imagenet" and not kind.subset:
        return "Name the subset (imagenet:PATH:r, imagenet:PATH:a), or use imagefolder:PATH with a classnames.txt."
    return "Unpack the whole data set, or use imagefolder:PATH with a classnames.txt."
