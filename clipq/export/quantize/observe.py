"""What one pass of calibration images saw of a tower: enough to write any quantized form of it, as often as wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from onnx import ModelProto

from clipq.export.quantize.attention import Product, find_products
from clipq.export.quantize.collect import collect, write_observed
from clipq.export.quantize.graph import graph_bytes, load_graph
from clipq.export.quantize.histogram import Histogram
from clipq.export.quantize.layers import Layer, choose_layers, split_gemms
from clipq.export.quantize.padding import padding_of
from clipq.files import sha256_file


@dataclass(frozen=True, slots=True)
class Observed:
    """A tower ready to be quantized. Nothing that writes a graph changes it; it can be pickled.

    Attributes:
        source: The FP32 graph.
        source_sha256: Hash of that file.
        source_bytes: Its size with its data file.
        skeleton: That graph with its Gemms split, without the weights of ``layers``: small, so every written graph starts as its copy.
        layers: What can be INT8 or FP8, in graph order, each with its FP32 weight.
        products: Products of attention whose inputs can be quantized; empty unless they were observed.
        kept: Why each other MatMul, Gemm and Conv stays FP32.
        histograms: Tensor to the histogram of its absolute values; of probabilities none, their range is known.
        images: Number of calibration images.
        attention: Whether the products of attention were observed.
    """

    source: Path
    source_sha256: str
    source_bytes: int
    skeleton: ModelProto
    layers: tuple[Layer, ...]
    products: tuple[Product, ...]
    kept: Mapping[str, str]
    histograms: Mapping[str, Histogram]
    images: int
    attention: bool


def observe(source: Path, batches: Iterable[npt.NDArray[Any]], scratch: Path, *, attention: bool = False) -> Observed:
    """Run the calibration images once through the FP32 graph ``source`` and return what every quantized form of it needs.

    Args:
        source: FP32 graph with one input.
        batches: Inputs of the graph, in batches of any size; read once, never held.
        scratch: An existing folder for a graph of about the source's size, gone afterwards.
        attention: Observe the inputs of attention's products too, for forms that quantize them.

    Raises:
        ExportError: The source is unreadable, has nothing to quantize, or gives NaN or infinity on a calibration image.
        DataError: There are no calibration images.
    """
    model = load_graph(source)
    split_gemms(model)
    layers, kept = choose_layers(model, source)
    products, unsafe = find_products(model) if attention else ([], {})
    inputs = [name for product in products for name in product.inputs[product.probabilities :]]
    write_observed(model, dict.fromkeys([*quantized_tensors(layers), *inputs]), scratch / "observed.onnx")
    prepared = _prepared(source, model, layers, kept)
    del model
    try:
        histograms, images = collect(scratch / "observed.onnx", batches, padding_of(source))
    finally:
        for file in scratch.glob("observed.onnx*"):
            file.unlink()
    return replace(prepared, products=tuple(products), kept={**kept, **unsafe}, attention=attention, histograms=histograms, images=images)


def prepare(source: Path, *, attention: bool = False) -> Observed:
    """Return a tower that no image has run through, for a form whose ranges are known already: training has learned them.

    Args:
        source: FP32 graph with one input.
        attention: The products of attention may be quantized too.

    Raises:
        ExportError: The source is unreadable or has nothing to quantize.
    """
    model = load_graph(source)
    split_gemms(model)
    layers, kept = choose_layers(model, source)
    products, unsafe = find_products(model) if attention else ([], {})
    return replace(_prepared(source, model, layers, kept), products=tuple(products), kept={**kept, **unsafe}, attention=attention)


def _prepared(source: Path, model: ModelProto, layers: list[Layer], kept: Mapping[str, str]) -> Observed:
    return Observed(
        source=source,
        source_sha256=sha256_file(source),
        source_bytes=graph_bytes(source),
        skeleton=_without_weights(model, layers),
        layers=tuple(layers),
        products=(),
        kept=kept,
        histograms={},
        images=0,
        attention=False,
    )


def quantized_tensors(layers: Iterable[Layer]) -> list[str]:
    """Return the activations that get Q/DQ, each once: what every layer reads, and what convolutions give.

    ONNX Runtime has an INT8 product with a float result but no such convolution: without Q/DQ behind it a convolution computes
    in FP32, slower than before.
    """
    layers = list(layers)
    results = [layer.result for layer in layers if layer.operator == "Conv"]
    return list(dict.fromkeys([*(layer.activation for layer in layers), *results]))


def _without_weights(model: ModelProto, layers: list[Layer]) -> ModelProto:
    """Return the graph without the weights of the layers: a new message, because an old one keeps the memory of what it lost."""
    names = {layer.weight_name for layer in layers}
    others = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(others)
    skeleton = ModelProto()
    skeleton.ParseFromString(model.SerializeToString())
    return skeleton
