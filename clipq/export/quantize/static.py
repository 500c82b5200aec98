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
        write_observed(model, dict.fromkeys(layer.activation for layer in layers), folder / "observed.onnx")
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


def insert_qdq(model: ModelProto, layers: list[Layer], clips: Mapping[str, float]) -> None:
    """Put Q/DQ before each layer's activation, shared where several layers read one tensor, and DQ before its INT8 weight."""
    before: dict[str, list[NodeProto]] = {layer.node.name: _weight_nodes(model, layer) for layer in layers}
    seen: set[str] = set()
    for layer in layers:
        name = layer.activation
        if name not in seen:
            before[layer.node.name] += _activation_nodes(model, name, clips[name])
            seen.add(name)
        layer.node.input[0] = f"{name}.dequantized"
        layer.node.input[1] = f"{layer.node.name}.weight.dequantized"
    replace_nodes(model, _in_order(model, before))


def _in_order(model: ModelProto, before: Mapping[str, list[NodeProto]]) -> Iterator[NodeProto]:
    for node in model.graph.node:
        yield from before.get(node.name, ())
        yield node


def _weight_nodes(model: ModelProto, layer: Layer) -> list[NodeProto]:
    name = f"{layer.node.name}.weight"
    integers, scales = quantize_weight(layer.weight, layer.axis)
    inputs = [
        add_initializer(model, f"{name}.int8", integers),
        add_initializer(model, f"{name}.scale", scales),
        add_initializer(model, f"{name}.zero_point", np.zeros(len(scales), np.int8)),
    ]
    return [helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.dequantize", axis=layer.axis)]


def _activation_nodes(model: ModelProto, name: str, clip: float) -> list[NodeProto]:
    grid = [
        add_initializer(model, f"{name}.scale", scale_of(clip)),
        add_initializer(model, f"{name}.zero_point", np.zeros((), np.int8)),
    ]
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [f"{name}.int8"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.int8", *grid], [f"{name}.dequantized"], name=f"{name}.dequantize"),
    ]
