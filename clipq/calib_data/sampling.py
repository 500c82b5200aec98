"""The calibration list of a bundle, and the check that no evaluation image was calibrated on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

from clipq.calib_data.index import DataIndex
from clipq.errors import DataError
from clipq.files import write_text

CALIBRATION_LIST = "calibration.csv"
TRAINING_LIST = "training_pairs.csv"  # the images that towers were trained on, with those held out to watch it
OOD_LIST = "calibration_ood.csv"  # the OOD images on which a search decided what stays unquantized: no less seen

_HEADER = ["image_id", "sha256"]
_NAMED = 3


def write_calibration_list(path: Path, index: DataIndex) -> None:
    """Write a calibration list: the id and the hash of every image, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(zip(index.ids, index.sha256, strict=True))
    write_text(path, text.getvalue())


def read_calibration_list(path: Path) -> dict[str, str]:
    """Return image id to SHA-256 of a list that ``write_calibration_list`` wrote.

    Raises:
        DataError: The file cannot be read or is not such a list.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}", found=error, fix="Export the bundle again.") from error
    if not rows or rows[0] != _HEADER:
        raise DataError(f"{path} is not a calibration list", expected=f"the columns {','.join(_HEADER)}", fix="Export the bundle again.")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not re.fullmatch("[0-9a-f]{64}", row[1]):
            raise DataError(f"{path} has a wrong row {number}", found=row, expected="an id and a sha256", fix="Export the bundle again.")
    return {row[0]: row[1] for row in rows[1:]}


def refuse_overlap(calibration_hashes: Collection[str], index: DataIndex) -> None:
    """Check that no image of an evaluation index was calibrated on, whatever its name is.

    Raises:
        DataError: Some were; the line says how many and names the first.
    """
    known = frozenset(calibration_hashes)
    seen = [image_id for image_id, sha256 in zip(index.ids, index.sha256, strict=True) if sha256 in known]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(index)} images of {index.data_id} were used for calibration",
            found=", ".join(seen[:_NAMED]) + (", …" if len(seen) > _NAMED else ""),
            expected="none",
            fix="Evaluate on another split, or export again with other --calib images.",
        )
