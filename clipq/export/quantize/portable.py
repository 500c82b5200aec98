"""The gate of the one QDQ graph: what ONNX Runtime, TensorRT and OpenVINO all accept, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import constants, load_graph, open_on_cpu
from clipq.export.quantize.layers import WEIGHTED

_INTEGER_ONLY = {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "MatMulNBits"}


def assert_qdq_portable(path: Path) -> None:
    """Check that a QDQ graph is the kind that ONNX Runtime, TensorRT and OpenVINO all take, and that ONNX Runtime opens it.

    Raises:
        ExportError: There is no Q/DQ, a zero point is not INT8 zero, a quantized value other than a convolution's result feeds
            something other than MatMul, Gemm or Conv, an integer-only operator stands in the graph, or ONNX Runtime refuses it.
    """
    model = load_graph(path)
    problems = _problems(model)
    if problems:
        raise ExportError(f"{path} is not portable", found="; ".join(problems[:3]), fix="Report this as a bug of the export.")
    open_on_cpu(path)


def _problems(model: ModelProto) -> list[str]:
    fixed = constants(model)
    nodes = list(model.graph.node)
    grids = [node for node in nodes if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    producers = {name: node for node in nodes for name in node.output}
    dequantized = {node.output[0] for node in grids if node.op_type == "DequantizeLinear" and not _is_of_convolution(node, producers)}
    problems = [] if grids else ["no QuantizeLinear"]
    problems += [f"{node.name} is {node.op_type}" for node in nodes if node.op_type in _INTEGER_ONLY]
    problems += [f"{node.name} has a zero point other than INT8 zero" for node in grids if not _is_int8_zero(node, fixed)]
    problems += [
        f"{node.name} ({node.op_type}) reads a quantized value"
        for node in nodes
        if node.op_type not in WEIGHTED and dequantized.intersection(node.input)
    ]
    return problems


def _is_of_convolution(dequantize: NodeProto, producers: dict[str, NodeProto]) -> bool:
    quantize = producers.get(dequantize.input[0])
    producer = producers.get(quantize.input[0]) if quantize is not None else None
    return producer is not None and producer.op_type == "Conv"


def _is_int8_zero(node: NodeProto, fixed: dict[str, TensorProto]) -> bool:
    zero = fixed.get(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.data_type == TensorProto.INT8 and not np.any(numpy_helper.to_array(zero))
