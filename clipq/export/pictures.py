"""Makes golden pictures: encoded files and the pixels that open_clip's own transform makes of them, to check preprocessing on a device."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipq.calib_data.decoders import decoder_versions
from clipq.calib_data.pipeline import decode
from clipq.engines.golden import PICTURE_TENSORS, PICTURES, PICTURES_SCHEMA
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.export.golden import draw_picture, write_arrays
from clipq.files import write_bytes, write_json

_SEED = 1
# Height and width as multiples of what the model takes, mode, and how it is encoded: smaller and larger than the model's, upright and
# broad, with and without halved colour, step by step, grey, and one that every decoder must read alike.
_KINDS: tuple[tuple[float, float, str, str, dict[str, Any]], ...] = (
    (1.6, 1.2, "RGB", "jpg", {"quality": 90, "subsampling": "4:2:0"}),
    (1.2, 2.3, "RGB", "jpg", {"quality": 75, "subsampling": "4:2:2"}),
    (2.7, 2.1, "RGB", "jpg", {"quality": 95, "subsampling": "4:4:4"}),
    (0.6, 0.8, "RGB", "jpg", {"quality": 85, "subsampling": "4:2:0"}),
    (1.4, 1.9, "RGB", "jpg", {"quality": 80, "subsampling": "4:2:0", "progressive": True}),
    (1.3, 1.3, "L", "jpg", {"quality": 90}),
    (1.5, 1.1, "RGB", "png", {}),
)
PICTURE_NAMES = tuple(f"golden/{number}.{suffix}" for number, (_, _, _, suffix, _) in enumerate(_KINDS))


def write_pictures(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the golden pictures of a model into a bundle: drawn ones, so that it carries nobody's photographs.

    Args:
        folder: The bundle.
        checkpoint: The model.
    """
    transform = checkpoint.transform()
    pixels = []
    for name, data in zip(PICTURE_NAMES, encode_pictures(*checkpoint.preprocess.size), strict=True):
        write_bytes(folder / name, data)
        pixels.append(transform(decode(data)))
    stacked = np.stack(pixels).astype(np.float32, copy=False)
    write_arrays(folder / PICTURE_TENSORS, {"pixels": stacked, "image_embedding": checkpoint.embed("image", stacked)})
    said = {"schema": PICTURES_SCHEMA, "pictures": list(PICTURE_NAMES), "decoder": decoder_versions()}
    write_json(folder / PICTURES, said)


def encode_pictures(height: int, width: int) -> list[bytes]:
    """Return the encoded pictures for a model that takes ``height`` x ``width``; the same bytes from the same libraries."""
    generator, encoded = np.random.default_rng(_SEED), []
    for tall, broad, mode, suffix, options in _KINDS:
        picture = Image.fromarray(draw_picture(generator, round(tall * height), round(broad * width))).convert(mode)
        stream = io.BytesIO()
        picture.save(stream, "JPEG" if suffix == "jpg" else "PNG", **options)
        encoded.append(stream.getvalue())
    return encoded
