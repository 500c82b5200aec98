"""The two half types: what they can hold, and how a constant becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from clipq.errors import ExportError

HalfName = Literal["fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class Half:
    """A 16-bit floating point type.

    Attributes:
        name: ``fp16`` or ``bf16``.
        onnx_type: Its number in ``TensorProto``.
        onnx_name: Its name in operator schemas.
        largest: Largest finite value.
        normal: Smallest positive value with full precision.
        smallest: Smallest positive value.
    """

    name: HalfName
    onnx_type: int
    onnx_name: str
    largest: float
    normal: float
    smallest: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.onnx_type))

    def rounded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values as this type, to nearest even; what is too large becomes infinity."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def holds(self, tensor: TensorProto) -> bool:
        """Tell whether a constant fits: nothing finite becomes infinity, and no single number becomes zero."""
        values = numpy_helper.to_array(tensor)
        found = self.rounded(values).astype(np.float32)
        finite = bool((np.isfinite(found) | ~np.isfinite(values)).all())
        return finite and not (values.size == 1 and values.any() and not found.any())

    def tensor(self, tensor: TensorProto, name: str) -> TensorProto:
        """Return a float32 constant as this type.

        Raises:
            ExportError: It does not fit.
        """
        if not self.holds(tensor):
            values = numpy_helper.to_array(tensor)
            largest = float(np.abs(values[np.isfinite(values)]).max())
            raise ExportError(
                f"{tensor.name} does not fit {self.name.upper()}",
                found=f"{largest:.6g}",
                expected=f"{self.smallest:.3g} to {self.largest:.6g}",
                fix="Leave this precision out for this model.",
            )
        made: TensorProto = numpy_helper.from_array(self.rounded(numpy_helper.to_array(tensor)), name)
        return made


HALVES: dict[HalfName, Half] = {
    "fp16": Half("fp16", TensorProto.FLOAT16, "tensor(float16)", 65504.0, 2.0**-14, 2.0**-24),
    "bf16": Half("bf16", TensorProto.BFLOAT16, "tensor(bfloat16)", (2.0 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133),
}
