"""What data sets on disk have in common: paths with a split, class names, templates, and the checks on labels."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from clipq.calib_data.source import DEFAULT_TEMPLATES
from clipq.errors import DataError, MissingDataError, UsageError

DEFAULT_SPLIT = "test"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"})


def existing_path(text: str) -> Path:
    """Return the absolute path of what a data id names.

    Raises:
        MissingDataError: It does not exist.
    """
    path = Path(text).expanduser().resolve()
    if not path.exists():
        raise MissingDataError(f"no data set at {path}", found="nothing there", fix="Check the path in the data id.")
    return path


def existing_folder(text: str) -> Path:
    """Return the absolute path of the folder that a data id names.

    Raises:
        MissingDataError: It does not exist.
        UsageError: It is no folder.
    """
    path = existing_path(text)
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder", fix="Give the folder of the data set.")
    return path


def path_and_split(rest: str, split: str | None) -> tuple[str, str | None]:
    """Return path and split of ``PATH[:SPLIT]``; ``split`` overrides the one that is named there, None stands for no split at all."""
    path, colon, named = rest.rpartition(":")
    if not colon or "/" in named or Path(rest).expanduser().exists():
        return rest, split
    return path, split or named


def leaves_folder(name: str) -> bool:
    """Say whether a relative name would lead out of its folder."""
    pure = PurePosixPath(name)
    return pure.is_absolute() or ".." in pure.parts


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file without surrounding blanks; empty lines at its end do not count.

    Raises:
        DataError: It cannot be read, is empty, or has an empty line among the others.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", found=error, expected="UTF-8 text") from error
    if not all(lines) or not lines:
        raise DataError(f"{path} has an empty line", expected="something on every line")
    return tuple(lines)


def read_classnames(folder: Path) -> tuple[str, ...]:
    """Return the lines of ``classnames.txt``, or nothing where there is no such file."""
    path = folder / "classnames.txt"
    return read_lines(path) if path.exists() else ()


def read_templates(folder: Path, default: tuple[str, ...] = DEFAULT_TEMPLATES) -> tuple[str, ...]:
    """Return the lines of ``zeroshot_classification_templates.txt``, or the default where there is no such file.

    Raises:
        DataError: A template has no place for the class name.
    """
    path = folder / "zeroshot_classification_templates.txt"
    if not path.exists():
        return default
    templates = read_lines(path)
    for template in templates:
        if "{c}" not in template:
            raise DataError(f"{path} has a template without a class name", found=repr(template), expected="{c} where the name belongs")
    return templates


def check_labels(data_id: str, labels: npt.NDArray[np.int64], classnames: tuple[str, ...], *, every_class: bool = True) -> None:
    """Check that there are images, and that labels and class names fit each other.

    Raises:
        DataError: There is no image, a label has no class name, or (with ``every_class``) a class has no image.
    """
    if len(labels) == 0:
        raise DataError(f"no images in {data_id}", expected="at least one", fix="Check the path and the split.")
    if not classnames:
        return
    outside = np.flatnonzero((labels < 0) | (labels >= len(classnames)))
    if len(outside):
        raise DataError(
            f"label outside range in {data_id}",
            found=f"{labels[outside[0]]} at image {outside[0]} (and {len(outside) - 1} more)",
            expected=f"0 to {len(classnames) - 1}, for {len(classnames)} class names",
            fix="Correct the labels or the class names.",
        )
    empty = sorted(set(range(len(classnames))) - set(labels.tolist())) if every_class else []
    if empty:
        raise DataError(
            f"class {classnames[empty[0]]!r} of {data_id} has no images",
            found=f"{len(classnames)} class names but images of {len(classnames) - len(empty)}",
            expected="at least one image of each class",
            fix="Add images or remove the class name.",
        )
