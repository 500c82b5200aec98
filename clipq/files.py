"""Files that are whole or absent: atomic writes, hashes, and locks that die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipq.errors import BusyError, ClipqError


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of key order and spacing."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it becomes ``target`` in one step, on failure nothing stays.

    A reader, or a run after ``kill -9``, sees the old file or the whole new one.

    Raises:
        ClipqError: The disk is full or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        raise cannot_write(target, error) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        part.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError) -> ClipqError:
    """Return the error for a file or folder that the system does not let us write."""
    return ClipqError(f"cannot write {target}", found=error.strerror or str(error), fix="Free space or choose another folder with -o.")


def write_bytes(target: Path, data: bytes) -> None:
    """Write ``data`` to ``target`` atomically."""
    with atomic_path(target) as part:
        part.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``target`` atomically."""
    write_bytes(target, text.encode())


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically; NaN and infinity are refused because JSON has no such numbers."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(folder: Path, *, exclusive: bool = True) -> Iterator[None]:
    """Hold ``folder`` while the block runs; the lock ends with the process, even after ``kill -9``.

    Raises:
        BusyError: Another run holds the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+")
    except OSError as error:
        raise ClipqError(f"cannot open {folder}", found=error.strerror, fix="Choose another folder with -o.") from error
    with stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{folder} is in use by another clipq run", fix="Wait for it to end, or choose another folder with -o."
            ) from None
        yield


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep writers out of ``folder`` while the block runs; a folder that nobody can write needs no lock.

    Raises:
        BusyError: A run writes into the folder.
    """
    if not os.access(folder, os.W_OK):
        yield
        return
    with locked(folder, exclusive=False):
        yield
