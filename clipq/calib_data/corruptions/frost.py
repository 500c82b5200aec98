"""Frosted panes, drawn: ferns of ice by their stems and barbs, over clouds and grain.

ImageNet-C lays photographs of frost, which this project cannot ship. Five panes are drawn once per process; their colours and contrasts
are those of the five photographs that ImageNet-C picks from (means and deviations of the channels, measured), their crystals are ours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from clipq.calib_data.corruptions.draws import Draws
from clipq.calib_data.corruptions.plasma import plasma

Float32 = npt.NDArray[np.float32]
Line = tuple[float, float, float, float]

SIDE = 512
_FINE = 2  # drawn this much larger, for smooth lines
_BARB = np.deg2rad(60)  # between a stem of ice and its barbs

# Colour, contrast, ferns, length of a stem in pixels, share of clouds and of grain in the relief.
_PANES: tuple[tuple[tuple[float, float, float], float, int, int, float, float], ...] = (
    ((0.30, 0.58, 0.65), 0.08, 160, 60, 0.9, 0.5),
    ((0.79, 0.81, 0.84), 0.085, 170, 110, 0.5, 0.5),
    ((0.79, 0.81, 0.84), 0.085, 240, 60, 0.4, 0.7),
    ((0.54, 0.60, 0.65), 0.11, 600, 36, 0.6, 0.7),
    ((0.44, 0.48, 0.53), 0.17, 200, 110, 0.4, 0.3),
)


def pane(shape: tuple[int, int], draws: Draws) -> Float32:
    """Return a part of one of the panes, by chance, ``(3, *shape)`` in [0, 1]."""
    whole = _drawn(int(draws.integers(0, len(_PANES), 1)[0]))
    top, left = (int(draws.integers(0, SIDE, 1)[0]) for _ in range(2))
    rows, columns = (_mirrored(start + np.arange(side)) for start, side in zip((top, left), shape, strict=True))
    return whole[:, rows][:, :, columns]


def _mirrored(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return places in ``[0, SIDE)``: beyond its edge a pane goes on as its mirror image."""
    turn = places % (2 * SIDE)
    return np.where(turn < SIDE, turn, 2 * SIDE - 1 - turn)


@lru_cache(maxsize=len(_PANES))
def _drawn(number: int) -> Float32:
    """Return a whole pane, ``(3, SIDE, SIDE)``, not to be written to."""
    colour, contrast, ferns, length, clouds, grain = _PANES[number]
    draws = Draws(f"corrupt-synth/frost/{number}")
    relief = _standard(_ice(ferns, length, draws))
    relief = relief + clouds * _standard(plasma(SIDE, 1.8, draws)) + grain * _standard(gaussian_filter(draws.normal(SIDE, SIDE), 0.7))
    tint = np.array(colour).reshape(3, 1, 1)
    made = np.clip(tint + contrast * _standard(relief), 0, 1).astype(np.float32)
    made.setflags(write=False)
    return made


def _standard(field: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.asarray((field - field.mean()) / field.std())


def _ice(ferns: int, length: float, draws: Draws) -> npt.NDArray[np.float64]:
    """Return the light of all ferns, ``(SIDE, SIDE)``; what is drawn later covers what was drawn before."""
    image = Image.new("L", (SIDE * _FINE, SIDE * _FINE), 60)
    pencil = ImageDraw.Draw(image)
    for x, y, angle, size, light in draws.uniform(ferns, 5).tolist():
        shade = 90 + 110 * light
        for place, line in enumerate(_fern(x * SIDE, y * SIDE, 2 * np.pi * angle, length * (0.4 + 1.2 * size), draws)):
            ends = [round(end * _FINE) for end in line]
            pencil.line(ends, fill=int(min(255, shade + 55 * (place % 2))), width=2 if place else 4)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)


def _fern(x: float, y: float, angle: float, length: float, draws: Draws) -> list[Line]:
    """Return the lines of one fern, its stem first: uneven barbs on both sides, shorter towards the tip, and barbs of the longer ones."""
    lines = [_line(x, y, angle, length)]
    steps = np.arange(3.0, length, 3.0)
    for along, *chances in zip(steps.tolist(), *draws.uniform(3, len(steps)).tolist(), strict=True):
        foot = x + along * np.cos(angle), y + along * np.sin(angle)
        for side, chance in zip((-1, 1), chances, strict=False):
            turned = angle + side * (_BARB + 0.3 * (chances[2] - 0.5))
            barb = 0.5 * (length - along) * min(1.0, 4 * along / length) * (0.4 + 0.8 * chance)
            lines.append(_line(*foot, turned, barb))
            for further in np.arange(4.0, barb - 3, 3.0).tolist() if barb > 12 else ():
                place = foot[0] + further * np.cos(turned), foot[1] + further * np.sin(turned)
                lines.append(_line(*place, angle, 0.25 * (barb - further)))
    return lines


def _line(x: float, y: float, angle: float, length: float) -> Line:
    return x, y, float(x + length * np.cos(angle)), float(y + length * np.sin(angle))
