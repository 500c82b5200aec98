"""Which nodes become INT8 and which stay FP32, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import add_initializer, constants, replace_nodes
from clipq.export.quantize.weights import quantize_weight

WEIGHTED = ("MatMul", "Gemm", "Conv")
STREAM_ROTATION = "stream_rotation"  # the module of a transform whose product makes the residual stream
_BETWEEN_PROJECTION_AND_OUTPUT = {
    "Add",
    "Cast",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
}


@dataclass(frozen=True)
class Layer:
    """One node to quantize: MatMul or Conv with a constant second input.

    Attributes:
        name: Name of the node.
        operator: ``MatMul`` or ``Conv``.
        activation: Name of the tensor that meets the weight.
        result: Name of the tensor it gives.
        weight_name: Name of the constant.
        weight: The constant, float32.
        axis: Its output channels.
    """

    name: str
    operator: str
    activation: str
    result: str
    weight_name: str
    weight: npt.NDArray[np.float32]
    axis: int

    @cached_property
    def int8(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """The weight in INT8 and its scales ``(channels,)``, computed once: a search writes the same layer dozens of times."""
        return quantize_weight(self.weight, self.axis)


def choose_layers(model: ModelProto, source: Path, skip: Mapping[str, str] | None = None) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers to quantize, in graph order, and why each other MatMul, Gemm and Conv stays FP32.

    Linear layers and convolutions with constant weights are quantized. The first convolution (it reads the pixels), the final
    projection (it makes the embedding), of patch tokens too, the product that rotates the residual stream, and products of two
    activations (attention) stay FP32.

    Args:
        model: The graph, its Gemms already split.
        source: Its file, for messages.
        skip: Operator types that stay FP32 too, each with its reason.

    Raises:
        ExportError: Nothing is left to quantize, or a weight holds NaN or infinity.
    """
    weights = constants(model)
    last = {_final_projection(model, output.name) for output in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    layers, kept = [], {}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        reason = _reason_to_keep(node, weights, last, inputs) or (skip or {}).get(node.op_type)
        if reason:
            kept[node.name] = reason
        else:
            layers.append(_layer(node, weights[node.input[1]], source))
    if not layers:
        raise ExportError(f"nothing to quantize in {source}", expected="MatMul, Gemm or Conv nodes with constant weights")
    return layers, kept


def _reason_to_keep(node: NodeProto, weights: dict[str, TensorProto], last: set[str], inputs: set[str]) -> str:
    weight = weights.get(node.input[1])
    if weight is None or node.input[0] in weights:
        return "product of two activations"
    if node.op_type == "Gemm":
        return "Gemm with a factor, a transposed input or a computed bias"
    if weight.data_type != TensorProto.FLOAT or (node.op_type == "MatMul" and len(weight.dims) != 2):
        return "weight is not a float32 matrix"
    return _reason_by_place(node, last, inputs)


def _reason_by_place(node: NodeProto, last: set[str], inputs: set[str]) -> str:
    if node.op_type == "Conv" and node.input[0] in inputs:
        return "first convolution: reads the pixels"
    if node.name in last:
        return "final projection: makes the embedding"
    if STREAM_ROTATION in node.name.split("/"):
        return "rotation of the residual stream: every block adds to what it makes"
    return ""


def _final_projection(model: ModelProto, output: str) -> str:
    """Return the name of the weighted node whose result is an output but for a bias and its shape, or nothing."""
    producers = {name: node for node in model.graph.node for name in node.output}
    fixed = constants(model)
    node = producers.get(output)
    while node is not None and node.op_type in _BETWEEN_PROJECTION_AND_OUTPUT:
        data = [name for name in node.input if name not in fixed] if node.op_type in {"Add", "Sub"} else node.input[:1]
        node = producers.get(data[0]) if len(data) == 1 else None
    return str(node.name) if node is not None and node.op_type in WEIGHTED else ""


def _layer(node: NodeProto, tensor: TensorProto, source: Path) -> Layer:
    weight = numpy_helper.to_array(tensor)
    if not np.isfinite(weight).all():
        raise ExportError(f"NaN or infinity in the weights of {node.name}", found=source, fix="Check the checkpoint.")
    axis = 0 if node.op_type == "Conv" else 1
    return Layer(node.name, node.op_type, node.input[0], node.output[0], node.input[1], weight, axis)


def split_gemms(model: ModelProto) -> None:
    """Turn every Gemm with constant weights into MatMul and ``Sub`` of the negative bias, exactly equal in floating point.

    ONNX Runtime has no INT8 Gemm with a float bias, and joins MatMul and Add of two dimensions into such a Gemm before it sees the
    Q/DQ around it: the layer would silently compute in FP32. It leaves MatMul and Sub alone.
    """
    weights = constants(model)
    replace_nodes(model, [part for node in model.graph.node for part in _split(model, node, weights)])


def _split(model: ModelProto, node: NodeProto, weights: dict[str, TensorProto]) -> Iterator[NodeProto]:
    values: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    factors = values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0 or values.get("transA", 0)
    if node.op_type != "Gemm" or factors or not all(name in weights for name in node.input[1:] if name):
        yield node
        return
    weight = numpy_helper.to_array(weights[node.input[1]])
    name = add_initializer(model, f"{node.name}.weight", weight.T if values.get("transB", 0) else weight)
    has_bias = len(node.input) > 2 and node.input[2] != ""
    product = f"{node.output[0]}.product" if has_bias else node.output[0]
    yield helper.make_node("MatMul", [node.input[0], name], [product], name=node.name)
    if has_bias:
        bias = add_initializer(model, f"{node.name}.negative_bias", -numpy_helper.to_array(weights[node.input[2]]))
        yield helper.make_node("Sub", [product, bias], [node.output[0]], name=f"{node.name}.bias")
