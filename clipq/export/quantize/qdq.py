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

CLIP = ".clip"  # what the name of a Clip in front of Q ends in
Weight = tuple[npt.NDArray[Any], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Form:
    """A number format.

    Attributes:
        name: What the names of its tensors end in.
        dtype: Its numpy type.
        weight: A layer's quantized weight with its scale or scales.
        limit: Largest number of a layer's or product's input where that is less than the type holds: values are clipped to it before Q.
            0: no clipping. Results of convolutions use the whole type: their Q/DQ are there for ONNX Runtime's kernels, not for the bits.
    """

    name: str
    dtype: npt.DTypeLike
    weight: Callable[[Layer], Weight]
    limit: int = 0


Scales = Mapping[str, npt.NDArray[np.float32]]


def quantized_model(observed: Observed, selection: Selection, form: Form, scales: Scales, results: Scales | None = None) -> ModelProto:
    """Return the graph with DQ before each quantized weight and Q/DQ before each quantized input of a node.

    Every quantized reader of a tensor has a Q/DQ with constants of its own, all of the same scale: ONNX Runtime turns signed
    activations into the unsigned ones that its kernels for x86 want only where nothing else reads the Q, and would silently compute
    readers of a shared one in FP32. All other readers of a convolution's result share one more.
    ``observed`` stays as it is: the graph is its own copy, with only those FP32 weights that something still reads.

    Args:
        observed: The tower.
        selection: What is quantized of it.
        form: The number format.
        scales: The scale, a scalar, of each tensor that is read quantized.
        results: That of each result of a convolution for all its other readers; without it they are in ``scales``.
    """
    model = ModelProto()
    model.CopyFrom(observed.skeleton)
    nodes = list(_nodes(model, selection, form, scales, scales if results is None else results))
    replace_nodes(model, nodes)
    _add_weights(model, observed)
    return model


def _nodes(model: ModelProto, selection: Selection, form: Form, scales: Scales, results: Scales) -> Iterator[NodeProto]:
    layers = {layer.name: layer for layer in selection.layers}
    products = {product.name for product in selection.products}
    convolved = {layer.result for layer in selection.layers if layer.operator == "Conv"}
    pairs: dict[str, list[str]] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            reads_quantized = node.name in products or (node.name in layers and index == 0)
            if not (reads_quantized or name in convolved):
                continue
            known, reader = pairs.setdefault(name, []), node.name if reads_quantized else ""
            if reader not in known:
                known.append(reader)
                scale, limit = (scales[name], form.limit) if reads_quantized else (results[name], 0)
                yield from _pair(model, name, known.index(reader), scale, form, limit=limit)
            node.input[index] = f"{_numbered(name, known.index(reader))}.dequantized"
        if node.name in layers:
            yield _weight_node(model, layers[node.name], form)
            node.input[1] = f"{node.name}.weight.dequantized"
        yield node


def _pair(  # noqa: PLR0913 - what stands in it, and where
    model: ModelProto, tensor: str, number: int, scale: npt.NDArray[np.float32], form: Form, *, limit: int
) -> Iterator[NodeProto]:
    name = _numbered(tensor, number)
    if limit and limit < np.iinfo(form.dtype).max:
        ends = [add_initializer(model, f"{name}.{end}", np.float32(sign * limit) * scale) for end, sign in (("least", -1), ("most", 1))]
        yield helper.make_node("Clip", [tensor, *ends], [f"{name}.clipped"], name=f"{name}{CLIP}")
        tensor = f"{name}.clipped"
    grid = [add_initializer(model, f"{name}.scale", scale), add_initializer(model, f"{name}.zero_point", np.zeros((), form.dtype))]
    yield helper.make_node("QuantizeLinear", [tensor, *grid], [f"{name}.{form.name}"], name=f"{name}.quantize")
    yield helper.make_node("DequantizeLinear", [f"{name}.{form.name}", *grid], [f"{name}.dequantized"], name=f"{name}.dequantize")


def _numbered(tensor: str, number: int) -> str:
    return f"{tensor}.{number + 1}" if number else tensor


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


def _add_weights(model: ModelProto, observed: Observed) -> None:
    """Give the graph the FP32 weights that it still reads: those of layers that are not quantized."""
    known = {tensor.name for tensor in model.graph.initializer}.union(*(node.output for node in model.graph.node))
    read = {name for node in model.graph.node for name in node.input} - known
    for name, weight in {layer.weight_name: layer.weight for layer in observed.layers}.items():
        if name in read:
            add_initializer(model, name, weight)
