"""Packs made by hand with Python's tarfile, so that anything at all can stand in them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipq.pack.compression import load_zstd

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **changes: Any) -> Member:
    """Return a tar entry; ``changes`` are attributes of its header, such as ``type`` or ``size``."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def members(folder: Path) -> list[Member]:
    """Return what a pack of a bundle holds: the manifest, then its files by name."""
    manifest = (folder / "manifest.json").read_bytes()
    names = sorted(json.loads(manifest)["files"])
    return [member("manifest.json", manifest), *(member(name, (folder / name).read_bytes()) for name in names)]


def tar(entries: Sequence[Member], *, end: bytes = bytes(1024), form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return the entries as a tar; a header that announces more than its data is followed by its data all the same."""
    parts = []
    for info, data in entries:
        parts += [info.tobuf(form, "utf-8", "surrogateescape"), data, bytes(-len(data) % 512)]
    return b"".join([*parts, end])


def compress(data: bytes, *, level: int = 3, checksum: int = 1, window_log: int = 0) -> bytes:
    """Return one zstd frame."""
    zstd = load_zstd()
    parameter = zstd.CompressionParameter
    options = {parameter.compression_level: level, parameter.checksum_flag: checksum, parameter.window_log: window_log}
    encoder = zstd.ZstdCompressor(options=options)
    return bytes(encoder.compress(data) + encoder.flush())


def write_pack(path: Path, entries: Sequence[Member]) -> Path:
    """Write the entries as a pack."""
    path.write_bytes(compress(tar(entries)))
    return path


def edited(entries: Sequence[Member], change: Callable[[dict[str, Any]], Any]) -> list[Member]:
    """Return the entries with a changed manifest."""
    value = json.loads(entries[0][1])
    change(value)
    return [member("manifest.json", json.dumps(value).encode()), *entries[1:]]
