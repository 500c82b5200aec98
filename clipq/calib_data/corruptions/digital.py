"""Changes of processing: brightness, contrast, saturation, elastic warps, coarse pixels and JPEG."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft
from scipy.ndimage import map_coordinates

from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.planes import Float32, fitted, from_pillow, reference_shape, scale, to_pillow

Float64 = npt.NDArray[np.float64]


def brightness(picture: Float32, more: float, _draws: Draws) -> Float32:
    """Raise the value (the highest channel) by ``more``, up to 1, at the same hue and saturation."""
    value = picture.max(axis=0)
    raised = np.minimum(value + np.float32(more), 1)
    return np.asarray(np.where(value > 0, picture * (raised / np.maximum(value, 1e-6)), raised))


def saturate(picture: Float32, constants: tuple[float, float], _draws: Draws) -> Float32:
    """Multiply the saturation and add to it; grey has hue 0, as everywhere in HSV, so it turns red where something is added."""
    factor, more = constants
    value, low = picture.max(axis=0), picture.min(axis=0)
    saturation = (value - low) / np.maximum(value, 1e-6)
    wanted = np.clip(saturation * np.float32(factor) + np.float32(more), 0, 1)
    pure = (value - picture) / np.maximum(value - low, 1e-6)
    red = np.array([0, 1, 1], np.float32).reshape(3, 1, 1)
    return np.asarray(value * (1 - wanted * np.where(value > low, pure, red)))


def contrast(picture: Float32, factor: float, _draws: Draws) -> Float32:
    """Pull every channel towards its mean."""
    means = picture.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    return np.asarray((picture - means) * factor + means, np.float32)


def pixelate(picture: Float32, share: float, _draws: Draws) -> Float32:
    """Keep this share of the pixels of each side, by averaging boxes."""
    image = to_pillow(picture)
    small = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return from_pillow(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(picture: Float32, quality: int, _draws: Draws) -> Float32:
    """Encode as JPEG; its blocks are 8 pixels at every size."""
    encoded = io.BytesIO()
    to_pillow(picture).save(encoded, "JPEG", quality=quality)
    return from_pillow(Image.open(encoded, formats=["JPEG"]))


def elastic_transform(picture: Float32, constants: tuple[float, float, float], draws: Draws) -> Float32:
    """Move three corners at random, then every point by a smooth field; read once, bilinear.

    ``constants``: strength and smoothness of the field, and the reach of the corners, in pixels of 224 (ImageNet-C multiplies by 244).
    """
    strength, smoothness, reach = constants
    size, (height, width) = scale(picture), picture.shape[1:]
    shape = reference_shape(picture)
    moves = [fitted(strength * size * _smooth_noise(shape, smoothness, draws), picture) for _ in range(2)]
    places = np.stack((np.arange(height)[:, None] + moves[0], np.arange(width) + moves[1], np.ones((height, width))))
    back = _corners_moved((height, width), reach * size, draws)
    rows, columns = np.einsum("ij,jhw->ihw", back, places)  # no BLAS: its threads would fight over cores
    return np.stack([map_coordinates(plane, (rows, columns), order=1, mode="reflect") for plane in picture])


def _smooth_noise(shape: tuple[int, int], sigma: float, draws: Draws) -> Float64:
    """Return uniform noise in (-1, 1) smoothed by a Gaussian with mirrored edges: a product in the cosine domain, for any sigma."""
    spectrum = fft.dctn(draws.uniform(*shape, low=-1, high=1), norm="ortho")
    for axis, side in enumerate(shape):
        damping = np.exp(-0.5 * (np.pi * np.arange(side) * sigma / side) ** 2)
        spectrum *= damping.reshape((-1, 1) if axis == 0 else (1, -1))
    return np.asarray(fft.idctn(spectrum, norm="ortho"))


def _corners_moved(shape: tuple[int, int], reach: float, draws: Draws) -> Float64:
    """Return the matrix ``(2, 3)`` from a place (row, column, 1) to where it came from, when three corners move by up to ``reach``."""
    centre, arm = np.array(shape) // 2, max(1, min(shape) // 3)
    before = np.array([centre + arm, [centre[0] + arm, centre[1] - arm], centre - arm], np.float64)
    after = before + draws.uniform(3, 2, low=-reach, high=reach)
    return np.asarray(np.linalg.solve(np.column_stack((after, np.ones(3))), before).T)
