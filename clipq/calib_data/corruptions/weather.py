"""Weather: snow, frost on the pane, fog, and a splash on the lens; each layer is drawn for 224 pixels and resized."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion, correlate, distance_transform_edt, gaussian_filter, uniform_filter

from clipq.calib_data.corruptions.blur import smear
from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.frost import pane
from clipq.calib_data.corruptions.planes import Float32, fitted, grey, reference_shape, resized
from clipq.calib_data.corruptions.plasma import plasma

Field = npt.NDArray[np.floating]

_WATER = np.array([175, 238, 238], np.float32).reshape(3, 1, 1) / 255
_MUD = np.array([63, 42, 20], np.float32).reshape(3, 1, 1) / 255
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def snow(picture: Float32, constants: tuple[float, ...], draws: Draws) -> Float32:
    """Whiten, and add smeared flakes and the same upside down.

    ``constants``: mean and deviation of the noise, size of its grains, threshold of a flake, radius and sigma of the smear, and how much
    of the picture's own light stays.
    """
    mean, deviation, grain, threshold, radius, sigma, light = constants
    height, width = reference_shape(picture)
    nodes = mean + deviation * draws.normal(int(height / grain) + 3, int(width / grain) + 3)
    flakes = resized(nodes, (height, width), (1.0, 1.0, 1.0 + width / grain, 1.0 + height / grain))
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = fitted(smear(flakes, radius, sigma, draws.between(-135, -45)), picture)
    white = np.maximum(picture, grey(picture) * np.float32(1.5) + np.float32(0.5))
    return np.asarray(light * picture + (1 - light) * white + flakes + flakes[::-1, ::-1], np.float32)


def frost(picture: Float32, constants: tuple[float, float], draws: Draws) -> Float32:
    """Lay a drawn frosted pane over the picture; ``constants`` are the shares of the picture and of the pane.

    ImageNet-C lays photographs of frost, which cannot be shipped: the panes are drawn (``frost.py``), alike in mean and contrast.
    """
    own, ice = constants
    layer = pane(reference_shape(picture), draws)
    return np.asarray(own * picture + ice * np.stack([fitted(plane, picture) for plane in layer]), np.float32)


def fog(picture: Float32, constants: tuple[float, float], draws: Draws) -> Float32:
    """Add a plasma of the given strength and rescale to the picture's own maximum; the second constant says how smooth it is."""
    strength, decay = constants
    height, width = reference_shape(picture)
    side = 1 << (max(height, width) - 1).bit_length()
    haze = fitted(plasma(side, decay, draws)[:height, :width], picture)
    brightest = picture.max()
    return np.asarray((picture + strength * haze) * (brightest / (brightest + strength)), np.float32)


def spatter(picture: Float32, constants: tuple[float, ...], draws: Draws) -> Float32:
    """Splash water or mud on the lens.

    ``constants``: mean and deviation of the noise, its smoothing, threshold of a drop, strength of water or smoothing of mud, 1 for mud.
    """
    mean, deviation, smoothing, threshold, strength, is_mud = constants
    liquid = gaussian_filter(mean + deviation * draws.normal(*reference_shape(picture)), smoothing, mode="nearest")
    if not is_mud:
        return np.asarray(picture + fitted(strength * _water(liquid, liquid >= threshold), picture) * _WATER, np.float32)
    cover = gaussian_filter((liquid > threshold).astype(np.float32), strength, mode="nearest")
    cover = fitted(np.where(cover < 0.8, 0, cover), picture)
    return np.asarray(picture * (1 - cover) + _MUD * cover, np.float32)


def _water(liquid: Field, wet: npt.NDArray[np.bool_]) -> Field:
    """Return how much light the drops add, [0, 1] ``(h, w)``: embossed by the distance to their rims, which stand for Canny's edges."""
    if not wet.any():
        return np.zeros(liquid.shape)
    rim = wet & ~binary_erosion(wet, np.ones((3, 3)), border_value=1)
    distance = np.minimum(distance_transform_edt(~rim), 20.0)
    distance = _equalised(uniform_filter(distance, 3, mode="mirror").astype(np.uint8))
    relief = np.clip(correlate(distance.astype(np.int64), _EMBOSS, mode="mirror"), 0, 255)
    light = np.where(wet, np.minimum(liquid, 1.0), 0) * uniform_filter(relief.astype(np.float64), 3, mode="mirror")
    return np.asarray(light / max(float(light.max()), 1e-9))


def _equalised(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the image with its histogram equalised: the lowest level becomes 0, the highest 255."""
    below = np.cumsum(np.bincount(image.ravel(), minlength=256))
    first = below[image.min()]
    levels = (below - first) * (255 / max(image.size - first, 1))
    return np.asarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8)[image])
