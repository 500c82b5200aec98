"""Unpacks a bundle: nothing is trusted that no hash names, and the folder is whole and checked, or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipq.artifact import MANIFEST, MANIFEST_LIMIT, FileEntry, Manifest, parse_manifest
from clipq.errors import ClipqError, RefusedError, UsageError
from clipq.files import cannot_write, sha256_bytes
from clipq.pack.compression import BLOCK, Decompressor, load_zstd
from clipq.pack.members import END, HEADER, check_names, padding, read_header
from clipq.pack.signature import PublicKey, check_signature
from clipq.progress import bar


@dataclass(frozen=True, slots=True)
class Unpacked:
    """An unpacked bundle.

    Attributes:
        folder: Where it is.
        manifest: What it holds.
        manifest_sha256: Hash of its ``manifest.json``.
        signed_by: The key whose signature was checked, or None where none was asked for.
        comment: What is signed with the pack.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    signed_by: PublicKey | None
    comment: str


def unpack_bundle(source: Path, target: Path, keys: Sequence[PublicKey] = ()) -> Unpacked:
    """Unpack a file of ``pack_bundle`` into a new folder, which appears under its name only when all of it is checked and on disk.

    Args:
        source: The pack.
        target: A new or empty folder.
        keys: Whose signature the pack must carry; its bytes are read by nothing else before it is checked. Empty asks for none.

    Raises:
        UsageError: There is no such file, or ``target`` is not empty.
        RefusedError: The signature is missing or wrong, or the pack is anything but the files of its manifest.
        MissingRuntimeError: There is no zstd, or no cryptography where a signature is to be checked.
        ClipqError: The disk is full or ``target`` cannot be written.
    """
    load_zstd()
    target = Path(os.path.realpath(target))
    if not source.is_file():
        raise UsageError(f"no pack at {source}", expected="a file that clipq pack wrote")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{target} is there already", expected="a new or an empty folder", fix="Choose another with -o.")
    try:
        with source.open("rb") as stream:
            return _unpack(stream, source, target, keys)
    except OSError as error:
        raise ClipqError(f"cannot read {source}", found=error.strerror, fix="Copy it again.") from error


def _unpack(stream: BinaryIO, source: Path, target: Path, keys: Sequence[PublicKey]) -> Unpacked:
    signed, key, comment = b"", None, ""
    if keys:
        signed = _blake2b(stream)
        key, comment = check_signature(source, keys, signed)
        stream.seek(0)
    digest = hashlib.blake2b()
    content = Decompressor(stream, str(source), digest)
    data = _read_manifest(content, str(source))
    manifest = parse_manifest(data, source / MANIFEST)
    check_names(manifest, str(source))
    with _folder(target) as part:
        _require_space(part, manifest, target)
        _read_files(content, manifest, source, part)
        content.finish()
        if keys and digest.digest() != signed:
            raise RefusedError(f"{source} changed after its signature was checked", fix="See who writes it, and unpack it again.")
        _write(part / MANIFEST, iter([data]))  # last: a folder without one is no bundle
    return Unpacked(target, manifest, sha256_bytes(data), key, comment)


def _blake2b(stream: BinaryIO) -> bytes:
    digest, total = hashlib.blake2b(), -(-os.fstat(stream.fileno()).st_size // BLOCK)
    with bar("Checking the signature (MiB)", total, unit=" MiB") as advance:
        while block := stream.read(BLOCK):
            digest.update(block)
            advance(1)
    return digest.digest()


def _read_manifest(content: Decompressor, source: str) -> bytes:
    name, size = read_header(content.read_exactly(HEADER), source)
    if name != MANIFEST:
        raise RefusedError(
            f"{source} does not begin with its manifest", found=repr(name), expected=MANIFEST, fix="Pack it with clipq pack."
        )
    if not 0 <= size <= MANIFEST_LIMIT:
        raise RefusedError(
            f"the manifest of {source} is too large",
            found=f"{size} bytes",
            expected=f"at most {MANIFEST_LIMIT}",
            fix="Do not use this pack.",
        )
    data = content.read_exactly(size)
    _read_zeros(content, padding(size), source)
    return data


def _read_files(content: Decompressor, manifest: Manifest, source: Path, folder: Path) -> None:
    left = dict(manifest.files)
    total = sum(-(-entry.size_bytes // BLOCK) for entry in left.values())
    with bar("Unpacking (MiB)", total, unit=" MiB") as advance:
        while left:
            block = content.read_exactly(HEADER)
            if block == bytes(HEADER):
                name = min(left)
                raise RefusedError(
                    f"{source} is not whole", found=f"no {name!r}", expected="every file of its manifest", fix="Pack it again."
                )
            name, size = read_header(block, str(source))
            entry = left.pop(name, None)
            if entry is None:
                found = "it twice" if name in manifest.files or name == MANIFEST else "a file that the manifest does not name"
                raise RefusedError(f"{source} holds {name!r}", found=found, expected="each file of the manifest once", fix="Do not use it.")
            if size != entry.size_bytes:
                found, expected = f"{size} bytes", f"{entry.size_bytes}, as its manifest says"
                raise RefusedError(f"{source} holds another {name!r}", found=found, expected=expected, fix="Do not use this pack.")
            _read_file(content, (name, entry), source, folder)
            advance(-(-size // BLOCK))
    _read_zeros(content, len(END), str(source))


def _read_file(content: Decompressor, named: tuple[str, FileEntry], source: Path, folder: Path) -> None:
    name, entry = named
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _write(path, _blocks(content, entry.size_bytes, f"{source} is cut off in {name!r}"))
    if found != entry.sha256:
        raise RefusedError(
            f"{source} holds another {name!r}",
            found=f"sha256 {found[:16]}…",
            expected=f"{entry.sha256[:16]}…",
            fix="Copy or pack it again.",
        )
    _read_zeros(content, padding(entry.size_bytes), str(source))


def _blocks(content: Decompressor, size: int, what: str) -> Iterator[bytes]:
    while size:
        block = content.read(min(size, BLOCK))
        if not block:
            raise RefusedError(what, found=f"{size} bytes too few", expected="its whole size", fix="Copy or pack it again.")
        size -= len(block)
        yield block


def _read_zeros(content: Decompressor, size: int, source: str) -> None:
    if any(content.read_exactly(size)):
        raise RefusedError(f"{source} is damaged", found="data between files", expected="zeros", fix="Copy or pack it again.")


def _write(path: Path, blocks: Iterator[bytes]) -> str:
    """Write a new file down to the disk and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("xb") as stream:
        for block in blocks:
            digest.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o644)
    return digest.hexdigest()


def _require_space(folder: Path, manifest: Manifest, target: Path) -> None:
    """Say before any work that the disk is too small; a disk that fills up meanwhile is told when it does."""
    needed = sum(entry.size_bytes for entry in manifest.files.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        fix = "Free space or choose another folder with -o."
        raise ClipqError(f"no space for {target}", found=f"{free} bytes", expected=f"{needed}, as the manifest says", fix=fix)


@contextlib.contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside ``target`` that becomes it in one step; on failure nothing stays."""
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
        yield part
        folders = [part, *(path for path in part.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o755)
            _sync(folder)
        part.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        if part is not None and part.exists():
            shutil.rmtree(part)


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
