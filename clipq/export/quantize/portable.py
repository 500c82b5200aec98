"""The gate of a QDQ graph: what ONNX Runtime, TensorRT and OpenVINO all accept, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import constants, load_graph, open_on_cpu
from clipq.export.quantize.layers import WEIGHTED

ZERO_POINTS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
FIX = (
    "Export it again with clipq-export. Other tools need symmetric INT8 activations and weights and no quantized bias;"
    " in onnxruntime.quantization: ActivationSymmetric, WeightSymmetric, QuantizeBias=False, QInt8, QuantFormat.QDQ."
)
_INTEGER_ONLY = {
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}


def assert_qdq_portable(path: Path, precision: str = "int8") -> None:
    """Check that a QDQ graph is the kind that ONNX Runtime, TensorRT and OpenVINO all take, and that ONNX Runtime opens it.

    Args:
        path: The graph.
        precision: ``int8`` or ``fp8``.

    Raises:
        ExportError: There is no Q/DQ, a zero point is not zero or of another type, a bias is INT32, a quantized value that is no
            result of MatMul, Gemm or Conv feeds something other than those, an integer-only operator stands in the graph,
            or ONNX Runtime refuses it. The message names the first three such nodes and says how to export again.
    """
    problems = list(_problems(load_graph(path), precision))
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ExportError(f"{path} is not portable to TensorRT", found="; ".join(problems[:3]) + more, fix=FIX)
    open_on_cpu(path)


def _problems(model: ModelProto, precision: str) -> Iterator[str]:
    fixed = constants(model)
    nodes = list(model.graph.node)
    grids = [node for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    producers = {name: node for node in nodes for name in node.output}
    dequantized = {node.output[0] for node in grids if node.op_type == "DequantizeLinear" and not _is_of_product(node, producers)}
    if not grids:
        yield "no QuantizeLinear"
    for node in nodes:
        if node.op_type in _INTEGER_ONLY:
            yield f"{node.name} is {node.op_type}, an operator on integers"
        elif node in grids and (wrong := _wrong_zero_point(node, fixed, ZERO_POINTS[precision])):
            yield f"{node.name} has {wrong}"
        elif node.op_type not in WEIGHTED and dequantized.intersection(node.input):
            yield f"{node.name} ({node.op_type}) reads a quantized value"


def _is_of_product(dequantize: NodeProto, producers: dict[str, NodeProto]) -> bool:
    quantize = producers.get(dequantize.input[0])
    producer = producers.get(quantize.input[0]) if quantize is not None else None
    return producer is not None and producer.op_type in WEIGHTED


def _wrong_zero_point(node: NodeProto, fixed: dict[str, TensorProto], expected: int) -> str:
    """Return what is wrong with a grid, or nothing. Without a zero point a Q makes UINT8, and a DQ has the type that it reads."""
    zero = fixed.get(node.input[2]) if len(node.input) > 2 else None
    read = fixed.get(node.input[0])
    kind = zero.data_type if zero is not None else read.data_type if read is not None else TensorProto.UINT8
    if kind == TensorProto.INT32:
        return "a quantized bias (INT32)"
    if kind != expected:
        return f"zero points of type {helper.tensor_dtype_to_string(kind).removeprefix('TensorProto.')}"
    if zero is None and len(node.input) > 2 and node.input[2]:
        return "a computed zero point"
    if zero is not None and np.any(values := numpy_helper.to_array(zero).astype(np.float32)):
        return f"an asymmetric zero point ({values.flat[np.flatnonzero(values)[0]]:g})"
    return ""
