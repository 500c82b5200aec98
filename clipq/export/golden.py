"""Makes golden tensors: fixed inputs and what FP32 PyTorch makes of them, so that any device can check its engines without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipq.calib_data.preprocess import Preprocess
from clipq.engines.golden import Golden
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
    images = [draw_picture(generator, *preprocess.size) for _ in range(count)]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def draw_picture(generator: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return one such image, uint8 ``(height, width, 3)``."""
    picture = np.zeros((height, width, 3))
    for weight, grid in _STRUCTURE:
        coarse = Image.fromarray(generator.integers(0, 256, (grid, grid, 3), dtype=np.uint8))
        picture += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return picture.round().astype(np.uint8)


def write_golden(path: Path, golden: Golden) -> None:
    """Write ``golden.npz``; what is None is left out."""
    arrays = {name: getattr(golden, name) for name in Golden.__dataclass_fields__}
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write an npz atomically, without pickle, compression and times, so that equal arrays give equal bytes."""
    with atomic_path(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
