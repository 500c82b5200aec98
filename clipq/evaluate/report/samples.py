"""The samples table: one row per engine and image, so that every figure can be computed again by someone else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import ClipqError, DataError
from clipq.files import atomic_path

SCORE_COLUMNS = ("mcm", "msp", "maxlogit", "energy_cos", "energy_logit", "entropy", "gl_mcm", "neglabel")
COLUMNS: Mapping[str, str] = {
    "engine": "engine id",
    "data": "data id of the image",
    "classifier": "ID data id whose class texts scored it; equals data for ID rows",
    "role": "id or ood",
    "image_id": "id of the image inside its data set",
    "label": "index of the right class, -1 for OOD rows",
    "prediction": "index of the most probable class",
    "confidence": "probability of the prediction",
    "correct5": "the right class is among the five most probable",
    **dict.fromkeys(SCORE_COLUMNS, "ood_score, higher = more OOD; NaN where an engine has none, no column where none has"),
}
_NAMES = ("engine", "data", "classifier", "role")


def check_samples(samples: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the number of rows after checking that every column but the OOD scores is there, and all are of one length.

    Raises:
        DataError: A column is missing or of another length.
    """
    needed = [name for name in COLUMNS if name not in SCORE_COLUMNS]
    missing = [name for name in needed if name not in samples]
    if missing:
        raise DataError("the samples table is incomplete", found=f"no {', '.join(missing)}", expected=", ".join(needed))
    lengths = {len(samples[name]) for name in COLUMNS if name in samples}
    if len(lengths) != 1:
        raise DataError("columns of the samples table differ in length", found=sorted(lengths))
    return lengths.pop()


def write_samples(samples: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write the table as Parquet (zstd), atomically; each column carries its meaning as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_samples(samples)
    fields, arrays = [], []
    for name, meaning in COLUMNS.items():
        if name not in samples:
            continue
        array = pa.array(samples[name].tolist() if samples[name].dtype.kind in "OU" else samples[name])
        array = array.dictionary_encode() if name in _NAMES else array
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata={"meaning": meaning}))
    with atomic_path(path) as part:
        pq.write_table(pa.table(arrays, schema=pa.schema(fields)), part, compression="zstd")


def stacked(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Return one table of several; a score that some parts lack is NaN there, one that all lack is left out."""
    here = [name for name in COLUMNS if any(name in part for part in parts)]
    return {name: np.concatenate([part[name] if name in part else np.full(len(part["engine"]), np.nan) for part in parts]) for name in here}


def has_score(rows: Mapping[str, npt.NDArray[Any]], score: str) -> bool:
    """Tell whether every one of the rows has an OOD score."""
    return score in rows and not np.isnan(rows[score]).any()


def read_samples(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a table that ``write_samples`` wrote.

    Raises:
        ClipqError: The file is no Parquet table.
        DataError: A column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=None)
    except (pa.ArrowException, OSError) as error:
        raise ClipqError(f"cannot read {path}", found=error, fix="Run clipq eval again.") from error
    table = table.rename_columns(["energy_logit" if name == "energy" else name for name in table.column_names])  # before there were two
    samples = {
        name: np.asarray(table.column(name).to_pylist() if name in {*_NAMES, "image_id"} else table.column(name))
        for name in table.column_names
    }
    check_samples(samples)
    return samples


def select(samples: Mapping[str, npt.NDArray[Any]], **values: str) -> dict[str, npt.NDArray[Any]]:
    """Return the rows whose columns have the given values, e.g. ``select(samples, engine="torch-fp32", role="id")``."""
    keep = np.ones(len(samples["engine"]), dtype=bool)
    for name, value in values.items():
        keep &= samples[name] == value
    return {name: column[keep] for name, column in samples.items()}


def grouped(samples: Mapping[str, npt.NDArray[Any]]) -> dict[tuple[str, str, str], dict[str, npt.NDArray[Any]]]:
    """Return the rows of each (engine, data, classifier), found in one pass over the table."""
    keys = ("engine", "data", "classifier")
    codes = np.zeros(len(samples["engine"]), dtype=np.int64)
    for name in keys:
        numbers: dict[str, int] = {}
        column = np.fromiter((numbers.setdefault(value, len(numbers)) for value in samples[name].tolist()), np.int64, len(codes))
        codes = codes * max(len(numbers), 1) + column
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
    return {
        (str(samples["engine"][rows[0]]), str(samples["data"][rows[0]]), str(samples["classifier"][rows[0]])): {
            name: column[rows] for name, column in samples.items()
        }
        for rows in parts
    }
