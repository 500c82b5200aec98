"""``hf:PATH[@REVISION][:SPLIT]``: image data sets of the Hugging Face hub as local parquet files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.layout import DEFAULT_SPLIT, check_labels, path_and_split, read_classnames, read_templates
from clipq.calib_data.source import MAX_ENCODED_BYTES, Sample, Source
from clipq.errors import DataError, UsageError, missing_extra, unknown_name

_ROWS = 32  # images taken from a row group at a time
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")  # the part of a file's name after its split


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of images and labels (None where there are none), and the names of the classes (may be empty)."""

    image: str
    label: str | None
    classnames: tuple[str, ...]


class ParquetSource:
    """Images of parquet files in order; see ``clipq.calib_data.source.Source``.

    Raises:
        DataError: There are no images, or labels and class names do not fit each other.
    """

    def __init__(self, data_id: str, files: list[Path], columns: _Columns, templates: tuple[str, ...]) -> None:
        self.id = data_id
        self.templates = templates
        self.labels: npt.NDArray[np.int64] = np.concatenate([_labels(file, columns.label) for file in files])
        self.classnames = columns.classnames if (self.labels >= 0).any() else ()
        self._files, self._image = files, columns.image
        check_labels(data_id, self.labels, self.classnames)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions; row groups without any are not read."""
        wanted = np.arange(len(self)) if positions is None else np.asarray(positions, np.int64)
        start = 0
        for file in self._files:
            with _open(file) as parquet:
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    rows = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
                    yield from self._read_group(parquet, file, group, rows, start)
                    start = stop

    def _read_group(self, parquet: Any, file: Path, group: int, rows: npt.NDArray[np.int64], start: int) -> Iterator[Sample]:
        if len(rows) == 0:
            return
        first = 0
        for batch in parquet.iter_batches(_ROWS, row_groups=[group], columns=[f"{self._image}.bytes"]):
            images = batch.column(0).field("bytes")
            for row in rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(images))].tolist():
                data = images[row - first].as_py() or b""
                position = start + row
                yield Sample(f"{file.name}/{position:08d}", int(self.labels[position]), data[: MAX_ENCODED_BYTES + 1])
            first += len(images)


def open_parquet(rest: str, split: str | None) -> Source:
    """Return the data set at ``PATH[@REVISION][:SPLIT]``: a parquet file, or a folder of them named by split; nothing is downloaded.

    The revision is kept in the id and not checked. ``classnames.txt`` and templates in the folder override what the files say.

    Raises:
        UsageError: The path is not local, or the split is unknown.
        DataError: There are no images in it, or labels and class names do not fit each other.
        MissingRuntimeError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "report")
    text, named = path_and_split(rest, split)
    path, revision = _local(text)
    folder = path if path.is_dir() else path.parent
    chosen = named or (DEFAULT_SPLIT if path.is_dir() else None)
    files = _files_of(path, chosen or DEFAULT_SPLIT) if path.is_dir() else [path]
    data_id = f"hf:{path}{revision}" + (f":{chosen}" if chosen else "")
    return ParquetSource(data_id, files, _columns(files[0], folder), read_templates(folder))


def _local(text: str) -> tuple[Path, str]:
    """Return the local path and the revision with its ``@`` (may be empty)."""
    name, at, revision = text.rpartition("@")
    for candidate, suffix in ((text, ""), (name, at + revision)):
        path = Path(candidate).expanduser().resolve()
        if candidate and path.exists():
            return path, suffix
    raise UsageError(
        f"hf:{text} is not a local folder or file",
        expected="a folder with data/test-*.parquet",
        fix="Data sets of the hub are not downloaded: fetch the parquet files first and give their folder.",
    )


def _files_of(folder: Path, split: str) -> list[Path]:
    """Return the files of a split, sorted: ``test.parquet``, ``test-00000-of-00002.parquet``, or ``test/0000.parquet``."""
    by_split: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        named = file.parent.name if file.stem.isdigit() else _SHARD.sub("", file.stem)
        by_split.setdefault(named, []).append(file)
    if not by_split:
        raise DataError(f"no parquet files in {folder}", expected=f"data/{split}-00000-of-00001.parquet", fix="Check the path.")
    if split not in by_split:
        raise unknown_name(f"split of hf:{folder}", split, by_split)
    return by_split[split]


def _open(file: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {file}", found=error, expected="a parquet file", fix="Fetch it again.") from error


def _columns(file: Path, folder: Path) -> _Columns:
    """Find the columns by the hub's feature types, or by their usual names where a file does not state them."""
    with _open(file) as parquet:
        schema = parquet.schema_arrow
    stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    images = [name for name, feature in stated.items() if feature.get("_type") == "Image"] or [
        n for n in ("image", "img") if n in schema.names
    ]
    labels = [name for name, feature in stated.items() if feature.get("_type") == "ClassLabel"] or [
        n for n in ("label",) if n in schema.names
    ]
    image = _only(file, "image", images)
    if image is None or f"{image}.bytes" not in {field.name for field in schema.field(image).flatten()}:
        raise DataError(
            f"{file} has no image column",
            found=", ".join(f"{field.name} ({field.type})" for field in schema),
            expected="image, with the fields bytes and path",
        )
    label = _only(file, "label", labels)
    names = tuple(stated.get(label, {}).get("names", ())) if label else ()
    return _Columns(image, label, (read_classnames(folder) or names) if label else ())


def _only(file: Path, kind: str, names: list[str]) -> str | None:
    if len(names) > 1 and kind not in names:
        raise DataError(
            f"{file} has several {kind} columns", found=", ".join(names), expected="one", fix=f"Rename one of them to {kind!r}."
        )
    return kind if kind in names else (names[0] if names else None)


def _labels(file: Path, column: str | None) -> npt.NDArray[np.int64]:
    with _open(file) as parquet:
        if column is None:
            return np.full(parquet.metadata.num_rows, -1, np.int64)
        values = parquet.read(columns=[column]).column(column)
    try:
        return np.asarray(values.fill_null(-1).to_numpy(), np.int64) if len(values) else np.empty(0, np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the column {column!r} of {file} is not a label", found=values.type, expected="integers") from error
