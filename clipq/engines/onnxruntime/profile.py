"""ONNX Runtime's profile of one run, read into the layers that really ran."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clipq.engines.proof import COMPUTING, UNKNOWN, LayerKind, RanLayer, TowerProof, work_of_name
from clipq.errors import EngineError

_KINDS: Mapping[LayerKind, tuple[str, ...]] = {
    "attention": (
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "GroupQueryAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QAttention",
        "QOrderedAttention",
    ),
    "product": (
        "DynamicQuantizeMatMul",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearMatMul",
        "QOrderedMatMul",
        "TransposeMatMul",
    ),
    "convolution": ("Conv", "ConvInteger", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"),
    "softmax": ("BiasSoftmax", "QLinearSoftmax", "Softmax"),
    "normalisation": ("LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"),
    "reformat": (
        "Cast",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MemcpyFromHost",
        "MemcpyToHost",
        "QuantizeLinear",
        "ReorderInput",
        "ReorderOutput",
        "Transpose",
    ),
}
_KIND_OF: dict[str, LayerKind] = {op_type: kind for kind, op_types in _KINDS.items() for op_type in op_types}
_INT8 = {"DynamicQuantizeMatMul", "QAttention", "QOrderedAttention"}  # float in, INT8 arithmetic inside
_PRECISIONS = {
    "double": "fp64",
    "float": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "int8",
    "uint8": "int8",
    "float8e4m3fn": "fp8",
    "float8e5m2": "fp8",
}
_PACKED = "MatMulNBits"  # FP32 products that read packed weights
_SMALLEST_BLOCK = 32  # inputs of a layer that share a scale
_SWALLOWED = "TRTKernel"  # a whole subgraph that the TensorRT provider compiled; nothing is told of its inside
_SUFFIX = "_kernel_time"
_Shapes = Sequence[Sequence[int]]


def read_profile(text: str, work: Mapping[str, int]) -> TowerProof:
    """Return what a profile of one run on one sample tells.

    Args:
        text: The JSON that ``end_profiling`` wrote.
        work: Node -> multiply-adds, for kernels whose profile does not show the shape of their weights.

    Raises:
        EngineError: It is no profile, or no node ran.
    """
    try:
        events = [event for event in json.loads(text) if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)]
        layers = tuple(_layer(event["name"].removesuffix(_SUFFIX), event["args"], work) for event in events)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            "cannot read ONNX Runtime's profile", found=repr(error), fix="Report this with your onnxruntime version."
        ) from error
    if not layers:
        raise EngineError("ONNX Runtime's profile names no node that ran", fix="Report this with your onnxruntime version.")
    return TowerProof("onnxruntime profile", layers)


def _layer(name: str, args: Mapping[str, Any], work: Mapping[str, int]) -> RanLayer:
    op_type = str(args["op_name"])
    provider = str(args.get("provider", UNKNOWN))
    if op_type.startswith(_SWALLOWED):
        return RanLayer(name, "product", UNKNOWN, 0, provider)
    kind = _KIND_OF.get(op_type, "other")
    types, shapes = _tensors(args.get("input_type_shape", []))
    _, outputs = _tensors(args.get("output_type_shape", []))
    precision = "int8" if op_type in _INT8 else _PRECISIONS.get(types[0], UNKNOWN) if types else UNKNOWN
    if op_type == _PACKED:
        precision = _packed_weights(types, shapes)
    if kind not in COMPUTING or not shapes or not outputs:
        return RanLayer(name, kind, precision, 0, provider)
    return RanLayer(name, kind, precision, _multiply_adds(op_type, shapes, outputs[0]) or work_of_name(name, work), provider)


def _packed_weights(types: Sequence[str], shapes: _Shapes) -> str:
    """Return the bits of packed weights: zero points are packed like them, one per scale, and stay visible where weights do not.

    Where an output has a single block, one zero point fills a byte whatever its bits are.

    >>> _packed_weights(["float", "float", "uint8"], [[1, 50, 768], [24, 96], [12, 96]])
    'int4-weights'
    """
    scales = [math.prod(shape) for kind, shape in zip(types[1:], shapes[1:], strict=False) if kind == "float"]
    packed = [math.prod(shape) for kind, shape in zip(types[1:], shapes[1:], strict=False) if kind == "uint8"]
    if not scales or not packed or (packed[-1] == scales[0] and shapes[0][-1] <= _SMALLEST_BLOCK):
        return UNKNOWN
    return "int8-weights" if packed[-1] >= scales[0] else "int4-weights"


def _multiply_adds(op_type: str, inputs: _Shapes, output: Sequence[int]) -> int:
    """Return the multiply-adds of one kernel, or 0 where its weights are packed, so that their shape is not shown."""
    kind = _KIND_OF[op_type]
    if kind == "attention":
        return _attention(op_type, inputs)
    if kind == "product":
        inner = math.prod(inputs[0]) // output[0] if op_type.endswith("Gemm") else inputs[0][-1]
        return math.prod(output) * inner
    weights = [shape for shape in inputs[1:] if len(shape) == len(inputs[0])]
    return math.prod(output) * math.prod(weights[0][1:]) if weights else 0


def _attention(op_type: str, shapes: _Shapes) -> int:
    """Return queries x keys x width, twice; where Q, K and V are made in the same kernel, the product that makes them too."""
    tokens, width = shapes[0][1], shapes[0][-1]
    if op_type in {"Attention", "QAttention"}:
        projected = next((shape[-1] for shape in shapes[1:] if len(shape) in {1, 2} and shape[-1] > 1), 3 * width)  # weights or bias
        return tokens * width * projected + 2 * tokens * tokens * projected // 3
    keys = shapes[1][1] if len(shapes) > 1 and len(shapes[1]) == 3 else tokens
    return 2 * tokens * keys * width


def _tensors(values: Sequence[Mapping[str, Sequence[int]]]) -> tuple[list[str], _Shapes]:
    """Return the types and the shapes of ``[{"float": [1, 50, 768]}, ...]``."""
    pairs = [pair for value in values for pair in value.items()]
    return [name for name, _ in pairs], [shape for _, shape in pairs]
