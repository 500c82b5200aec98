"""Corruptions of a drawn picture, and pictures without any object: what robustness and far out-of-distribution sets are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipq.calib_data.dice import Dice
from clipq.calib_data.scenes import SIZE, Int32, Uint8, stretch

Corruption = Callable[[Int32, Dice], Int32]


def corrupt(picture: Uint8, dice: Dice) -> Uint8:
    """Return ``picture`` with one corruption of the kinds of Hendrycks and Dietterich (2019), uint8 ``(SIZE, SIZE, 3)``."""
    return dice.pick(_CORRUPTIONS)(picture.astype(np.int32), dice).clip(0, 255).astype(np.uint8)


def texture(dice: Dice) -> Uint8:
    """Return a picture of a texture, gradient or noise field without any object, uint8 ``(SIZE, SIZE, 3)``."""
    channels = [_field(kind, dice) for kind in [dice.below(4)] * 3]
    grey = dice.below(257)
    mixed = np.stack([(channels[0] * grey + channel * (256 - grey)) >> 8 for channel in channels], axis=-1)
    low = dice.between(0, 100)
    return (low + (mixed * dice.between(60, 155) >> 8)).astype(np.uint8)


def _noise(picture: Int32, dice: Dice) -> Int32:
    """Add noise that is nearly Gaussian: the sum of three uniform fields."""
    grain = sum(dice.field(SIZE, SIZE, 3) for _ in range(3)) - 384
    return picture + (grain * dice.between(50, 130) >> 8)


def _impulses(picture: Int32, dice: Dice) -> Int32:
    """Set some pixels to black or white."""
    fate = dice.field(SIZE, SIZE)
    share = dice.between(8, 24)
    return np.where((fate < share)[..., None], 0, np.where((fate > 255 - share)[..., None], 255, picture))


def _blur(picture: Int32, dice: Dice) -> Int32:
    """Average every pixel with its neighbours, two to four times."""
    for _ in range(dice.between(2, 4)):
        for axis in (0, 1):
            picture = (np.roll(picture, 1, axis) + 2 * picture + np.roll(picture, -1, axis)) >> 2
    return picture


def _blocks(picture: Int32, dice: Dice) -> Int32:
    """Pull every 4 x 4 block towards its mean and coarsen its levels, as strong JPEG compression does."""
    blocks = picture.reshape(SIZE // 4, 4, SIZE // 4, 4, 3)
    mean = blocks.sum(axis=(1, 3), keepdims=True, dtype=np.int32) >> 4
    step = dice.between(24, 48)
    coarse: Int32 = mean + ((blocks - mean) + step // 2) // step * step
    return coarse.reshape(picture.shape)


def _contrast(picture: Int32, dice: Dice) -> Int32:
    """Pull every pixel towards grey."""
    return 128 + ((picture - 128) * dice.between(64, 128) >> 8)


_CORRUPTIONS: tuple[Corruption, ...] = (_noise, _impulses, _blur, _blocks, _contrast)


def _field(kind: int, dice: Dice) -> Int32:
    """Return values 0 to 255: fine grain, clouds, a weave or a gradient, ``(SIZE, SIZE)``."""
    if kind == 0:
        cell = dice.pick((1, 2, 4))
        return dice.field(SIZE // cell, SIZE // cell).repeat(cell, 0).repeat(cell, 1)
    if kind == 1:
        side = dice.between(3, 12)
        return stretch(dice.field(side, side))
    x, y = np.mgrid[:SIZE, :SIZE].astype(np.int32)
    along: Int32 = x * dice.between(-8, 8) + y * dice.between(-8, 8)
    along = abs(along * dice.between(2, 6) % 512 - 256) if kind == 2 else 128 + along // 3
    return along.clip(0, 255)
