"""Packs a bundle: its manifest, then exactly the files that it names, by name; the same bundle gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clipq.artifact import MANIFEST, Bundle, FileEntry, Manifest, contained, parse_manifest
from clipq.errors import RefusedError, UsageError
from clipq.files import atomic_path, reading, sha256_bytes
from clipq.pack.compression import BLOCK, Compressor, load_zstd
from clipq.pack.members import END, check_names, header, packed_bytes, padding
from clipq.pack.signature import signature_path
from clipq.progress import bar

SUFFIX = ".clipq.tar.zst"
_TAR = ".tar.zst"


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished pack.

    Attributes:
        path: Where it is.
        manifest: What is in it.
        manifest_sha256: Hash of ``manifest.json``.
        sha256: Hash of the pack.
        blake2b: BLAKE2b-512 of the pack, 64 bytes: what a signature signs.
        size_bytes: Of the pack.
        content_bytes: Of the files in it, the manifest too.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    sha256: str
    blake2b: bytes
    size_bytes: int
    content_bytes: int


def pack_bundle(folder: Path, target: Path) -> Packed:
    """Write a bundle into one file, each of its files checked by hash while it is read.

    The bytes depend on the manifest, the files and the version of zstd; not on times, owners, modes, or the order on disk. An earlier
    signature of ``target`` is removed.

    Args:
        folder: The bundle.
        target: The file to write, named ``*.tar.zst``; it is whole or absent.

    Raises:
        UsageError: There is no bundle, or ``target`` has another ending or is a folder.
        RefusedError: The manifest or a file is not what it should be.
        MissingRuntimeError: There is no zstd.
        BusyError: A run writes into the bundle.
        ClipqError: The disk is full, or ``target`` cannot be written.
    """
    load_zstd()
    _check_target(target)
    bundle = Bundle.open(folder)
    with reading(folder):
        data = (folder / MANIFEST).read_bytes()
        manifest = parse_manifest(data, folder / MANIFEST)
        check_names(manifest, str(bundle.folder))
        digests = hashlib.sha256(), hashlib.blake2b()
        sizes = [len(data), *(entry.size_bytes for entry in manifest.files.values())]
        with atomic_path(target) as part:
            with part.open("wb") as stream:
                _write(folder, manifest, data, Compressor(stream, packed_bytes(sizes), digests))
            size = part.stat().st_size
            signature_path(target).unlink(missing_ok=True)
    sha256, blake2b = digests
    return Packed(target, manifest, sha256_bytes(data), sha256.hexdigest(), blake2b.digest(), size, sum(sizes))


def _check_target(target: Path) -> None:
    if not target.name.endswith(_TAR) or target.name == _TAR:
        raise UsageError(f"{target} has another ending", expected=f"*{_TAR}", fix=f"Name it like -o NAME{SUFFIX}.")
    if target.is_dir():
        raise UsageError(f"{target} is a folder", expected="a file to write", fix="Choose another name with -o.")


def _write(folder: Path, manifest: Manifest, data: bytes, out: Compressor) -> None:
    out.write(header(MANIFEST, len(data)) + data + bytes(padding(len(data))))
    total = sum(-(-entry.size_bytes // BLOCK) for entry in manifest.files.values())
    with bar("Packing (MiB)", total, unit=" MiB") as advance:
        for name in sorted(manifest.files):
            entry = manifest.files[name]
            out.write(header(name, entry.size_bytes))
            _write_file(contained(folder, name), entry, out, advance)
            out.write(bytes(padding(entry.size_bytes)))
    out.write(END)
    out.close()


def _write_file(path: Path, entry: FileEntry, out: Compressor, advance: Callable[[int], None]) -> None:
    digest, left = hashlib.sha256(), entry.size_bytes
    with _open(path, entry) as stream:
        while left and (block := stream.read(min(BLOCK, left))):
            digest.update(block)
            out.write(block)
            left -= len(block)
            advance(1)
    if left or digest.hexdigest() != entry.sha256:
        raise RefusedError(
            f"{path} is not the file the manifest names",
            found=f"{left} bytes too few" if left else f"sha256 {digest.hexdigest()[:16]}…",
            expected=f"{entry.sha256[:16]}…",
            fix="Copy it again, or export again.",
        )


def _open(path: Path, entry: FileEntry) -> BinaryIO:
    """Open a regular file of the expected size; a link, a pipe or a device is not followed, not waited for, not read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read", found=error.strerror, expected="a regular file", fix="Export it again.") from error
    facts = os.fstat(handle)
    regular = stat.S_ISREG(facts.st_mode)
    if regular and facts.st_size == entry.size_bytes:
        return os.fdopen(handle, "rb")
    os.close(handle)
    found = f"{facts.st_size} bytes" if regular else "no regular file"
    raise RefusedError(
        f"{path} is not the file the manifest names",
        found=found,
        expected=f"{entry.size_bytes} bytes",
        fix="Copy it again, or export again.",
    )
