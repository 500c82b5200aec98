"""Static INT8 with calibrated ranges: the one QDQ graph that ONNX Runtime, TensorRT and OpenVINO all take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from clipq.export.quantize.collect import collect, write_observed
from clipq.export.quantize.facts import facts, label
from clipq.export.quantize.graph import add_initializer, load_graph, publish, replace_nodes, save_graph, scratch_folder
from clipq.export.quantize.layers import Layer, choose_layers, split_gemms
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.ranges import clip_of
from clipq.export.quantize.weights import quantize_weight, scale_of
from clipq.recipe import CalibrationMethod

SCHEME = "W8A8 QDQ: INT8 activations per tensor, INT8 weights per channel, both symmetric; bias FP32"


def quantize_static(source: Path, target: Path, batches: Iterable[npt.NDArray[Any]], method: CalibrationMethod) -> dict[str, Any]:
    """Write ``target``, the statically quantized form of the FP32 graph ``source``, and return facts for ``engine.json``.

    Args:
        source: FP32 graph with one input.
        target: Where the QDQ graph goes; written whole or not at all.
        batches: Inputs of the graph, in batches of any size; read once, never held.
        method: How activation ranges are chosen from the statistics.

    Raises:
        ExportError: The source is unreadable, has nothing to quantize, or gives NaN or infinity on a calibration image.
        DataError: There are no calibration images.
    """
    model = load_graph(source)
    split_gemms(model)
    layers, kept = choose_layers(model, source)
    with scratch_folder(target) as folder:
        write_observed(model, quantized_tensors(layers), folder / "observed.onnx")
        histograms, images = collect(folder / "observed.onnx", batches)
        (folder / "observed.onnx").unlink()
        clips = {name: clip_of(histogram, method) for name, histogram in histograms.items()}
        insert_qdq(model, layers, clips)
        label(model, source, scheme=SCHEME, method=method, images=images)
        save_graph(model, folder / target.name)
        assert_qdq_portable(folder / target.name)
        publish(folder / target.name, target)
    ranges = {name: {"largest": histogram.largest, "clip": clips[name]} for name, histogram in histograms.items()}
    return {**facts(SCHEME, layers, kept, source, target), "method": method, "images": images, "ranges": ranges}


def quantized_tensors(layers: list[Layer]) -> list[str]:
    """Return the activations that get Q/DQ, each once: what every layer reads, and what convolutions give.

    ONNX Runtime has an INT8 product with a float result but no such convolution: without Q/DQ behind it a convolution computes
    in FP32, slower than before.
    """
    results = [str(layer.node.output[0]) for layer in layers if layer.node.op_type == "Conv"]
    return list(dict.fromkeys([*(layer.activation for layer in layers), *results]))


def insert_qdq(model: ModelProto, layers: list[Layer], clips: Mapping[str, float]) -> None:
    """Put Q/DQ behind each quantized activation, one for all its readers among the layers, and DQ before each INT8 weight."""
    before = {layer.node.name: _weight_node(model, layer) for layer in layers}
    after = {name: _activation_nodes(model, name, clip) for name, clip in clips.items()}
    results = {layer.node.output[0] for layer in layers if layer.node.op_type == "Conv"}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in results:
                node.input[index] = f"{name}.dequantized"
    for layer in layers:
        name = layer.node.input[0]
        layer.node.input[0] = f"{name}.dequantized" if name in clips else name
        layer.node.input[1] = f"{layer.node.name}.weight.dequantized"
    replace_nodes(model, _in_order(model, before, after))


def _in_order(model: ModelProto, before: Mapping[str, NodeProto], after: Mapping[str, list[NodeProto]]) -> Iterator[NodeProto]:
    for value in model.graph.input:
        yield from after.get(value.name, ())
    for node in model.graph.node:
        if node.name in before:
            yield before[node.name]
        yield node
        for name in node.output:
            yield from after.get(name, ())


def _weight_node(model: ModelProto, layer: Layer) -> NodeProto:
    name = f"{layer.node.name}.weight"
    integers, scales = quantize_weight(layer.weight, layer.axis)
    inputs = [
        add_initializer(model, f"{name}.int8", integers),
        add_initializer(model, f"{name}.scale", scales),
        add_initializer(model, f"{name}.zero_point", np.zeros(len(scales), np.int8)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.dequantize", axis=layer.axis)


def _activation_nodes(model: ModelProto, name: str, clip: float) -> list[NodeProto]:
    grid = [
        add_initializer(model, f"{name}.scale", scale_of(clip)),
        add_initializer(model, f"{name}.zero_point", np.zeros((), np.int8)),
    ]
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [f"{name}.int8"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *grid], [f"{name}.dequantized"], name=f"{name}.dequantize"),
    ]
