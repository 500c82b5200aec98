"""Golden tensors: fixed inputs and what FP32 PyTorch makes of them, so that any device can check its engines without torch."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Float32, Tower
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.engines.torch.patches import PatchTower
from clipq.files import atomic_path

COUNT = 8
_STRUCTURE = ((0.5, 4), (0.3, 16), (0.2, 64))  # weight and grid of coarse, middle and fine structure, as photographs have
_TEXTS = (
    "a photo of a cat.",
    "a photo of a tench, a type of fish.",
    "a blurry photo of two red circles on a green background",
    "itap of the fire engine!",
    "a bad photo of a garbage truck; 3 wheels, no driver",
    "X-ray",
    "a painting of the person's 1984 parachute in the style of a children's book, with many more words than the picture has things",
    "",
)


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and FP32 outputs, row by row.

    Attributes:
        pixels: float32 ``(8, 3, height, width)``.
        tokens: int32 ``(8, context length)``.
        image_embedding: float32 ``(8, embed dim)``, not normalised.
        text_embedding: float32 ``(8, embed dim)``, not normalised.
        patches: float32 ``(8, patches, embed dim)``, not normalised; None where the bundle has no patch tokens.
    """

    pixels: Float32
    tokens: npt.NDArray[np.int32]
    image_embedding: Float32
    text_embedding: Float32
    patches: Float32 | None = None

    def inputs(self, tower: Tower) -> npt.NDArray[Any]:
        """Return the inputs of a tower."""
        return self.pixels if tower == "image" else self.tokens

    def outputs(self, tower: Tower) -> Float32:
        """Return PyTorch's outputs of a tower."""
        return self.image_embedding if tower == "image" else self.text_embedding

    def patch_tokens(self, tower: Tower) -> Float32 | None:
        """Return PyTorch's patch tokens, where a tower has any."""
        return self.patches if tower == "image" else None


def make_golden(checkpoint: Checkpoint, patches: PatchTower | None = None) -> Golden:
    """Return the golden tensors of a model: drawn images, so that a bundle carries nobody's photographs, and fixed prompts.

    Args:
        checkpoint: The model.
        patches: Its image tower with patch tokens; None leaves them out.
    """
    pixels = checkpoint.preprocess.normalise(draw_images(checkpoint.preprocess))
    tokens = np.asarray(checkpoint.tokenizer(list(_TEXTS))).astype(np.int32)
    tokens_of_patches = patches.compute(pixels)[1] if patches else None
    return Golden(pixels, tokens, checkpoint.embed("image", pixels), checkpoint.embed("text", tokens), tokens_of_patches)


def draw_images(preprocess: Preprocess, count: int = COUNT) -> npt.NDArray[np.uint8]:
    """Return images with coarse, middle and fine random structure, uint8 ``(count, 3, height, width)``; always the same ones."""
    generator = np.random.default_rng(0)
    height, width = preprocess.size
    images = np.zeros((count, height, width, 3))
    for row in range(count):
        for weight, grid in _STRUCTURE:
            coarse = Image.fromarray(generator.integers(0, 256, (grid, grid, 3), dtype=np.uint8))
            images[row] += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return np.ascontiguousarray(images.round().astype(np.uint8).transpose(0, 3, 1, 2))


def write_golden(path: Path, golden: Golden) -> None:
    """Write ``golden.npz`` atomically, without pickle and without times, so that equal tensors give equal bytes."""
    with atomic_path(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name in golden.__dataclass_fields__:
            if getattr(golden, name) is None:
                continue
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, getattr(golden, name), allow_pickle=False)


def read_golden(path: Path) -> Golden:
    """Read a ``golden.npz`` whose hash was checked."""
    with np.load(path, allow_pickle=False) as stored:
        return Golden(**{name: stored[name] for name in Golden.__dataclass_fields__ if name in stored})
