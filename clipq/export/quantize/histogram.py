"""A histogram of absolute values that needs no range in advance: its bins are the leading bits of the floats themselves.

A float32 without its sign, read as an integer, grows with its value; its leading 17 bits (8 of exponent, 9 of mantissa) number
512 bins per octave, each at most 1/512 of its value wide, over the whole range of float32. So any number of images streams
through one fixed array, nothing is rebinned, and neither batch size nor order changes the counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_SHIFT = 14
_BINS = 1 << (31 - _SHIFT)


@dataclass(slots=True)
class Histogram:
    """Counts of absolute values of one tensor over all calibration images.

    Attributes:
        counts: int64 ``(131072,)``; see the module's first lines for the bins.
        largest: The exact largest absolute value.
    """

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    largest: float = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count every value of a float32 array of any shape.

        Raises:
            ValueError: A value is NaN or infinite; nothing is counted then.
        """
        if values.size == 0:
            return
        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):
            raise ValueError("not finite")
        bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
        signed = np.bincount(bits >> _SHIFT, minlength=2 * _BINS)
        self.counts += signed[:_BINS] + signed[_BINS:]
        self.largest = max(self.largest, largest)

    def occupied(self, merge: int = 1) -> tuple[Float64, Float64, Float64]:
        """Return lower edges, upper edges and counts of the bins that are not empty, ascending.

        The upper edge of the last bin is the exact largest value; the bin of zeros ends at the smallest number of the next.

        Args:
            merge: How many neighbouring bins are taken as one, a power of two.
        """
        counts = self.counts.reshape(-1, merge).sum(axis=1)
        bins = np.flatnonzero(counts)
        first_bits = (np.append(bins, bins + 1) * merge).astype(np.uint32) << _SHIFT
        lower, upper = first_bits.view(np.float32).astype(np.float64).reshape(2, -1)
        return lower, np.minimum(upper, self.largest), counts[bins].astype(np.float64)
