"""Draws one small scene from its description: a textured, coloured shape before a background, with clutter, light and noise.

All arithmetic is on integers (and on square roots of integers, which IEEE 754 rounds the same everywhere), so the same scene has the same
bytes on every platform. Lengths are in sixteenths of a pixel, fractions in 1/256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipq.calib_data.dice import Dice

Int32 = npt.NDArray[np.int32]
Uint8 = npt.NDArray[np.uint8]

SIZE = 40
UNIT = 16
COLOURS = {"red": (205, 45, 50), "orange": (220, 115, 40), "blue": (45, 85, 205), "purple": (125, 60, 175)}
TEXTURES = ("solid", "striped", "checkered")
BACKGROUNDS = ("plain", "gradient", "grid", "speckled", "banded", "cloudy")
POSITIONS = (
    *("at the top left", "at the top", "at the top right", "on the left", "in the middle"),
    *("on the right", "at the bottom left", "at the bottom", "at the bottom right"),
)
_Y, _X = (axis.astype(np.int32) * UNIT + UNIT // 2 for axis in np.mgrid[:SIZE, :SIZE])
_HALF = (256, 251, 237, 213, 181, 142, 98, 50, 0, -50, -98, -142, -181, -213, -237, -251)
_COSINE = _HALF + tuple(-c for c in _HALF)  # of multiples of 11.25 degrees, in 1/256
_TURNS = tuple((_COSINE[k], _COSINE[k - 8]) for k in range(32))  # cosine, sine


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be seen; everything else (exact place, tint, clutter, light, noise) follows from ``key``.

    Attributes:
        shape: A name in ``SHAPES``.
        colour: A name in ``COLOURS``.
        texture: A name in ``TEXTURES``.
        background: A name in ``BACKGROUNDS``.
        position: Index into ``POSITIONS``.
        key: Seed of all details.
        rim: Draw a dark rim around the shape, as in a cartoon.
        scale: Size of the shape in 1/256 of its usual size.
        palette: Brightness added to the colour of the shape, -255 to 255.
    """

    shape: str
    colour: str
    texture: str
    background: str
    position: int
    key: str
    rim: bool = False
    scale: int = 256
    palette: int = 0


def draw(scene: Scene) -> Uint8:
    """Return the picture of ``scene``, uint8 ``(SIZE, SIZE, 3)``."""
    canvas = _background(scene.background, Dice(f"{scene.key}/background"))
    _clutter(canvas, Dice(f"{scene.key}/clutter"))
    _object(canvas, scene, Dice(f"{scene.key}/object"))
    _light(canvas, Dice(f"{scene.key}/light"))
    return canvas.clip(0, 255).astype(np.uint8)


def paint(canvas: Int32, depth: Int32, colour: Int32, opacity: int = 256) -> None:
    """Blend ``colour`` into ``canvas`` in place where ``depth`` is positive, with a rim one pixel wide.

    Args:
        canvas: ``(h, w, 3)``.
        depth: Distance to the rim, positive inside, ``(h, w)``.
        colour: ``(3,)`` or ``(h, w, 3)``.
        opacity: 0 (invisible) to 256.
    """
    coverage = (depth * (256 // UNIT) + 128).clip(0, 256) * opacity >> 8
    canvas += (colour - canvas) * coverage[..., None] >> 8


def root(square: Int32) -> Int32:
    """Return the square root of non-negative integers, rounded down."""
    return np.sqrt(square.astype(np.float64)).astype(np.int32)


def _circle(u: Int32, v: Int32, r: int) -> Int32:
    return r - root(u * u + v * v)


def _square(u: Int32, v: Int32, r: int) -> Int32:
    return (r * 210 >> 8) - np.maximum(abs(u), abs(v))


def _triangle(u: Int32, v: Int32, r: int) -> Int32:
    depth: Int32 = (r * 150 >> 8) - np.maximum(v, (abs(u) * 222 - v * 128) >> 8)
    return depth


def _star(u: Int32, v: Int32, r: int) -> Int32:
    long, short = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    depth: Int32 = ((r * 290 >> 8) - long - 2 * short) >> 1
    return depth


def _cross(u: Int32, v: Int32, r: int) -> Int32:
    arm = r * 90 >> 8
    return np.maximum(np.minimum(r - abs(u), arm - abs(v)), np.minimum(r - abs(v), arm - abs(u)))


def _ring(u: Int32, v: Int32, r: int) -> Int32:
    distance = root(u * u + v * v)
    return np.minimum(r - distance, distance - (r * 130 >> 8))


def _hexagon(u: Int32, v: Int32, r: int) -> Int32:
    depth: Int32 = (r * 235 >> 8) - np.maximum(abs(v), (abs(u) * 222 + abs(v) * 128) >> 8)
    return depth


def _crescent(u: Int32, v: Int32, r: int) -> Int32:
    moved = u - (r * 128 >> 8)
    return np.minimum(r - root(u * u + v * v), root(moved * moved + v * v) - (r * 190 >> 8))


def _bar(u: Int32, v: Int32, r: int) -> Int32:
    return np.minimum(r - abs(u), (r * 100 >> 8) - abs(v))


def _dome(u: Int32, v: Int32, r: int) -> Int32:
    return np.minimum(r - root(u * u + v * v), (r * 60 >> 8) - v)


Outline = Callable[[Int32, Int32, int], Int32]
SHAPES: dict[str, Outline] = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}
UNSEEN_SHAPES: dict[str, Outline] = {"hexagon": _hexagon, "crescent": _crescent, "bar": _bar, "dome": _dome}
_ALL_SHAPES = SHAPES | UNSEEN_SHAPES


def _background(kind: str, dice: Dice) -> Int32:
    tone = dice.between(70, 190)
    first = np.array([tone + dice.between(-25, 25) for _ in range(3)], np.int32)
    second = first + dice.pick((-1, 1)) * dice.between(20, 60)
    weight = _pattern(kind, dice)
    return first + ((second - first) * weight[..., None] >> 8)


def _pattern(kind: str, dice: Dice) -> Int32:
    """Return how much of the second colour is where, 0 to 256, ``(SIZE, SIZE)``."""
    cosine, sine = dice.pick(_TURNS)
    along: Int32 = (_X * cosine + _Y * sine) >> 8
    weight: Int32 = np.zeros_like(along)
    if kind == "gradient":
        weight = (along * 256 // (SIZE * UNIT)).clip(-256, 256) // 2 + 128
    elif kind == "grid":
        period = dice.between(6, 10) * UNIT
        weight = np.where(np.minimum(_X % period, _Y % period) < UNIT, np.int32(256), np.int32(0))
    elif kind == "speckled":
        weight = np.where(dice.field(SIZE, SIZE) < dice.between(16, 48), np.int32(256), np.int32(0))
    elif kind == "banded":
        weight = (along // (dice.between(6, 10) * UNIT) & 1) * 256
    elif kind == "cloudy":
        weight = stretch(dice.field(6, 6))
    return weight


def stretch(coarse: Int32) -> Int32:
    """Return a coarse square field stretched to the canvas by linear interpolation, ``(SIZE, SIZE)``."""
    place = np.arange(SIZE, dtype=np.int32) * (len(coarse) - 1) * 256 // SIZE
    low, part = place >> 8, place & 255
    rows = (coarse[low] * (256 - part)[:, None] + coarse[low + 1] * part[:, None]) >> 8
    smooth: Int32 = (rows[:, low] * (256 - part) + rows[:, low + 1] * part) >> 8
    return smooth


def _clutter(canvas: Int32, dice: Dice) -> None:
    """Draw up to three small blots of any colour."""
    for _ in range(dice.below(4)):
        x, y, r = dice.below(SIZE * UNIT), dice.below(SIZE * UNIT), dice.between(2 * UNIT, 5 * UNIT)
        colour = np.array([dice.between(30, 225) for _ in range(3)], np.int32)
        paint(canvas, dice.pick((_circle, _square, _bar))(_X - x, _Y - y, r), colour, dice.between(100, 256))


def _object(canvas: Int32, scene: Scene, dice: Dice) -> None:
    x, y = (
        SIZE // 2 * UNIT + (place - 1) * 6 * UNIT + dice.between(-2 * UNIT, 2 * UNIT) for place in (scene.position % 3, scene.position // 3)
    )
    radius = dice.between(9 * UNIT, 13 * UNIT) * scene.scale >> 8
    cosine, sine = _TURNS[dice.between(-2, 2)]  # at most 22.5 degrees
    u, v = ((_X - x) * cosine + (_Y - y) * sine) >> 8, ((_Y - y) * cosine - (_X - x) * sine) >> 8
    depth = _ALL_SHAPES[scene.shape](u, v, radius)
    tint = np.array([channel + scene.palette + dice.between(-30, 30) for channel in COLOURS[scene.colour]], np.int32)
    weight = _weave(scene.texture, u, v, dice.between(40, 72))
    shade = dice.between(70, 190)
    paint(canvas, depth, tint * (256 - (weight * shade >> 8))[..., None] >> 8, dice.between(160, 256))
    if scene.rim:
        paint(canvas, np.minimum(depth, 2 * UNIT - depth), np.zeros(3, np.int32))
    if dice.below(4) == 0:
        _occlude(canvas, x, y, radius, dice)


def _weave(texture: str, u: Int32, v: Int32, period: int) -> Int32:
    """Return 0 or 256 where the object is light or dark."""
    if texture == "striped":
        return (u // period & 1) * 256
    if texture == "checkered":
        return ((u // period + v // period) & 1) * 256
    return np.zeros_like(u)


def _occlude(canvas: Int32, x: int, y: int, radius: int, dice: Dice) -> None:
    """Draw a grey bar across part of the object."""
    cosine, sine = dice.pick(_TURNS)
    away = dice.between(-radius, radius)
    across = ((_X - x) * cosine + (_Y - y) * sine >> 8) - away
    grey = np.full(3, dice.between(40, 215), np.int32)
    paint(canvas, dice.between(UNIT, 3 * UNIT) - abs(across), grey, dice.between(150, 256))


def _light(canvas: Int32, dice: Dice) -> None:
    """Change brightness and warmth, and add noise, in place."""
    gain = dice.between(170, 300)
    warmth = dice.between(-20, 20)
    canvas *= np.array([gain + warmth, gain, gain - warmth], np.int32)
    canvas >>= 8
    strength = dice.between(0, 50)
    canvas += (dice.field(SIZE, SIZE, 3) - 128) * strength >> 8
