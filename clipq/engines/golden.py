"""Golden tensors and pictures of a bundle: fixed inputs and what FP32 PyTorch and open_clip made of them at export."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.engines.base import Float32, Tower
from clipq.engines.towers import tower_specs
from clipq.errors import RefusedError

TENSORS = "golden.npz"
PICTURES = "golden/pictures.json"
PICTURE_TENSORS = "golden/pictures.npz"
PICTURES_SCHEMA = "clipq.pictures/1"


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


@dataclass(frozen=True, slots=True)
class GoldenPictures:
    """Encoded pictures, and what became of them at export.

    Attributes:
        names: Their files in the bundle.
        pixels: What open_clip's own transform made of them, float32 ``(n, 3, height, width)``.
        image_embedding: What FP32 PyTorch made of those pixels, float32 ``(n, embed dim)``, not normalised.
        decoder: Library -> version that decoded them.
    """

    names: tuple[str, ...]
    pixels: Float32
    image_embedding: Float32
    decoder: Mapping[str, str]


def read_golden(path: Path) -> Golden:
    """Read a ``golden.npz`` whose hash was checked.

    Raises:
        RefusedError: It is none.
    """
    found = _arrays(path)
    missing = [name for name in Golden.__dataclass_fields__ if name not in found and name != "patches"]
    if missing:
        raise RefusedError(f"{path} holds no golden tensors", found=f"no {', '.join(missing)}", fix="Export the bundle again.")
    return Golden(**{name: found[name] for name in Golden.__dataclass_fields__ if name in found})


def golden_of(bundle: Bundle) -> Golden:
    """Return the golden tensors of a bundle.

    Raises:
        RefusedError: It has none, they are not what the manifest says, or they do not fit the model.
    """
    if TENSORS not in bundle.manifest.files:
        raise RefusedError(f"{bundle.folder} has no golden tensors", expected=f"{TENSORS} in its manifest", fix="Export the bundle again.")
    path = bundle.file(TENSORS)
    golden, specs, n = read_golden(path), tower_specs(bundle), None
    for tower in specs:
        n = n or len(golden.inputs(tower))
        _check(path, f"{tower} inputs", golden.inputs(tower), (n, *specs[tower].input_shape), specs[tower].input_dtype)
        _check(path, f"{tower} outputs", golden.outputs(tower), (n, specs[tower].embed_dim), "float32")
    if golden.patches is not None:
        _check(path, "patches", golden.patches, (n, golden.patches.shape[1], specs["image"].embed_dim), "float32")
    return golden


def pictures_of(bundle: Bundle) -> GoldenPictures | None:
    """Return the golden pictures of a bundle, or None where it was exported without any.

    Raises:
        RefusedError: They are not what the manifest says, or do not fit the model.
    """
    if PICTURES not in bundle.manifest.files:
        return None
    path, stored, spec = bundle.file(PICTURES), bundle.file(PICTURE_TENSORS), tower_specs(bundle)["image"]
    try:
        said = json.loads(path.read_text())
        schema, names, decoder = said["schema"], tuple(said["pictures"]), {str(key): str(value) for key, value in said["decoder"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} does not describe golden pictures", found=error, fix="Export the bundle again.") from error
    if schema != PICTURES_SCHEMA or not names:
        raise RefusedError(f"{path} has an unknown schema or no pictures", found=schema, expected=PICTURES_SCHEMA, fix="Export it again.")
    found = _arrays(stored)
    shapes = {"pixels": (len(names), *spec.input_shape), "image_embedding": (len(names), spec.embed_dim)}
    for name, shape in shapes.items():
        _check(stored, name, found.get(name), shape, "float32")
    return GoldenPictures(names, found["pixels"], found["image_embedding"], decoder)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz that was written without compression, so that it cannot grow beyond its file."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            arrays = {} if packed else {name.removesuffix(".npy"): _array(archive, name) for name in archive.namelist()}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise RefusedError(f"{path} holds no arrays", found=error, fix="Export the bundle again.") from error
    if packed:
        raise RefusedError(f"{path} is compressed", found=packed[0], expected="arrays as they are", fix="Export the bundle again.")
    return arrays


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _check(path: Path, what: str, array: npt.NDArray[Any] | None, shape: tuple[int | None, ...], dtype: str) -> None:
    if array is None or array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
        found = "none" if array is None else f"{array.dtype} {array.shape}"
        expected = f"finite {dtype} {shape}"
        raise RefusedError(f"{path} does not fit the model: {what}", found=found, expected=expected, fix="Export the bundle again.")
