"""Blurs: out of focus, through glass, in motion, in a zoom. Lengths are for 224 pixels and grow with the picture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.planes import Float32, correlate, from_pillow, scale, to_pillow

_FINE = 9  # points per pixel and axis, to antialias a disk; odd, so that the smallest disk still holds one
_MOST_PARTS = 8  # of a pixel of a small picture and axis, for glass: all that 28 pixels need


def gaussian_blur(picture: Float32, sigma: float, _draws: Draws) -> Float32:
    """Smooth by a Gaussian."""
    return _smooth(picture, sigma * scale(picture))


def defocus_blur(picture: Float32, constants: tuple[float, float], _draws: Draws) -> Float32:
    """Average over a disk; ``constants`` are its radius and the Gaussian that softens its rim."""
    radius, rim = constants
    return correlate(picture, _disk(radius * scale(picture), rim * scale(picture)), edges="reflect")


@lru_cache(maxsize=32)
def _disk(radius: float, rim: float) -> Float32:
    """Return the share of each pixel that a disk covers, softened, sum 1."""
    reach = int(np.ceil(radius + 4 * rim)) + 1
    places = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    inside = np.hypot(places[:, None], places) <= radius
    kernel = inside.reshape(2 * reach + 1, _FINE, 2 * reach + 1, _FINE).mean(axis=(1, 3))
    kernel = gaussian_filter(kernel, rim, mode="constant")
    return np.asarray(kernel / kernel.sum(), np.float32)


def glass_blur(picture: Float32, constants: tuple[float, int, int], draws: Draws) -> Float32:
    """Smooth, let each pixel take the colour of a near one, smooth again; ``constants`` are sigma, reach and rounds.

    Pixels of a small picture are divided for that, so that colours can move by less than one of them, and averaged in the end.
    """
    sigma, reach, rounds = constants
    parts = min(int(np.ceil(1 / scale(picture))), _MOST_PARTS)
    size, (height, width) = scale(picture) * parts, picture.shape[1:]
    picture = _smooth(picture.repeat(parts, axis=1).repeat(parts, axis=2), sigma * size)
    for _ in range(rounds):
        picture = _scattered(picture, draws.integers(-reach, reach, 2, *picture.shape[1:]) * size, draws)
    return np.asarray(_smooth(picture, sigma * size).reshape(3, height, parts, width, parts).mean(axis=(2, 4)))


def _scattered(picture: Float32, displacement: npt.NDArray[np.floating], draws: Draws) -> Float32:
    """Return every pixel's new colour, from the last pixel to the first, each taking that of another as it then is.

    A displacement that is no whole number of pixels is rounded up or down by chance, so that its mean is kept. The code that ImageNet-C
    was made by means to swap two pixels, but its slices are views: the second pixel keeps its colour. So each pixel has one source, and
    a source that was visited before hands on what it took itself: chains, followed here by doubling steps for all pixels at once.
    """
    steps = np.floor(displacement + draws.uniform(*displacement.shape)).astype(np.int64)
    height, width = picture.shape[1:]
    rows = np.clip(np.arange(height)[:, None] + steps[0], 0, height - 1)
    columns = np.clip(np.arange(width) + steps[1], 0, width - 1)
    source = (rows * width + columns).ravel()
    pixels = np.arange(height * width)
    # node i is pixel i once visited, node i + n its colour before; a source after pixel i in reading order was visited earlier
    onward = np.concatenate((np.where(source > pixels, source, source + len(pixels)), pixels + len(pixels)))
    while not np.array_equal(further := onward[onward], onward):
        onward = further
    return np.asarray(picture.reshape(3, -1)[:, onward[: len(pixels)] - len(pixels)].reshape(picture.shape))


def motion_blur(picture: Float32, constants: tuple[float, float], draws: Draws) -> Float32:
    """Smear along a line within 45 degrees of the horizontal; ``constants`` are radius and sigma."""
    return smear(picture, *constants, draws.between(-45, 45), scale(picture))


def smear(picture: Float32, radius: float, sigma: float, angle: float, size: float = 1.0) -> Float32:
    """Return ``sum_t w(t) picture[p + t u]`` for t = 0 to 2 radius: one half of a Gaussian, as ImageMagick's motion blur.

    Args:
        picture: ``(..., h, w)``.
        radius: Half of the length in pixels of a picture of 224.
        sigma: Of the Gaussian, in the same pixels.
        angle: Of the direction u, in degrees from the horizontal.
        size: What lengths are multiplied with.
    """
    per_pixel = int(np.ceil(size))
    along = np.arange(2 * int(radius) * per_pixel + 1) / per_pixel
    weights = np.exp(-0.5 * (along / sigma) ** 2)
    line = np.stack((np.sin(np.deg2rad(angle)) * along, np.cos(np.deg2rad(angle)) * along)) * size
    return correlate(picture, _splat(line, weights / weights.sum()), edges="edge")


def _splat(points: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> Float32:
    """Return a kernel with each weight shared among the four pixels around its point ``(2, n)``."""
    reach = int(np.ceil(np.abs(points).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    corner = np.floor(points).astype(np.int64)
    part = points - corner
    for down in (0, 1):
        for right in (0, 1):
            share = np.abs(1 - down - part[0]) * np.abs(1 - right - part[1])
            np.add.at(kernel, (corner[0] + down + reach, corner[1] + right + reach), weights * share)
    return kernel.astype(np.float32)


def zoom_blur(picture: Float32, constants: tuple[int, float], _draws: Draws) -> Float32:
    """Average the picture, twice, and its centre at growing magnification; ``constants`` are how many zooms and their step."""
    count, step = constants
    image = to_pillow(picture)
    total = picture.copy()
    for zoom in 1 + step * np.arange(count):
        left, top = (side * (1 - 1 / zoom) / 2 for side in image.size)
        box = (left, top, image.width - left, image.height - top)
        total += from_pillow(image.resize(image.size, Image.Resampling.BILINEAR, box=box))
    return np.asarray(total / (count + 1))


def _smooth(picture: Float32, sigma: float) -> Float32:
    return np.asarray(gaussian_filter(picture, (0, sigma, sigma), mode="nearest"))
