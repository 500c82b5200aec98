"""Preprocessing on this device against open_clip's own at export, on the golden pictures of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.calib_data.decoders import decoder_versions
from clipq.calib_data.pipeline import decode
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Engine, Float32
from clipq.engines.closeness import row_cosines
from clipq.engines.golden import GoldenPictures
from clipq.evaluate.verify.towers import golden_outputs


@dataclass(frozen=True, slots=True)
class PicturesHere:
    """The golden pictures as this device decodes and preprocesses them.

    Attributes:
        golden: The pictures and what open_clip made of them.
        pixels: float32 ``(m, 3, height, width)`` of those that could be decoded here.
        readable: bool ``(n,)``, m of them true.
        unreadable: Picture -> why it could not be decoded.
        std: Per channel, of the preprocessing: it turns differences back into grey levels.
    """

    golden: GoldenPictures
    pixels: Float32
    readable: Any
    unreadable: Mapping[str, str]
    std: tuple[float, float, float]

    @property
    def expected(self) -> Float32:
        """open_clip's pixels of the readable pictures, float32 ``(m, 3, height, width)``."""
        expected: Float32 = self.golden.pixels[self.readable]
        return expected

    @property
    def identical(self) -> bool:
        """Whether every picture was decoded and has open_clip's pixels, bit for bit."""
        return not self.unreadable and bool((self.pixels == self.expected).all())


def look_at(bundle: Bundle, golden: GoldenPictures, preprocess: Preprocess) -> PicturesHere:
    """Decode and preprocess the golden pictures of a bundle as ``clipq eval`` would its images.

    Raises:
        RefusedError: A picture is not the file that the manifest names.
    """
    pixels, unreadable = [], {}
    for name in golden.names:
        data = bundle.file(name).read_bytes()
        try:
            pixels.append(preprocess.normalise(preprocess.pixels_u8(decode(data))[None])[0])
        except Exception as error:  # noqa: BLE001 - Pillow raises many kinds where a decoder is missing
            unreadable[name] = " ".join(str(error).split()) or type(error).__name__
    readable = np.asarray([name not in unreadable for name in golden.names])
    stacked = np.stack(pixels) if pixels else np.empty((0, *golden.pixels.shape[1:]), np.float32)
    return PicturesHere(golden, stacked, readable, unreadable, preprocess.std)


def describe_pixels(here: PicturesHere) -> dict[str, Any]:
    """Return ``record["preprocessing"]``: identical or not, and by how many grey levels (of 255) the pixels differ."""
    levels = np.abs(here.pixels - here.expected) * 255 * np.reshape(here.std, (1, 3, 1, 1))
    names = [name for name, readable in zip(here.golden.names, here.readable, strict=True) if readable]
    different = [
        name for name, found, expected in zip(names, here.pixels, here.expected, strict=True) if not np.array_equal(found, expected)
    ]
    return {
        "pictures": len(here.golden.names),
        "identical": here.identical,
        "different": different,
        "max_difference_levels": float(levels.max()) if levels.size else 0.0,
        "mean_difference_levels": float(levels.mean()) if levels.size else 0.0,
        "unreadable": dict(here.unreadable),
        "decoder": decoder_versions(),
        "decoder_at_export": dict(here.golden.decoder),
    }


def check_pictures(engine: Engine, here: PicturesHere) -> dict[str, Any] | None:
    """Return how far an opened engine's embeddings of the pictures are from PyTorch's, and how far other pixels move them.

    Returns:
        ``cosine_mean`` and ``min_cosine``: with FP32 PyTorch on open_clip's pixels; ``moved_min_cosine``: the engine on the pixels of this
        device against the engine on open_clip's, 1 where the pixels are identical. None where no picture can be decoded.

    Raises:
        EngineError: The engine failed.
    """
    if not len(here.pixels):
        return None
    found = golden_outputs(engine, "image", here.pixels)
    cosine = row_cosines(found, here.golden.image_embedding[here.readable])
    same = np.array_equal(here.pixels, here.expected)
    moved = 1.0 if same else float(row_cosines(found, golden_outputs(engine, "image", here.expected)).min())
    return {"cosine_mean": float(cosine.mean()), "min_cosine": float(cosine.min()), "moved_min_cosine": moved}
