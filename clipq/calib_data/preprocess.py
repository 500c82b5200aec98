"""From a decoded image to the pixels a tower takes, bit for bit as open_clip's evaluation transform makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from clipq.errors import DataError, UsageError, unknown_name
from clipq.files import sha256_json

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_RESIZED_PIXELS = 89_478_485  # Pillow's own limit for one image: a strip of 1 x 100,000 would grow to 15 GB


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform (``open_clip.transform.image_transform_v2``, ``is_train=False``) without torch.

    As there, the image is converted to RGB only after it was resized and cropped, and an EXIF orientation is not applied.

    Attributes:
        size: Height and width of the result.
        resize_mode: ``shortest`` fits the shorter edge and crops the centre, ``longest`` fits the longer edge and pads, ``squash``
            ignores the aspect ratio.
        interpolation: ``bicubic`` or ``bilinear``, always antialiased. As in open_clip, ``shortest`` to a size that is not square is
            always bicubic.
        mean: Per channel, on a scale of 0 to 1.
        std: Per channel, on a scale of 0 to 1.
        fill_color: Grey level 0-255 of the padding in mode ``longest``.
    """

    size: tuple[int, int]
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.resize_mode not in get_args(ResizeMode):
            raise unknown_name("resize mode", self.resize_mode, get_args(ResizeMode))
        if self.interpolation not in get_args(Interpolation):
            raise unknown_name("interpolation", self.interpolation, get_args(Interpolation))
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError("wrong size in the preprocessing", found=self.size, expected="height and width, both at least 1")
        if not _three_numbers(self.mean) or not _three_numbers(self.std) or min(self.std) <= 0:
            raise UsageError("wrong mean or std in the preprocessing", found=(self.mean, self.std), expected="three numbers each, std > 0")
        if not 0 <= self.fill_color <= 255:
            raise UsageError("wrong fill colour in the preprocessing", found=self.fill_color, expected="0 to 255")

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``preprocess.json``."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocess:
        """Read the value of ``preprocess.json``.

        Raises:
            UsageError: A key is unknown or missing, or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in value:
            if name not in known:
                raise unknown_name("key of the preprocessing", name, known)
        missing = [name for name in known if name not in value]
        if missing:
            raise UsageError("the preprocessing is incomplete", found=f"no {', '.join(missing)}", fix="Export the bundle again.")
        values: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        try:
            return cls(**values)
        except TypeError as error:  # a number where a list belongs, or a word where a number belongs
            raise UsageError("a value of the preprocessing has the wrong type", found=error, fix="Export the bundle again.") from error

    @classmethod
    def from_file(cls, path: Path) -> Preprocess:
        """Read a ``preprocess.json``.

        Raises:
            UsageError: It cannot be read, or as in ``from_json``.
        """
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path}", found=error, fix="Export the bundle again.") from error
        if not isinstance(value, dict):
            raise UsageError(f"{path} is not a preprocessing", found=type(value).__name__, expected="a JSON object")
        return cls.from_json(value)

    def sha256(self) -> str:
        """Return the hash that stored embeddings carry."""
        return sha256_json(self.to_json())

    def pixels_u8(self, image: Image.Image) -> UInt8:
        """Return the resized and cropped image as uint8 ``(3, height, width)``, RGB.

        Raises:
            DataError: The image is so narrow that its resized form would not fit in memory, or would have no pixels.
        """
        if self.resize_mode == "squash":
            image = _resize(image, self.size, self._resampling)
        elif self.resize_mode == "longest":
            image = _centre(_resize(image, _scaled(image, self.size, max), self._resampling), self.size, self.fill_color)
        elif self.size[0] == self.size[1]:
            image = _centre(_resize(image, _shortest_edge(image, self.size[0]), self._resampling), self.size, 0)
        else:
            image = _centre(_resize(image, _scaled(image, self.size, min), Image.Resampling.BICUBIC), self.size, 0)
        return np.ascontiguousarray(np.asarray(_rgb(image)).transpose(2, 0, 1))

    def normalise(self, batch: UInt8, out: Float32 | None = None) -> Float32:
        """Return ``(batch / 255 - mean) / std`` in float32, the operations and the order of ToTensor and Normalize.

        Args:
            batch: uint8 ``(n, 3, height, width)``.
            out: Where to write, float32 of the same shape; a new array when None.
        """
        result = np.empty(batch.shape, np.float32) if out is None else out
        mean = np.asarray(self.mean, np.float32).reshape(3, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(3, 1, 1)
        for pixels, values in zip(batch, result, strict=True):  # image by image: one image stays in the cache, a batch does not
            np.divide(pixels, np.float32(255), out=values, dtype=np.float32)
            np.subtract(values, mean, out=values)
            np.divide(values, std, out=values)
        return result

    @property
    def _resampling(self) -> Image.Resampling:
        return _RESAMPLING[self.interpolation]


def _three_numbers(values: tuple[object, ...]) -> bool:
    return len(values) == 3 and all(isinstance(value, (int, float)) for value in values)


def _shortest_edge(image: Image.Image, edge: int) -> tuple[int, int]:
    """Return height and width with the shorter one at ``edge``; torchvision's ``_compute_resized_output_size``."""
    width, height = image.size
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _scaled(image: Image.Image, size: tuple[int, int], choose: Any) -> tuple[int, int]:
    """Return height and width divided by the larger (``max``) or smaller (``min``) ratio to ``size``; open_clip's ``ResizeKeepRatio``."""
    width, height = image.size
    ratio = choose(height / size[0], width / size[1])
    return round(height / ratio), round(width / ratio)


def _resize(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    height, width = size
    if not 0 < height * width <= _MAX_RESIZED_PIXELS:
        raise DataError(
            f"the image is too narrow: {image.width} x {image.height} would be resized to {width} x {height}",
            expected=f"1 to {_MAX_RESIZED_PIXELS} pixels",
        )
    return image if image.size == (width, height) else image.resize((width, height), resampling)


def _centre(image: Image.Image, size: tuple[int, int], fill: int) -> Image.Image:
    """Crop the centre, after padding an image that is smaller; torchvision's ``center_crop``, rounding included."""
    height, width = size
    spare_x, spare_y = max(width - image.width, 0), max(height - image.height, 0)
    if spare_x or spare_y:
        border = (spare_x // 2, spare_y // 2, (spare_x + 1) // 2, (spare_y + 1) // 2)
        bands = len(image.getbands())
        image = ImageOps.expand(image, border, fill=(fill,) * bands if bands > 1 else fill)
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; a palette's transparency changes no RGB value, but Pillow would warn about it."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")
