"""zstd in a stream: one frame, memory that does not grow with the file, an end that is told from a cut."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, BinaryIO, Protocol

from clipq.errors import RefusedError, missing_extra

LEVEL = 3  # weights hardly shrink at any level; this one keeps up with a disk
BLOCK = 1 << 20  # bytes read, compressed and written at once
_FED = 1 << 16  # compressed bytes given to the decoder at once
_WINDOW_LOG = 23  # 8 MiB, what RFC 8878 recommends every decoder to have; a frame that asks for more memory is refused
_MAGIC = bytes.fromhex("28b52ffd")
_DESCRIPTOR = 0b00100  # of the frame's fifth byte the lower five bits: a checksum, no dictionary, nothing reserved


class Digest(Protocol):
    """What ``hashlib`` returns."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes in."""

    def digest(self) -> bytes:
        """Return the hash of all bytes so far."""

    def hexdigest(self) -> str:
        """Return it as hex digits."""


def load_zstd() -> Any:
    """Return Python's own zstd (3.14) or its backport.

    Raises:
        MissingRuntimeError: Neither is here.
    """
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise missing_extra("zstd", "pack")


class Compressor:
    """Writes one frame into a stream; the same bytes for the same content, whatever the sizes of the writes.

    Args:
        stream: Where the frame goes.
        size: Bytes of the content; other than that many is an error of zstd.
        digests: What takes in the compressed bytes.
    """

    def __init__(self, stream: BinaryIO, size: int, digests: tuple[Digest, ...]) -> None:
        zstd = load_zstd()
        parameter = zstd.CompressionParameter
        self._encoder = zstd.ZstdCompressor(options={parameter.compression_level: LEVEL, parameter.checksum_flag: 1})
        self._encoder.set_pledged_input_size(size)
        self._stream, self._digests = stream, digests

    def write(self, data: bytes) -> None:
        """Compress more content."""
        self._put(self._encoder.compress(data))

    def close(self) -> None:
        """End the frame."""
        self._put(self._encoder.flush())

    def _put(self, data: bytes) -> None:
        for digest in self._digests:
            digest.update(data)
        self._stream.write(data)


class Decompressor:
    """Reads the content of the one frame that a stream holds.

    Args:
        stream: Where the frame comes from.
        name: What messages call it.
        digest: What takes in the compressed bytes.
    """

    def __init__(self, stream: BinaryIO, name: str, digest: Digest) -> None:
        zstd = load_zstd()
        self._error: type[Exception] = zstd.ZstdError
        self._decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        self._stream, self._name, self._digest = stream, name, digest
        self._fed = 0

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, at least one; none at the end of the frame.

        Raises:
            RefusedError: The file is no pack, is damaged, is cut off, or needs too much memory.
        """
        while not self._decoder.eof:
            data = self._decode(self._feed() if self._decoder.needs_input else b"", size)
            if data:
                return data
        return b""

    def read_exactly(self, size: int) -> bytes:
        """Return ``size`` bytes; for small sizes.

        Raises:
            RefusedError: As ``read``, and where the content ends before.
        """
        parts: list[bytes] = []
        while size:
            part = self.read(size)
            if not part:
                raise self._cut("its content ends early")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Check that content and file end here.

        Raises:
            RefusedError: Something follows.
        """
        if self.read(1) or self._decoder.unused_data or self._stream.read(1):
            raise RefusedError(f"{self._name} goes on after its end", found="more data", expected="the end", fix="Copy or pack it again.")

    def _feed(self) -> bytes:
        data = self._stream.read(_FED)
        if not self._fed and (data[:4] != _MAGIC or len(data) < 5 or data[4] & 0b11111 != _DESCRIPTOR):
            raise RefusedError(
                f"{self._name} is no pack", found=f"{data[:5].hex() or 'nothing'}", expected="zstd's head", fix="Make one with clipq pack."
            )
        if not data:
            raise self._cut(f"the file ends after {self._fed} bytes")
        self._fed += len(data)
        self._digest.update(data)
        return data

    def _decode(self, data: bytes, size: int) -> bytes:
        try:
            content: bytes = self._decoder.decompress(data, size)
        except self._error as error:
            raise RefusedError(f"{self._name} is damaged", found=str(error).rstrip("."), fix="Copy or pack it again.") from error
        return content

    def _cut(self, found: str) -> RefusedError:
        return RefusedError(f"{self._name} is cut off", found=found, expected="more data", fix="Copy or pack it again.")
