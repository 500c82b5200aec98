"""Reproducible choices: integers from SHAKE-256, the same on every platform and with every version of numpy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_BYTES = 256


class Dice:
    """A short stream of integers that depends on its key only.

    Args:
        key: What the stream is for, e.g. ``"scenes/test/0/17"``.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._left = hashlib.shake_256(key.encode()).digest(_BYTES)

    def below(self, count: int) -> int:
        """Return an integer in ``[0, count)``; ``count`` is at most 65,536."""
        if len(self._left) < 2:
            self._key += "+"
            self._left = hashlib.shake_256(self._key.encode()).digest(_BYTES)
        value = self._left[0] << 8 | self._left[1]
        self._left = self._left[2:]
        return value * count >> 16

    def between(self, low: int, high: int) -> int:
        """Return an integer in ``[low, high]``."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[T]) -> T:
        """Return one of ``items``."""
        return items[self.below(len(items))]

    def field(self, *shape: int) -> npt.NDArray[np.int32]:
        """Return independent integers in ``[0, 255]``, int32 of ``shape``."""
        self._key += "~"
        stream = hashlib.shake_256(self._key.encode()).digest(int(np.prod(shape)))
        return np.frombuffer(stream, np.uint8).astype(np.int32).reshape(shape)
