"""Random numbers of one picture: a function of a key alone, whatever thread or order asks for them."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Float64 = npt.NDArray[np.float64]


class Draws:
    """A stream of random numbers that depends on its key only.

    The raw bits are Philox-4x64 under the first 128 bits of the key's SHA-256. numpy promises that bits of a generator stay the same, but
    not how its distributions are made of them; so uniforms are the upper 53 bits, and normals their inverse distribution function.

    Args:
        key: What the stream is for.
    """

    def __init__(self, key: str) -> None:
        self._bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float64:
        """Return uniform numbers strictly inside ``(low, high)``, float64 of ``shape``."""
        raw = self._bits.random_raw(int(np.prod(shape))).reshape(shape)
        inside = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return np.asarray(low + (high - low) * inside)

    def between(self, low: float, high: float) -> float:
        """Return one number in ``(low, high)``."""
        return float(self.uniform(1, low=low, high=high)[0])

    def normal(self, *shape: int) -> Float64:
        """Return standard normal numbers, float64 of ``shape``."""
        return np.asarray(ndtri(self.uniform(*shape)))

    def integers(self, low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        """Return integers in ``[low, high)``, int64 of ``shape``."""
        return np.floor(self.uniform(*shape, low=low, high=high)).astype(np.int64)
