"""An export in stages: what is finished is recorded with its hashes, so that a killed run continues where it stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipq.artifact import MANIFEST, FileEntry, describe_file
from clipq.errors import ClipqError, UsageError
from clipq.files import sha256_file, write_json
from clipq.progress import note

RECORD = "stages.json"
_LOCK = ".lock"
_WORTH_SAYING_S = 0.1
Facts = Mapping[str, Any]


class Stages:
    """The finished stages of one export, in ``stages.json``; the record is gone once the manifest stands.

    Attributes:
        folder: The bundle to be.
        files: Every file that was made, by its name in the bundle.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], finished: Mapping[str, Any]) -> None:
        self.files: dict[str, FileEntry] = {}
        self.folder = folder
        self._key = key
        self._finished = dict(finished)

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any], *, resume: bool) -> Stages:
        """Start an export in a folder that the caller has locked, or continue one.

        Args:
            folder: The bundle to be.
            key: What the stages depend on; a record with another key is not continued.
            resume: Continue what a killed run left.

        Raises:
            UsageError: The folder is not empty and not ours to continue.
        """
        refuse_foreign(folder, resume=resume)
        finished = _read_record(folder, key)
        if finished:
            _sweep(folder)
        stages = cls(folder, key, finished)
        stages._write()
        return stages

    def run(self, title: str, names: Sequence[str], parent: str, make: Callable[[], Facts]) -> Facts:
        """Make files, unless a record says they are made and they still have their hashes; return what ``make`` said of them.

        Args:
            title: Unique title of the stage, for the record and the reader.
            names: Names in the bundle of the files that ``make`` writes; a ``<name>.data`` beside one is found.
            parent: Hash of what they are made from.
            make: Writes the files and returns JSON facts.

        Raises:
            ClipqError: The disk is full or the folder cannot be written; or what ``make`` raises.
        """
        stage = self._finished.get(title)
        if stage is None or not self._intact(stage["files"], parent):
            stage = self._make(title, names, parent, make)
        self.files.update({name: FileEntry(**entry) for name, entry in stage["files"].items()})
        facts: Facts = stage["facts"]
        return facts

    def close(self) -> None:
        """Remove the record; call it when the manifest stands."""
        (self.folder / RECORD).unlink(missing_ok=True)

    def _make(self, title: str, names: Sequence[str], parent: str, make: Callable[[], Facts]) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            facts = make()
        except OSError as error:
            raise ClipqError(
                f"cannot write {self.folder}",
                found=error.strerror or error,
                fix="Free space, then run the same command again with --resume.",
            ) from error
        seconds = time.perf_counter() - began
        if seconds >= _WORTH_SAYING_S:
            note(f"{title}: {seconds:.1f} s")
        written = [name for base in names for name in (base, f"{base}.data") if (self.folder / name).is_file()]
        stage = {"files": {name: asdict(describe_file(self.folder, name, parent)) for name in written}, "facts": facts}
        self._finished[title] = stage
        self._write()
        return stage

    def _intact(self, files: Mapping[str, Mapping[str, Any]], parent: str) -> bool:
        whole = ((self.folder / name).is_file() and sha256_file(self.folder / name) == files[name]["sha256"] for name in files)
        return all(entry["parent"] == parent for entry in files.values()) and all(whole)

    def _write(self) -> None:
        write_json(self.folder / RECORD, {"key": self._key, "finished": self._finished})


def refuse_foreign(folder: Path, *, resume: bool) -> None:
    """Check that an export may write into a folder without a manifest: it is new, empty, or holds an export to be continued.

    Raises:
        UsageError: It is none of these.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", fix="Choose another folder with -o.")
    present = {path.name for path in folder.iterdir()} - {_LOCK} if folder.exists() else set()
    if RECORD in present and not resume:
        raise UsageError(
            f"{folder} holds an unfinished export", fix="Continue it with --resume, delete it, or choose another folder with -o."
        )
    if present and RECORD not in present and MANIFEST not in present:
        raise UsageError(
            f"{folder} is not empty", found=", ".join(sorted(present)[:3]), expected="a new or empty folder", fix="Choose another with -o."
        )


def _read_record(folder: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        found, finished = record["key"], record["finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a record of an export", found=error, fix="Delete the folder and export again.") from error
    if found != key:
        different = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
        raise UsageError(
            f"the unfinished export in {folder} cannot be continued",
            found=f"another {', '.join(different)}",
            fix="Repeat the command it was begun with, or choose another folder with -o.",
        )
    return dict(finished)


def _sweep(folder: Path) -> None:
    """Remove what a killed run left half written: only names that begin with a dot, and not the lock."""
    for path in list(folder.rglob(".*")):
        if path.name == _LOCK or not path.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
