"""How an observed tower becomes integers: bits, ranges of activations, rounding of weights, and what training has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clipq.methods import W8A8, Bits
from clipq.recipe import CalibrationMethod

Rounding = Literal["nearest", "mse", "gptq"]


@dataclass(frozen=True, slots=True)
class Learned:
    """What quantization-aware training has learned of a tower.

    Attributes:
        clips: Largest absolute value of each quantized activation, by the name of its tensor; beyond it values saturate.
        weights: Integers (int8, the shape of the weight in the graph) and scales (float32, one per output channel) by layer.
    """

    clips: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantize a tower with explicit Q/DQ.

    Attributes:
        ranges: How activation ranges are chosen from the histograms; ranges that were learned come before it.
        bits: Of weights and activations. Below 8, integers are stored in INT8 and stay within the smaller grid.
        rounding: Of weights: to the ``nearest`` with the largest value as range, with the range of least squared error (``mse``), or
            one column after the other with the errors carried on (``gptq``).
        corrected: Take the mean error of every layer, as the calibration images show it, out of its bias.
        learned: What training has learned; empty without training.
    """

    ranges: CalibrationMethod
    bits: Bits = W8A8
    rounding: Rounding = "nearest"
    corrected: bool = False
    learned: Learned = field(default_factory=Learned)

    @property
    def second_pass(self) -> bool:
        """Whether it needs the moments of what each layer reads on the grid, so a second pass over the calibration images."""
        return self.rounding == "gptq" or self.corrected

    @property
    def words(self) -> str:
        """The scheme in a line."""
        simulated = f"; stored in INT8, simulates {self.bits}" if self.bits.simulated else ""
        return f"{self.bits} QDQ: INT8 activations per tensor, INT8 weights per channel, both symmetric; bias FP32{simulated}"

    def to_json(self) -> dict[str, Any]:
        """Return what a graph says about its scheme."""
        learned = {"learned": True} if self.learned.clips else {"method": self.ranges}
        return {"bits": str(self.bits), "simulated": self.bits.simulated, "rounding": self.rounding, "corrected": self.corrected, **learned}
