"""``folder:PATH``: every image below a folder, without labels, as out-of-distribution sets are published."""

from __future__ import annotations

from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.imagefolder import images_below
from clipq.calib_data.layout import existing_folder
from clipq.calib_data.source import DEFAULT_TEMPLATES, Source


def open_folder(rest: str, _split: str | None) -> Source:
    """Return the images below ``PATH`` at any depth, sorted by path; what their folders are called means nothing.

    Raises:
        MissingDataError: The folder does not exist.
        DataError: There is no image in it.
    """
    root = existing_folder(rest)
    names = images_below(root)
    return FileSource(f"folder:{root}", root, names, [-1] * len(names), classnames=(), templates=DEFAULT_TEMPLATES)
