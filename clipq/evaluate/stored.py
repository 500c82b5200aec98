"""Outputs that someone stored: ``.npz`` with logits or probabilities, ``.csv`` with predictions; nothing in them is ever executed."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipq.errors import DataError, RefusedError, UsageError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_vector
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits, outcomes_from_predictions, outcomes_from_probabilities

COLUMNS = ("true_label", "pred_label", "confidence")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of the arrays in an ``.npz`` file."""

    logits: str = "logits"
    probabilities: str = "probabilities"
    labels: str = "labels"


@dataclass(frozen=True, slots=True)
class Stored:
    """What one file holds; only one of logits, probabilities and confidence is there.

    Attributes:
        logits: ``(n, classes)``.
        probabilities: ``(n, classes)``.
        confidence: ``(n,)`` of the predicted class.
        predictions: ``(n,)``, beside ``confidence``.
        labels: ``(n,)``; None in a file of OOD samples.
    """

    logits: Array | None = None
    probabilities: Array | None = None
    confidence: Float64 | None = None
    predictions: Int64 | None = None
    labels: Array | None = None

    def outcomes(self) -> Outcomes:
        """Return the outcomes, with as many columns as the file allows.

        Raises:
            DataError: There are no labels, or the arrays are not what their names say.
        """
        if self.labels is None:
            raise DataError("the file has no labels", expected="labels beside the logits or probabilities")
        if self.logits is not None:
            return outcomes_from_logits(self.logits, self.labels)
        if self.probabilities is not None:
            return outcomes_from_probabilities(self.probabilities, self.labels)
        assert self.predictions is not None
        assert self.confidence is not None
        return outcomes_from_predictions(self.labels, self.predictions, self.confidence)


def read_stored(path: Path, keys: Keys, *, labelled: bool = True) -> Stored:
    """Read a ``.npz`` or ``.csv`` file.

    Args:
        path: The file.
        keys: Names of the arrays in an ``.npz`` file.
        labelled: Whether labels must be there; a file of OOD samples needs none.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        RefusedError: It is, or holds, a pickle.
        DataError: It cannot be read, or lacks what is needed.
    """
    if not path.is_file():
        raise UsageError(f"no file at {path}", expected="an .npz or .csv file")
    if path.suffix in PICKLES or _starts_like_a_pickle(path):
        raise RefusedError(f"{path} is a pickle, which can run code when it is read", fix="Save the arrays with numpy.savez instead.")
    if path.suffix == ".npz":
        return _read_npz(path, keys, labelled=labelled)
    if path.suffix == ".csv":
        return _read_csv(path, labelled=labelled)
    raise UsageError(f"{path} is of an unknown kind", found=path.suffix or "no suffix", expected=".npz or .csv")


def _starts_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80"  # the PROTO opcode of every pickle since protocol 2


def _read_npz(path: Path, keys: Keys, *, labelled: bool) -> Stored:
    arrays = _load_arrays(path, keys)
    scores = [name for name in (keys.logits, keys.probabilities) if name in arrays]
    if len(scores) != 1 or (labelled and keys.labels not in arrays):
        raise DataError(
            f"{path} does not hold the arrays that are needed",
            found=", ".join(sorted(arrays)) or "no arrays",
            expected=f"either {keys.logits} or {keys.probabilities}, and {keys.labels}",
            fix="Say which is which: --logits NAME or --probabilities NAME, and --labels NAME.",
        )
    return Stored(logits=arrays.get(keys.logits), probabilities=arrays.get(keys.probabilities), labels=arrays.get(keys.labels))


def _load_arrays(path: Path, keys: Keys) -> Mapping[str, Array]:
    """Return the arrays of a file; those that are not asked for stay unread (and empty here)."""
    needed = (keys.logits, keys.probabilities, keys.labels)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] if name in needed else np.empty(0) for name in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise RefusedError(
                f"{path} holds Python objects, which can run code when they are read", fix="Save plain number arrays with numpy.savez."
            ) from error
        raise DataError(f"{path} is not an .npz file", found="something else", fix="Write it with numpy.savez.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, AttributeError, TypeError) as error:
        raise DataError(f"{path} cannot be read", found=error, fix="Write it again with numpy.savez.") from error


def _read_csv(path: Path, *, labelled: bool) -> Stored:
    needed = COLUMNS if labelled else COLUMNS[2:]
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks columns", found=", ".join(reader.fieldnames or ()) or "nothing", expected=", ".join(needed))
            columns = _columns(path, reader, needed)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV file", found=error) from error
    confidence = as_vector(np.array(columns[-1]), f"confidences of {path}")
    if not labelled:
        return Stored(confidence=confidence)
    return Stored(confidence=confidence, predictions=np.array(columns[1], dtype=np.int64), labels=np.array(columns[0], dtype=np.int64))


def _columns(path: Path, reader: csv.DictReader[str], needed: tuple[str, ...]) -> list[list[float]]:
    columns: list[list[float]] = [[] for _ in needed]
    for row in reader:
        for column, name in zip(columns, needed, strict=True):
            column.append(_number(path, reader.line_num, name, row[name]))
    if not columns[0]:
        raise DataError(f"{path} has no rows", expected="one row per sample")
    return columns


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        return float(text or "") if name == "confidence" else int(text or "")
    except ValueError:
        raise DataError(
            f"line {line} of {path} is not a row of numbers",
            found=f"{name} {text!r}",
            expected="whole numbers as labels, a number as confidence",
        ) from None
