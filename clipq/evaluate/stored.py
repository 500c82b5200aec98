"""Outputs that someone stored: arrays with logits or probabilities, ``.csv`` with predictions; nothing in them is ever executed."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clipq.errors import DataError, RefusedError, UsageError
from clipq.evaluate.disk_arrays import DiskArray, open_npy, open_npz
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, Matrix, as_vector
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits, outcomes_from_predictions, outcomes_from_probabilities

COLUMNS = ("true_label", "pred_label", "confidence")
KINDS = "an .npz, .npy or .csv file, or a folder of .npy files"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of the arrays in an ``.npz`` file, and of ``.npy`` files in a folder."""

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

    logits: Matrix | None = None
    probabilities: Matrix | None = None
    confidence: Float64 | None = None
    predictions: Int64 | None = None
    labels: Array | None = None

    @property
    def classes(self) -> int | None:
        """Return the number of classes; None where only predictions are there."""
        matrix = self.probabilities if self.logits is None else self.logits
        return None if matrix is None else matrix.shape[1]

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
    """Read an ``.npz`` or ``.csv`` file, or ``.npy`` files: those of a folder, or one with its labels beside it.

    Logits and probabilities of more than 256 MiB stay on disk and are read block by block.

    Args:
        path: The file or folder.
        keys: Names of the arrays.
        labelled: Whether labels must be there; a file of OOD samples needs none.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        RefusedError: It is, or holds, a pickle.
        DataError: It cannot be read, or lacks what is needed.
    """
    if path.is_dir():
        return _from_files(path, keys, _in_folder(path, keys), labelled=labelled)
    if not path.is_file():
        raise UsageError(f"no file at {path}", expected=KINDS)
    if path.suffix in PICKLES or _starts_like_a_pickle(path):
        raise RefusedError(f"{path} is a pickle, which can run code when it is read", fix="Save the arrays with numpy.savez instead.")
    if path.suffix == ".npz":
        return _from_arrays(path, keys, open_npz(path), labelled=labelled)
    if path.suffix == ".npy":
        return _from_files(path, keys, pair_of(path, keys), labelled=labelled)
    if path.suffix == ".csv":
        return _read_csv(path, labelled=labelled)
    raise UsageError(f"{path} is of an unknown kind", found=path.suffix or "no suffix", expected=KINDS)


def check_same_samples(path: Path, own: Outcomes, baseline: Path, before: Outcomes) -> None:
    """Check by their labels that two files are of the same samples in the same order.

    Raises:
        DataError: They are not.
    """
    if np.array_equal(own.labels, before.labels):
        return
    found = f"{len(own):,} and {len(before):,} samples"
    if len(own) == len(before):
        differ = np.flatnonzero(own.labels != before.labels)
        found = f"other labels in {len(differ):,} of {len(own):,} rows, the first in row {differ[0]}"
    raise DataError(f"{path} and {baseline} cannot be paired", found=found, expected="the same samples in the same order")


def files_of(path: Path, keys: Keys) -> list[Path]:
    """Return the files that ``read_stored`` reads for this path."""
    if path.is_dir():
        return [file for file in _in_folder(path, keys).values() if file.is_file()]
    return [file for file in pair_of(path, keys).values() if file.is_file()] if path.suffix == ".npy" else [path]


def pair_of(path: Path, keys: Keys) -> dict[str, Path]:
    """Return array name -> file of a ``.npy`` file and its labels: ``int8-logits.npy`` has them in ``int8-labels.npy``.

    Raises:
        UsageError: The name does not say what the array is.

    >>> [file.name for file in pair_of(Path("int8-logits.npy"), Keys()).values()]
    ['int8-logits.npy', 'int8-labels.npy']
    """
    for name in (keys.logits, keys.probabilities):
        if name in path.stem:
            return {name: path, keys.labels: path.with_name(path.name.replace(name, keys.labels))}
    raise UsageError(
        f"the name of {path} does not say what it holds",
        expected=f"{keys.logits} or {keys.probabilities} in it",
        fix="Rename it, or say what is in it: --logits NAME or --probabilities NAME.",
    )


def _in_folder(path: Path, keys: Keys) -> dict[str, Path]:
    return {name: path / f"{name}.npy" for name in (keys.logits, keys.probabilities, keys.labels)}


def _starts_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80"  # the PROTO opcode of every pickle since protocol 2


def _from_files(path: Path, keys: Keys, files: Mapping[str, Path], *, labelled: bool) -> Stored:
    for file in files.values():
        if file.is_file() and _starts_like_a_pickle(file):
            raise RefusedError(f"{file} is a pickle, which can run code when it is read", fix="Save the array with numpy.save instead.")
    arrays = {name: partial(open_npy, file) for name, file in files.items() if file.is_file()}
    return _from_arrays(path, keys, arrays, labelled=labelled)


def _from_arrays(path: Path, keys: Keys, arrays: Mapping[str, Callable[[], DiskArray]], *, labelled: bool) -> Stored:
    """Return what the arrays hold; those that are not asked for stay unread."""
    scores = [name for name in (keys.logits, keys.probabilities) if name in arrays]
    if len(scores) != 1 or (labelled and keys.labels not in arrays):
        raise DataError(
            f"{path} does not hold the arrays that are needed",
            found=", ".join(sorted(arrays)) or "no arrays",
            expected=f"either {keys.logits} or {keys.probabilities}, and {keys.labels}",
            fix="Say which is which: --logits NAME or --probabilities NAME, and --labels NAME.",
        )
    try:
        matrix = arrays[scores[0]]().matrix(scores[0])
        labels = arrays[keys.labels]().read() if keys.labels in arrays else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read", found=error, fix="Write it again with numpy.savez.") from error
    return Stored(logits=matrix, labels=labels) if scores[0] == keys.logits else Stored(probabilities=matrix, labels=labels)


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
        return float(text or "") if name == "confidence" else int(np.int64(int(text or "")))
    except (ValueError, OverflowError):
        raise DataError(
            f"line {line} of {path} is not a row of numbers",
            found=f"{name} {text!r}",
            expected="whole numbers as labels, a number as confidence",
        ) from None
