"""Explicit Q/DQ in the graph of an observed tower, in any number format: INT8 or FP8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from clipq.export.quantize.graph import add_initializer, replace_nodes
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.observe import Observed
from clipq.export.quantize.selection import Selection

Weight = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Form:
    """A number format.

    Attributes:
        name: What the names of its tensors end in.
        dtype: Its numpy type.
        weight: A layer's quantized weight with its scale or scales.
    """

    name: str
    dtype: npt.DTypeLike
    weight: Callable[[Layer], Weight]


def quantized_model(observed: Observed, selection: Selection, form: Form, scales: Mapping[str, npt.NDArray[np.float32]]) -> ModelProto:
    """Return the graph with DQ before each quantized weight and Q/DQ behind each tensor of ``scales``.

    One Q/DQ serves all quantized readers of a tensor; a convolution's result is read dequantized by everything.
    ``observed`` stays as it is: the graph is its own copy, with only those FP32 weights that something still reads.
    """
    model = ModelProto()
    model.CopyFrom(observed.skeleton)
    before = {layer.name: _weight_node(model, layer, form) for layer in selection.layers}
    after = {name: _activation_nodes(model, name, scale, form) for name, scale in scales.items()}
    _rewire(model, selection, scales)
    replace_nodes(model, _in_order(model, before, after))
    _add_weights(model, observed)
    return model


def _rewire(model: ModelProto, selection: Selection, scales: Mapping[str, Any]) -> None:
    results = {layer.result for layer in selection.layers if layer.operator == "Conv"}
    products = {product.name for product in selection.products}
    layers = {layer.name for layer in selection.layers}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in results or (name in scales and (node.name in products or (node.name in layers and index == 0))):
                node.input[index] = f"{name}.dequantized"
        if node.name in layers:
            node.input[1] = f"{node.name}.weight.dequantized"


def _in_order(model: ModelProto, before: Mapping[str, NodeProto], after: Mapping[str, list[NodeProto]]) -> Iterator[NodeProto]:
    for value in model.graph.input:
        yield from after.get(value.name, ())
    for node in model.graph.node:
        if node.name in before:
            yield before[node.name]
        yield node
        for name in node.output:
            yield from after.get(name, ())


def _weight_node(model: ModelProto, layer: Layer, form: Form) -> NodeProto:
    name = f"{layer.name}.weight"
    values, scales = form.weight(layer)
    inputs = [
        add_initializer(model, f"{name}.{form.name}", values),
        add_initializer(model, f"{name}.scale", scales),
        add_initializer(model, f"{name}.zero_point", np.zeros(scales.shape, form.dtype)),
    ]
    axis = layer.axis if scales.ndim else None
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.dequantize", axis=axis)


def _activation_nodes(model: ModelProto, name: str, scale: npt.NDArray[np.float32], form: Form) -> list[NodeProto]:
    grid = [add_initializer(model, f"{name}.scale", scale), add_initializer(model, f"{name}.zero_point", np.zeros((), form.dtype))]
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [f"{name}.{form.name}"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.{form.name}", *grid], [f"{name}.dequantized"], name=f"{name}.dequantize"),
    ]


def _add_weights(model: ModelProto, observed: Observed) -> None:
    """Give the graph the FP32 weights that it still reads: those of layers that are not quantized."""
    known = {tensor.name for tensor in model.graph.initializer}.union(*(node.output for node in model.graph.node))
    read = {name for node in model.graph.node for name in node.input} - known
    for name, weight in {layer.weight_name: layer.weight for layer in observed.layers}.items():
        if name in read:
            add_initializer(model, name, weight)
