"""The post-training methods as schemes, and the FP32 graph that each starts from."""

from __future__ import annotations

from dataclasses import replace

from clipq.export.quantize.scheme import Scheme
from clipq.methods import Bits, Method
from clipq.recipe import CALIBRATION_METHODS, CalibrationMethod

# Methods that first write the tower anew, as the same function in other numbers; smoothquant and equalize balance for their bits.
_TRANSFORMED = {
    "smoothquant": "fp32-{bits}-smoothquant",
    "rotation": "fp32-rotation",
    "shift": "fp32-shift",
    "equalize": "fp32-{bits}-equalize",
    "rotation-lsq": "fp32-rotation",
    "equalize-lsq": "fp32-{bits}-equalize",
}

# Rounding a weight and multiplying it by the offset of a shift gives a constant error, which only a corrected bias takes away.
_CORRECTED = frozenset({"bias-correction", "gptq", "shift"})


def source_of(method: Method, bits: Bits) -> str:
    """Return the kind of FP32 graph that a method quantizes: ``fp32``, or one that has the same outputs and is easier to quantize.

    >>> from clipq.methods import METHODS, W8A8
    >>> source_of(METHODS["gptq"], W8A8), source_of(METHODS["smoothquant"], W8A8)
    ('fp32', 'fp32-w8a8-smoothquant')
    """
    return _TRANSFORMED.get(method.name, "fp32").format(bits=str(bits).lower())


def scheme_of(method: Method, bits: Bits, ranges: CalibrationMethod) -> Scheme:
    """Return the scheme of a post-training method; one that is about something else takes the ranges that the recipe names."""
    if method.name in CALIBRATION_METHODS:
        scheme = Scheme(method.name, bits)  # type: ignore[arg-type]  # the names of ranges are methods
        return replace(scheme, rounding="mse") if method.name == "mse" else scheme
    if method.name == "equalize":  # rare large values decide its ranges, which a percentile would cut off
        return Scheme("mse", bits, rounding="gptq", corrected=True)
    return Scheme(ranges, bits, rounding="gptq" if method.name == "gptq" else "nearest", corrected=method.name in _CORRECTED)
