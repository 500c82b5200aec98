"""Every corruption by name: what draws it and its constants at severities 1 to 5; ``corrupt`` applies one to a picture.

The constants are those of ``ImageNet-C/create_c/make_imagenet_c.py`` (github.com/hendrycks/robustness, commit e0377d4). Results are named
``-synth``: the published ImageNet-C is a set of JPEG files, and some parts here are drawn otherwise (each says so where it stands).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipq.calib_data.corruptions import blur, digital, noise, weather
from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.planes import Float32, UInt8, to_u8
from clipq.errors import DataError, UsageError, unknown_name

VERSION = 1  # of the definitions: a change of any pixel raises it, so that stored embeddings are not taken for others
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Corruption:
    """One corruption.

    Attributes:
        apply: Picture, constants and random numbers to the changed picture; values may leave [0, 1].
        constants: Those of severity 1 to 5.
        family: ``noise``, ``blur``, ``weather`` or ``digital``.
        extra: One of the four that ImageNet-C holds out for validation; mCE is over the other fifteen.
    """

    apply: Callable[[Float32, Any, Draws], Float32]
    constants: Sequence[Any]
    family: str
    extra: bool = False


_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6, 0),
    (0.65, 0.3, 3, 0.68, 0.6, 0),
    (0.65, 0.3, 2, 0.68, 0.5, 0),
    (0.65, 0.3, 1, 0.65, 1.5, 1),
    (0.67, 0.4, 1, 0.65, 1.5, 1),
)
_ELASTIC = tuple(
    (244 * strength, 244 * smoothness, 244 * reach)
    for strength, smoothness, reach in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
)
CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), "noise"),
    "shot_noise": Corruption(noise.shot_noise, (60, 25, 12, 5, 3), "noise"),
    "impulse_noise": Corruption(noise.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), "noise"),
    "defocus_blur": Corruption(blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), "blur"),
    "glass_blur": Corruption(blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), "blur"),
    "motion_blur": Corruption(blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), "blur"),
    "zoom_blur": Corruption(blur.zoom_blur, ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)), "blur"),
    "snow": Corruption(weather.snow, _SNOW, "weather"),
    "frost": Corruption(weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), "weather"),
    "fog": Corruption(weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), "weather"),
    "brightness": Corruption(digital.brightness, (0.1, 0.2, 0.3, 0.4, 0.5), "digital"),
    "contrast": Corruption(digital.contrast, (0.4, 0.3, 0.2, 0.1, 0.05), "digital"),
    "elastic_transform": Corruption(digital.elastic_transform, _ELASTIC, "digital"),
    "pixelate": Corruption(digital.pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), "digital"),
    "jpeg_compression": Corruption(digital.jpeg_compression, (25, 18, 15, 10, 7), "digital"),
    "speckle_noise": Corruption(noise.speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), "noise", extra=True),
    "gaussian_blur": Corruption(blur.gaussian_blur, (1, 2, 3, 4, 6), "blur", extra=True),
    "spatter": Corruption(weather.spatter, _SPATTER, "weather", extra=True),
    "saturate": Corruption(digital.saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), "digital", extra=True),
}
FIFTEEN = tuple(name for name, corruption in CORRUPTIONS.items() if not corruption.extra)


def check_corruption(name: str, severity: int) -> None:
    """Check that there is such a corruption.

    Raises:
        UsageError: The name is unknown, or the severity is not 1 to 5.
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UsageError(f"wrong severity of {name}", found=severity, expected="1, 2, 3, 4 or 5")


def corrupt(pixels: UInt8, name: str, severity: int, image_id: str, *, seed: int = 0) -> UInt8:
    """Return a corrupted picture: the same bytes for the same arguments, in any thread and order.

    Versions of numpy, scipy and Pillow may differ in the last bit of a function and so, rarely, in a pixel.

    Args:
        pixels: uint8 ``(3, h, w)``, RGB, of any size.
        name: A key of ``CORRUPTIONS``.
        severity: 1 to 5.
        image_id: With the other arguments it decides the random numbers, so that no two images share their noise.
        seed: Gives another set of corrupted pictures.

    Raises:
        UsageError: The name or the severity is unknown.
        DataError: The pixels are not uint8 ``(3, h, w)``.
    """
    check_corruption(name, severity)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.size:
        raise DataError(f"cannot apply {name}", found=f"{pixels.dtype} {pixels.shape}", expected="uint8 (3, height, width)")
    corruption = CORRUPTIONS[name]
    draws = Draws(f"corrupt-synth/{name}/{severity}/{seed}/{image_id}")
    picture = pixels.astype(np.float32) / np.float32(255)
    return to_u8(corruption.apply(picture, corruption.constants[severity - 1], draws))
