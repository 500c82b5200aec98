"""TensorRT's timings of kernels, kept by content hash in the user's cache folder: the next build is faster and chooses alike."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipq.engines.tensorrt.device import DeviceFacts
from clipq.errors import BusyError, ClipqError
from clipq.files import locked, sha256_bytes, write_bytes, write_text
from clipq.progress import note

_LATEST = "latest"
_KEPT = 16  # earlier ones per library, GPU and driver, so that a recorded build can be repeated
_WAIT_S = 10.0


def user_folder() -> Path:
    """Return where timings are kept when nothing else is said."""
    try:
        home = Path.home()
    except RuntimeError:  # a container whose user has no entry in the system's list of users
        home = Path(tempfile.gettempdir())
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "clipq" / "tensorrt"


class TimingCache:
    """The timings of one library, GPU and driver; files are named by the SHA-256 of their content, ``latest`` names one of them.

    Args:
        folder: Where the caches of all libraries and GPUs lie.
        version: Of the library.
        device: The GPU; timings of another one would be misleading, and TensorRT refuses them.
    """

    def __init__(self, folder: Path, version: str, device: DeviceFacts) -> None:
        parts = (version, f"sm{device.sm}", device.driver, device.name)
        self._folder = folder / re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(parts)).strip("-")

    def load(self, config: Any) -> str:
        """Give the latest timings to a build; return their hash, empty where there are none that fit."""
        digest, blob = self._latest()
        cache = config.create_timing_cache(blob)  # None where it is of no use, e.g. of another build of the same version
        if cache is not None and config.set_timing_cache(
            cache, False
        ):  # False: refuse those of another GPU; the argument has other names in other versions
            return digest
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return ""

    def save(self, config: Any, loaded: str) -> str:
        """Keep a build's timings, together with those that other builds kept meanwhile.

        Args:
            config: Of the finished build.
            loaded: What ``load`` returned.

        Returns:
            The hash of what was kept; empty where it could not be, which is said but fails no build.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return ""
        try:
            with _held(self._folder):
                digest, blob = self._latest()
                others = config.create_timing_cache(blob) if digest and digest != loaded else None
                if others is not None:
                    cache.combine(others, False)
                return self._write(bytes(cache.serialize()))
        except ClipqError as error:
            note(f"TensorRT's timings were not kept: {error}")
            return ""

    def _latest(self) -> tuple[str, bytes]:
        try:
            digest = (self._folder / _LATEST).read_text()
            blob = self._path(digest).read_bytes()
        except (OSError, ValueError):
            return "", b""
        return (digest, blob) if sha256_bytes(blob) == digest else ("", b"")

    def _write(self, blob: bytes) -> str:
        digest = sha256_bytes(blob)
        write_bytes(self._path(digest), blob)
        write_text(self._folder / _LATEST, digest)
        for old in sorted(self._folder.glob("*.timing"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            old.unlink()
        return digest

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.timing"


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    end = time.monotonic() + _WAIT_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield
