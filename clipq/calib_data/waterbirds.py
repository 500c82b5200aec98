"""``waterbirds:PATH[:common|counter|all]``: the test split of Waterbirds, by whether the background is the usual one.

The folder is that of WILDS or of GroupDRO (Sagawa et al. 2020, arXiv 1911.08731): ``metadata.csv`` with the columns ``img_filename``,
``y`` (0 landbird, 1 waterbird), ``split`` (2 is the test split) and ``place`` (0 land, 1 water), and the images below. ``common`` are
landbirds before land and waterbirds before water, ``counter`` the others, ``all`` (the default) both. Classes are told apart by
``landbird`` and ``waterbird`` with ``a photo of a {c}.``, unless ``zeroshot_classification_templates.txt`` stands beside the table.
"""

from __future__ import annotations

import csv
from pathlib import Path

from clipq.calib_data.groups import ALL, COMMON, COUNTER, path_and_group, with_group
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.layout import existing_folder, leaves_folder, read_templates
from clipq.calib_data.source import Source
from clipq.errors import DataError, UsageError

CLASSNAMES = ("landbird", "waterbird")
_COLUMNS = ("img_filename", "y", "split", "place")
_TEST = "2"


def open_waterbirds(rest: str, _split: str | None) -> Source:
    """Return the test images of a group.

    Raises:
        MissingDataError: The folder does not exist.
        UsageError: There is no ``metadata.csv`` in it, or no such group.
        DataError: The table cannot be read, or an image is missing.
    """
    path, group = path_and_group(rest, "Waterbirds")
    root = existing_folder(path)
    names, labels = _rows(root, group)
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(names)} images of {root} are missing", found=f"no {missing[0]}", fix="Unpack them again.")
    return FileSource(with_group(f"waterbirds:{root}", group), root, names, labels, classnames=CLASSNAMES, templates=read_templates(root))


def _rows(root: Path, group: str) -> tuple[list[str], list[int]]:
    """Return image and label of every test row of a group."""
    table = root / "metadata.csv"
    if not table.is_file():
        raise UsageError(f"no metadata.csv in {root}", expected="the folder of Waterbirds, e.g. waterbirds_v1.0", fix="Check the path.")
    names: list[str] = []
    labels: list[int] = []
    with table.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise DataError(f"{table} lacks columns", found=f"no {', '.join(missing)}", expected=", ".join(_COLUMNS))
        for row in reader:
            name, label, split, place = (row[column] or "" for column in _COLUMNS)
            _check(f"line {reader.line_num} of {table}", name, label, place)
            if split == _TEST and group in {ALL, COMMON if label == place else COUNTER}:
                names.append(name)
                labels.append(int(label))
    return names, labels


def _check(where: str, name: str, label: str, place: str) -> None:
    if label not in {"0", "1"} or place not in {"0", "1"} or not name or leaves_folder(name):
        raise DataError(
            f"{where} is not a row of Waterbirds",
            found=f"img_filename {name!r}, y {label!r}, place {place!r}",
            expected="a relative path, and 0 or 1 for y and place",
        )
