"""``imagefolder:PATH``: one folder per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from pathlib import Path

from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.layout import IMAGE_SUFFIXES, existing_folder, read_classnames, read_templates
from clipq.calib_data.source import Source
from clipq.errors import DataError


def open_imagefolder(rest: str, _split: str | None) -> Source:
    """Return the images below the class folders of ``PATH``; a class is named by its folder, or by ``PATH/classnames.txt``.

    Raises:
        UsageError: The folder does not exist.
        DataError: There is no class folder, a class has no images, or ``classnames.txt`` does not name every folder.
    """
    root = existing_folder(rest)
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"no class folders in {root}", expected=f"{root}/CLASS/IMAGE.jpg", fix="Use imglist: for images without classes.")
    classnames = read_classnames(root) or tuple(folders)
    if len(classnames) != len(folders):
        raise DataError(
            f"{root}/classnames.txt does not fit the folders",
            found=f"{len(classnames)} names and {len(folders)} class folders",
            expected="one name per folder, in the order of the sorted folders",
        )
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = images_below(root, folder)
        names += found
        labels += [label] * len(found)
    return FileSource(f"imagefolder:{root}", root, names, labels, classnames=classnames, templates=read_templates(root))


def images_below(root: Path, folder: str = "") -> list[str]:
    """Return the image files of a folder below the root at any depth, sorted, as paths from the root."""
    found = [
        (Path(place) / name).relative_to(root).as_posix()
        for place, _, names in os.walk(root / folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    ]
    return sorted(found)
