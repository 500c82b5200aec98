"""What corruptions share: sizes relative to 224 pixels, layers drawn for that size, convolution, and the way to Pillow and back.

A picture is float32 ``(3, h, w)`` in [0, 1]. Every length of ImageNet-C is in pixels of a picture of 224 x 224; here it is multiplied by
``scale``, the shorter side over 224. Drawn layers (snow, frost, fog, splashes, displacements) are drawn for a shorter side of 224, then
resized.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
REFERENCE = 224


def scale(picture: Float32) -> float:
    """Return the shorter side over 224."""
    return float(min(picture.shape[1:]) / REFERENCE)


def reference_shape(picture: Float32) -> tuple[int, int]:
    """Return height and width of the picture as if its shorter side were 224; the longer one at most four times that.

    >>> reference_shape(np.zeros((3, 64, 96), np.float32))
    (224, 336)
    """
    height, width = (min(max(REFERENCE, round(side / scale(picture))), 4 * REFERENCE) for side in picture.shape[1:])
    return height, width


def fitted(layer: npt.NDArray[np.floating], picture: Float32) -> Float32:
    """Return a drawn layer ``(H, W)`` at the size of the picture, float32 ``(h, w)``, antialiased."""
    return resized(layer, (picture.shape[1], picture.shape[2]))


def resized(layer: npt.NDArray[np.floating], shape: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> Float32:
    """Return a layer ``(H, W)``, or its part ``box`` (left, top, right, bottom), at ``shape``, bilinear and antialiased."""
    if layer.shape == shape and box is None:
        return layer.astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(layer, np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR, box=box))


def to_u8(picture: npt.NDArray[np.floating]) -> UInt8:
    """Return the picture as uint8, rounded and cut off at black and white."""
    return np.asarray(np.rint(np.clip(picture, 0.0, 1.0) * 255.0), np.uint8)


def to_pillow(picture: Float32) -> Image.Image:
    """Return the picture as an RGB image of Pillow."""
    return Image.fromarray(np.ascontiguousarray(to_u8(picture).transpose(1, 2, 0)))


def from_pillow(image: Image.Image) -> Float32:
    """Return an RGB image as a picture."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)


def grey(picture: Float32) -> Float32:
    """Return the luma of ITU-R BT.601, ``(h, w)``."""
    return np.asarray(np.float32(0.299) * picture[0] + np.float32(0.587) * picture[1] + np.float32(0.114) * picture[2])


def correlate(picture: Float32, kernel: Float32, *, edges: str) -> Float32:
    """Return ``sum over d of kernel[d] * picture[p + d]`` for every plane, by FFT.

    Args:
        picture: ``(..., h, w)``.
        kernel: ``(2 r + 1, 2 r + 1)``, its centre is no displacement.
        edges: What lies beyond the picture: ``edge`` or ``reflect``, as in ``numpy.pad``.
    """
    radius, (height, width) = kernel.shape[0] // 2, picture.shape[-2:]
    around = [(0, 0)] * (picture.ndim - 2) + [(radius, radius)] * 2
    padded = np.pad(picture, around, mode="edge" if edges == "edge" else "reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[-2:]]
    spectrum = fft.rfft2(padded, shape)
    spectrum *= np.conj(fft.rfft2(kernel.astype(np.float32), shape))
    return np.asarray(fft.irfft2(spectrum, shape)[..., :height, :width])
