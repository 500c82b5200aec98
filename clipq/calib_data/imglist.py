"""``imglist:FILE[@ROOT]``: OpenOOD's lists, one ``relative/path label`` per line."""

from __future__ import annotations

import re
from pathlib import Path

from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.layout import existing_folder, existing_path, leaves_folder, read_classnames, read_lines, read_templates
from clipq.calib_data.source import Source
from clipq.errors import DataError, UsageError

_LINE = re.compile(r"(?P<name>.+?)(?:\s+(?P<label>-?\d+))?")


def open_imglist(rest: str, _split: str | None) -> Source:
    """Return the images of a list; paths are relative to ``ROOT``, or to the folder of the list.

    Labels may be left out, or be -1, for images that belong to no class. ``classnames.txt`` and templates are looked for beside the list.

    Raises:
        UsageError: The list or the root does not exist.
        DataError: An image is missing or outside the root, or labels and class names do not fit each other.
    """
    whole = Path(rest).expanduser().is_file()
    file, root_text = (rest, "") if whole or "@" not in rest else rest.rsplit("@", 1)
    path = existing_path(file)
    if not path.is_file():
        raise UsageError(f"{path} is not a file", expected="a list of images", fix="Use imagefolder: for a folder.")
    root = existing_folder(root_text) if root_text else path.parent
    names, labels = read_imglist(path)
    _check_files(path, root, names)
    classnames = read_classnames(path.parent) if any(label >= 0 for label in labels) else ()
    data_id = f"imglist:{path}@{root}" if root_text else f"imglist:{path}"
    return FileSource(data_id, root, names, labels, classnames=classnames, templates=read_templates(path.parent))


def read_imglist(path: Path) -> tuple[list[str], list[int]]:
    """Return the relative paths and the labels of a list, -1 where it has none.

    Raises:
        DataError: It cannot be read, has an empty line, or names a path that leads out of the folder.
    """
    names: list[str] = []
    labels: list[int] = []
    for line in read_lines(path):
        match = _LINE.fullmatch(line)
        name, label = (match["name"], match["label"]) if match else (line, None)
        if leaves_folder(name):
            raise DataError(f"{path} names an image outside its folder", found=repr(name), expected="a relative path without ..")
        names.append(name)
        labels.append(-1 if label is None else int(label))
    return names, labels


def _check_files(path: Path, root: Path, names: list[str]) -> None:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of {path} are not in {root}",
            found=f"no {missing[0]}",
            fix=f"Name the folder of the images: imglist:{path}@FOLDER",
        )
