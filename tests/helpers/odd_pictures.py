"""Picture files that people really have, and files that lie about their size."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def _picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode.startswith("I;16"):
        return Image.fromarray(rng.integers(0, 65536, (30, 40), np.uint16))
    rgba = Image.fromarray(rng.integers(0, 256, (30, 40, 4), np.uint8))
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode) if mode != "LA" else rgba.convert("LA")


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _rotated(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_picture(), kind, exif=exif)


def _animated(kind: str) -> bytes:
    frames = [_picture(seed=seed) for seed in range(3)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


# What it is called -> its bytes. Each can be read, and becomes what open_clip's transform makes of it.
READABLE: dict[str, Callable[[], bytes]] = {
    "EXIF rotation, JPEG": lambda: _rotated("JPEG"),
    "EXIF rotation, PNG": lambda: _rotated("PNG"),
    "EXIF rotation, WebP": lambda: _rotated("WEBP"),
    "broken EXIF": lambda: _saved(_picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff no directory"),
    "CMYK JPEG": lambda: _saved(_picture("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: _saved(_picture("CMYK"), "TIFF"),
    "grey JPEG": lambda: _saved(_picture("L"), "JPEG"),
    "16 bit PNG": lambda: _saved(_picture("I;16"), "PNG"),
    "16 bit TIFF": lambda: _saved(_picture("I;16"), "TIFF"),
    "1 bit PNG": lambda: _saved(_picture("1"), "PNG"),
    "palette PNG": lambda: _saved(_picture("P"), "PNG"),
    "palette with transparency": lambda: _saved(_picture("P"), "PNG", transparency=3),
    "palette GIF": lambda: _saved(_picture("P"), "GIF"),
    "alpha PNG": lambda: _saved(_picture("RGBA"), "PNG"),
    "alpha WebP": lambda: _saved(_picture("RGBA"), "WEBP", lossless=True),
    "grey with alpha": lambda: _saved(_picture("LA"), "PNG"),
    "animated GIF": lambda: _animated("GIF"),
    "animated PNG": lambda: _animated("PNG"),
    "animated WebP": lambda: _animated("WEBP"),
    "several pages, TIFF": lambda: _saved(_picture(), "TIFF", save_all=True, append_images=[_picture(seed=1)]),
}


def declared(image: Callable[..., bytes], kind: str, side: int) -> bytes:
    """Return a small file whose header declares ``side`` x ``side`` pixels.

    Args:
        image: Maker of encoded images.
        kind: ``PNG``, ``JPEG``, ``GIF``, ``BMP``, ``TIFF`` or ``PPM``.
        side: Height and width.
    """
    if kind == "PPM":
        return f"P6 {side} {side} 255\n".encode() + bytes(300)
    data = bytearray(image(0, kind=kind))
    if kind == "PNG":
        header = b"IHDR" + struct.pack(">II", side, side) + bytes(data[24:29])
        return bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    if kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", side, side)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        _retag(data, side)
    return bytes(data)


@functools.cache
def bomb(side: int) -> bytes:
    """Return a whole, valid PNG of ``side`` x ``side`` black pixels: a few hundred kB that decode to ``side`` ** 2 bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(1)
    row = bytes(1 + side)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _retag(data: bytearray, side: int) -> None:
    """Overwrite width and height in the first directory of a little-endian TIFF."""
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, _count = struct.unpack_from("<HHI", data, place)
        if tag in {256, 257}:
            struct.pack_into("<H" if kind == 3 else "<I", data, place + 8, side)
