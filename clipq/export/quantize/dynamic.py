"""INT8 weights with activations quantized on the fly: the graph of ``ort-int8-dynamic``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from clipq.export.quantize.facts import facts, label, sizes
from clipq.export.quantize.graph import (
    add_initializer,
    graph_bytes,
    load_graph,
    open_on_cpu,
    publish,
    replace_nodes,
    save_graph,
    scratch_folder,
)
from clipq.export.quantize.layers import Layer, choose_layers, split_gemms
from clipq.files import sha256_file

SCHEME = "W8A8 dynamic: UINT8 activations per tensor and batch, INT8 weights per channel; bias FP32"
NO_DYNAMIC_CONV = "convolution: ONNX Runtime has no fast dynamic INT8 convolution"


def quantize_dynamic(source: Path, target: Path) -> dict[str, Any]:
    """Write ``target``, the dynamically quantized form of the FP32 graph ``source``, and return facts for ``engine.json``.

    Linear layers become DynamicQuantizeLinear, MatMulInteger, Cast and Mul, the pattern that ONNX Runtime fuses into one kernel.
    Activation ranges are those of each batch, so an embedding depends a little on its neighbours in the batch.

    Raises:
        ExportError: The source is unreadable or has nothing to quantize.
    """
    model = load_graph(source)
    split_gemms(model)
    layers, kept = choose_layers(model, source, skip={"Conv": NO_DYNAMIC_CONV})
    insert_integer_products(model, layers)
    label(model, sha256_file(source), scheme=SCHEME)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        open_on_cpu(folder / target.name)
        publish(folder / target.name, target)
    quantized = {layer.name: layer.operator for layer in layers}
    return {**facts(SCHEME, "int8", quantized, kept), **sizes(graph_bytes(source), target)}


def insert_integer_products(model: ModelProto, layers: list[Layer]) -> None:
    """Replace each layer's MatMul by an integer product, its activation quantized once for all layers that read it."""
    by_name = {layer.name: layer for layer in layers}
    replace_nodes(model, list(_rewritten(model, by_name)))


def _rewritten(model: ModelProto, layers: dict[str, Layer]) -> Iterator[NodeProto]:
    quantized: set[str] = set()
    for node in list(model.graph.node):
        layer = layers.get(node.name)
        if layer is None:
            yield node
            continue
        name = layer.activation
        if name not in quantized:
            grid = [f"{name}.uint8", f"{name}.scale", f"{name}.zero_point"]
            yield helper.make_node("DynamicQuantizeLinear", [name], grid, name=f"{name}.quantize")
            quantized.add(name)
        yield from _product(model, layer)


def _product(model: ModelProto, layer: Layer) -> list[NodeProto]:
    name, activation = layer.name, layer.activation
    integers, scales = layer.int8
    weight = add_initializer(model, f"{name}.weight.int8", integers)
    zero = add_initializer(model, f"{name}.weight.zero_point", np.zeros(len(scales), np.int8))
    scale = add_initializer(model, f"{name}.weight.scale", scales)
    inputs = [f"{activation}.uint8", weight, f"{activation}.zero_point", zero]
    return [
        helper.make_node("MatMulInteger", inputs, [f"{name}.int32"], name=name),
        helper.make_node("Cast", [f"{name}.int32"], [f"{name}.float"], name=f"{name}.cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{activation}.scale", scale], [f"{name}.scale"], name=f"{name}.scales"),
        helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [layer.result], name=f"{name}.scaled"),
    ]
