"""TensorRT 8.6 has no strongly typed networks: flags and constraints on layers make it compute in the types of the graph."""

from __future__ import annotations

from typing import Any

# What has no arithmetic of its own to constrain. Nor has LayerNorm: it computes in FP32 whatever the flags are, a constraint would only
# hold what it reads and gives in FP32 [its compute_precision in the Python API], and with it what it is fused with [TensorRT issue 4540].
_FREE = ("CAST", "CONSTANT", "DEQUANTIZE", "IDENTITY", "NORMALIZATION", "QUANTIZE", "SHAPE")
# What our graphs keep in FP32, whatever the rest is: sums over a whole row overflow or lose digits in FP16. The position of the last
# token is that of the largest token id; 8.6 looks for it among floats, and FP16 holds whole numbers up to 2048 only.
_FP32 = ("REDUCE", "SOFTMAX", "TOPK")


def set_weak_types(library: Any, config: Any, network: Any, precision: str) -> None:
    """Set the flags of a precision and the layers' types.

    FP32 needs none. FP16 and INT8 compute LayerNorm, softmax, means and maxima in FP32. The rest of an FP16 graph computes in FP16. An INT8
    graph is FP32 with Q/DQ: products between Q/DQ run in INT8, the rest as the builder finds faster of FP16 and FP32; there is no
    calibrator, ranges are those of the Q/DQ. The layers go by their kind, because the library need not tell the graph's types here.

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
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if not _has_floats(layer, types):
            continue
        if layer.type.name in _FP32:
            layer.precision = types.FLOAT
        elif _is_from_integers(layer, types):
            layer.set_output_type(0, types.FLOAT)
        elif precision == "fp16" and layer.type.name not in _FREE:
            layer.precision = types.HALF


def _has_floats(layer: Any, types: Any) -> bool:
    result = layer.get_output(0) if layer.num_outputs else None
    return result is not None and result.dtype in (types.FLOAT, types.HALF)


def _is_from_integers(layer: Any, types: Any) -> bool:
    """Return whether a layer makes floats of integers, as 8.6's parser does with token ids before it looks for the largest."""
    casts = layer.type.name in ("CAST", "IDENTITY") and layer.get_output(0).dtype == types.FLOAT
    return casts and layer.get_input(0).dtype == types.INT32
