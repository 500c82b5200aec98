"""The mean error that quantization makes in each layer, and how it is taken out of the layer's bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.export.quantize.graph import add_initializer, constants, replace_nodes
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.moments import Moments

Float64 = npt.NDArray[np.float64]


def mean_error(layer: Layer, integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], moments: Moments) -> Float64:
    """Return what quantization adds to each output of a layer on average, ``(outputs,)``: ``E[Q(x)] Q(W) - E[x] W``.

    Of a convolution, as if no image ended anywhere: its padding is not counted.

    Args:
        layer: The layer with its FP32 weight.
        integers: Its quantized weight.
        scales: One per output.
        moments: Of what it reads.
    """
    if layer.operator != "Conv":
        return moments.mean_rounded @ (integers * scales.astype(np.float64)) - moments.mean @ layer.weight.astype(np.float64)
    exact, rounded = (values.sum(axis=(2, 3), dtype=np.float64) for values in (layer.weight, integers))
    return _convolved(moments.mean_rounded, rounded * scales[:, None]) - _convolved(moments.mean, exact)


def _convolved(mean: Float64, weight: Float64) -> Float64:
    """Return the result of constant channels, for each group of channels its own part of them."""
    groups = len(mean) // weight.shape[1]
    parts = zip(np.split(weight, groups), np.split(mean, groups), strict=True)
    return np.concatenate([own @ part for own, part in parts])


def correct_biases(model: ModelProto, errors: Mapping[str, Float64]) -> None:
    """Take a mean error ``(outputs,)`` out of the bias of each named MatMul or Conv.

    It goes into the constant that an Add or Sub puts to the result next, or into the convolution's own bias; where there is none, a Sub
    of its own follows the layer (an Add would be joined with the product before ONNX Runtime sees the Q/DQ).
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fixed, outputs = constants(model), {value.name for value in model.graph.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name not in errors:
            continue
        error = errors[node.name].astype(np.float64)
        if node.op_type == "Conv":
            _correct_convolution(model, node, error, fixed)
            continue
        following = readers.get(node.output[0], [])
        lone = following[0] if len(following) == 1 and node.output[0] not in outputs else None
        if lone is None or not _fold(model, lone, node.output[0], error, fixed):
            nodes.append(_subtract(model, node, error))
    replace_nodes(model, nodes)


def _correct_convolution(model: ModelProto, node: NodeProto, error: Float64, fixed: Mapping[str, TensorProto]) -> None:
    old = numpy_helper.to_array(fixed[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.zeros(len(error))
    name = add_initializer(model, f"{node.name}.bias.corrected", (old - error).astype(np.float32))
    inputs = [*node.input[:2], name]
    del node.input[:]
    node.input.extend(inputs)


def _fold(model: ModelProto, node: NodeProto, result: str, error: Float64, fixed: Mapping[str, TensorProto]) -> bool:
    """Put the correction into the constant of an Add or Sub; return whether it has one of the right shape."""
    if node.op_type not in {"Add", "Sub"}:
        return False
    place = 1 if node.input[0] == result else 0
    constant = fixed.get(node.input[place])
    if constant is None or (node.op_type == "Sub" and place == 0) or list(constant.dims)[-1:] != [len(error)]:
        return False
    old = numpy_helper.to_array(constant)
    new = (old - error if node.op_type == "Add" else old + error).astype(np.float32)
    node.input[place] = add_initializer(model, f"{node.name}.corrected", new)
    return True


def _subtract(model: ModelProto, node: NodeProto, error: Float64) -> NodeProto:
    result, node.output[0] = node.output[0], f"{node.output[0]}.uncorrected"
    constant = add_initializer(model, f"{node.name}.mean_error", error.astype(np.float32))
    return helper.make_node("Sub", [node.output[0], constant], [result], name=f"{node.name}.corrected")
