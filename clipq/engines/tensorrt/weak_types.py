"""TensorRT 8.6 has no strongly typed networks: flags and per-layer constraints make it compute in the types of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# What the graph says of these is fixed by what they are, or they compute nothing in floating point.
_FIXED = ("CAST", "CONSTANT", "DEQUANTIZE", "IDENTITY", "QUANTIZE", "SHAPE")
# What is kept in FP32 where an FP32-typed graph is computed in FP16: sums over a whole row overflow or lose digits there.
_SENSITIVE = ("NORMALIZATION", "REDUCE", "SOFTMAX")


def set_weak_types(library: Any, config: Any, network: Any, precision: str) -> None:
    """Set the flags of a precision and the layers' types.

    FP32: no flags, nothing else can be chosen. FP16: every layer computes in the type that the graph gives its result, so those
    that the graph keeps in FP32 stay there. INT8: the graph is FP32 with Q/DQ; products between Q/DQ run in INT8, softmax, means and
    LayerNorm in FP32, the rest in FP32 or FP16, as the builder finds faster. There is no calibrator: ranges are those of the Q/DQ.

    Args:
        library: TensorRT 8.6.
        config: The builder's configuration.
        network: The parsed network.
        precision: ``fp32``, ``fp16`` or ``int8``.
    """
    if precision == "fp32":
        return
    flags, types = library.BuilderFlag, library.DataType
    config.set_flag(flags.FP16)
    config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    if precision == "int8":
        config.set_flag(flags.INT8)
    for layer in _layers(network):
        if precision == "fp16" and layer.type.name not in _FIXED and layer.get_output(0).dtype in (types.HALF, types.FLOAT):
            layer.precision = layer.get_output(0).dtype
        if precision == "int8" and layer.type.name in _SENSITIVE and layer.get_output(0).dtype == types.FLOAT:
            layer.precision = types.FLOAT


def _layers(network: Any) -> Iterator[Any]:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.num_outputs and layer.get_output(0) is not None:
            yield layer
