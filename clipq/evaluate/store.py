"""The embedding store: rows in order, appended in whole shards, so that a killed run goes on where it stood."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipq.engines.base import Float32
from clipq.errors import DataError
from clipq.files import atomic_path, sha256_json, write_json
from clipq.progress import note

SHARD_ROWS = 512
FINISHED = "finished.json"


class Store:
    """Embeddings of one tower over one data set, in a folder named by the hash of everything that decides their values.

    Row i belongs to image (or text) i of its index; a row of NaN stands for an image that could not be read. Shards
    ``<first row>-<row after the last>.npy`` are renamed into place, so each is whole or absent.

    Attributes:
        folder: Where the shards lie.
        rows: How many leading rows are here, buffered ones included.
        finished: Whether every row is on disk.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any]) -> None:
        self.folder = root / sha256_json(facts)[:32]
        self.finished = (self.folder / FINISHED).is_file()
        self._facts = dict(facts)
        self._buffer: list[Float32] = []
        self._written = _whole_rows(self.folder)
        self.rows = self._written
        self._shards: list[tuple[int, int, Path]] | None = None

    def discard(self) -> None:
        """Remove every row, to start again from none."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._buffer, self._written, self.rows, self.finished, self._shards = [], 0, 0, False, None

    def append(self, rows: Float32) -> None:
        """Add rows ``(n, dim)``; they reach the disk a shard at a time."""
        self._buffer.append(rows)
        self.rows += len(rows)
        if self.rows - self._written >= SHARD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as one shard."""
        if not self._buffer:
            return
        rows = np.concatenate(self._buffer)
        with atomic_path(self.folder / f"{self._written:09d}-{self.rows:09d}.npy") as part, part.open("wb") as stream:
            np.save(stream, rows, allow_pickle=False)
        self._buffer, self._written = [], self.rows

    def finish(self) -> None:
        """Write what is buffered and declare the store complete."""
        self.flush()
        write_json(self.folder / FINISHED, {"facts": self._facts, "rows": self.rows, "sha256": _sha256_rows(self.folder)})
        for part in self.folder.glob(".*.part"):  # left by a run that was killed
            part.unlink(missing_ok=True)
        self.finished = True

    def partial(self) -> Float32:
        """Return the rows that are on disk so far, float32 ``(n, dim)``; ``(0, 0)`` when there are none."""
        shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in _shards(self.folder)]
        return np.concatenate(shards) if shards else np.empty((0, 0), np.float32)

    def read(self) -> Float32:
        """Return all rows, float32 ``(n, dim)``; what can walk in blocks takes ``block``.

        Raises:
            DataError: The store is unfinished, or its rows are not those that were written.
        """
        return self.block(slice(0, len(self)))

    def __len__(self) -> int:
        """Return the number of rows on disk."""
        return self._written

    def dim(self) -> int:
        """Return the length of a row; 0 where there is none."""
        found = self._checked()
        return int(np.load(found[0][2], mmap_mode="r", allow_pickle=False).shape[1]) if found else 0

    def block(self, rows: slice) -> Float32:
        """Return consecutive rows, float32 ``(rows, dim)``; the first call reads every shard once, to check them.

        Raises:
            DataError: The store is unfinished, or its rows are not those that were written.
        """
        begin, end, _ = rows.indices(len(self))
        parts = [
            np.load(path, mmap_mode="r", allow_pickle=False)[max(begin - first, 0) : end - first]
            for first, stop, path in self._checked()
            if first < end and stop > begin
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dim()), np.float32)

    def _checked(self) -> list[tuple[int, int, Path]]:
        """Return first row, row after the last, and file of every shard, once the whole store is known to be what was written."""
        if not self.finished:
            raise DataError(f"{self.folder} is unfinished", fix="Run clipq eval again with --resume.")
        if self._shards is None:
            if _sha256_rows(self.folder) != json.loads((self.folder / FINISHED).read_text())["sha256"]:
                raise DataError(f"the embeddings in {self.folder} were changed", fix="Delete this folder and run clipq eval again.")
            self._shards = [(*_span(path), path) for path in _shards(self.folder)]
        return self._shards


class Stores:
    """All stores under one folder, one object per store.

    Finished stores are always used again: their name says what they hold. Unfinished ones go on only when asked to.

    Args:
        root: Where the stores are.
        resume: Whether to go on with unfinished stores; else they are discarded.
    """

    def __init__(self, root: Path, *, resume: bool) -> None:
        self._root = root
        self._resume = resume
        self._open: dict[Path, Store] = {}

    def of(self, facts: Mapping[str, Any]) -> Store:
        """Return the store for these facts; equal facts give the same object."""
        store = Store(self._root, facts)
        if store.folder not in self._open:
            if store.rows and not store.finished and not self._resume:
                note(f"discarding {store.rows} embeddings of an interrupted run; --resume would go on from there")
                store.discard()
            self._open[store.folder] = store
        return self._open[store.folder]


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*-[0-9]*.npy"))


def _whole_rows(folder: Path) -> int:
    rows = 0
    for path in _shards(folder):
        first, stop = _span(path)
        if first != rows:
            raise DataError(f"{folder} lacks rows {rows} to {first}", fix="Delete this folder and run again.")
        rows = stop
    return rows


def _span(path: Path) -> tuple[int, int]:
    first, stop = map(int, path.stem.split("-"))
    return first, stop


def _sha256_rows(folder: Path) -> str:
    """Return the hash of the rows of all shards, one after the other, however they are cut into shards."""
    digest = hashlib.sha256()
    for path in _shards(folder):
        digest.update(np.ascontiguousarray(np.load(path, mmap_mode="r", allow_pickle=False)).data)
    return digest.hexdigest()
