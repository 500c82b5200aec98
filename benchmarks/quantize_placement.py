"""What each calibration method and each placement of INT8 costs on trained image towers: centred cosine against FP32.

Calibrated on one data set, measured on its own test split and on another data set. Needs checkpoints in open_clip's format and
photographs in the webdataset layout (not part of this project):

    python benchmarks/quantize_placement.py --shared FOLDER --output benchmarks/results/quantize_placement.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.onnx import export_tower
from clipq.export.quantize.collect import collect, write_observed
from clipq.export.quantize.graph import constants, load_graph, open_on_cpu, replace_nodes, save_graph
from clipq.export.quantize.layers import choose_layers, split_gemms
from clipq.export.quantize.ranges import METHODS, clip_of
from clipq.export.quantize.static import insert_qdq, quantized_tensors
from clipq.export.quantize.weights import scale_of
from clipq.files import write_json
from clipq.machine import record

Array = npt.NDArray[np.float32]
MODELS = ("photo-base", "photo-over", "photo-under")
CALIBRATION, TESTS = "imagenette:train", ("imagenette:test", "cifar10:test")
FC2 = "c_proj"  # open_clip's name of the layer behind the GELU


def pixels(shared: Path, data: str, preprocess: Preprocess, limit: int) -> Array:
    """Return the preprocessed pixels of a random subset of a data set."""
    source = open_source(f"wds:{shared / 'data' / data}")
    found = batches(source, build_index(source, limit=limit, seed=0), preprocess)
    return np.concatenate([np.asarray(batch.pixels) for batch in found])


def embed(graph: Path, inputs: Array) -> Array:
    """Return the embeddings of all inputs."""
    session = open_on_cpu(graph)
    return np.concatenate([session.run(None, {"pixels": inputs[i : i + 50]})[0] for i in range(0, len(inputs), 50)])


def attention_products(model: ModelProto) -> list[Any]:
    """Return the nodes that multiply two activations."""
    fixed = constants(model)
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in fixed]


def quantize_attention(model: ModelProto, clips: Mapping[str, float]) -> None:
    """Put Q/DQ on both inputs of every attention product."""
    nodes = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.op_type == "MatMul" and name in clips:
                grid = [helper.make_tensor(f"{name}.s", 1, [], [float(scale_of(clips[name]))]), helper.make_tensor(f"{name}.z", 3, [], [0])]
                model.graph.initializer.extend(grid)
                names = [tensor.name for tensor in grid]
                nodes.append(helper.make_node("QuantizeLinear", [name, *names], [f"{name}.q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *names], [f"{name}.d"]))
                node.input[index] = f"{name}.d"
        nodes.append(node)
    replace_nodes(model, nodes)


def write_variant(source: Path, target: Path, clips: Mapping[str, float], placement: str) -> None:
    """Write the quantized graph of one placement: ``default``, ``with attention`` or ``without fc2``."""
    model = load_graph(source)
    split_gemms(model)
    layers, _ = choose_layers(model, source)
    if placement == "without fc2":
        layers = [layer for layer in layers if FC2 not in layer.node.name]
    products = {name for node in attention_products(model) for name in node.input}
    insert_qdq(model, layers, {name: clips[name] for name in quantized_tensors(layers)})
    if placement == "with attention":
        quantize_attention(model, {name: clips[name] for name in products})
    save_graph(model, target)


def collect_all(source: Path, folder: Path, calibration: Array) -> dict[str, Any]:
    """Return the histograms of all layers' and all attention products' inputs."""
    model = load_graph(source)
    split_gemms(model)
    products = [name for node in attention_products(model) for name in node.input]
    write_observed(model, dict.fromkeys([*quantized_tensors(choose_layers(model, source)[0]), *products]), folder / "observed.onnx")
    return dict(collect(folder / "observed.onnx", [calibration])[0])


def cosines(reference: Array, other: Array) -> dict[str, float]:
    """Return mean and worst centred cosine."""
    a, b = reference - reference.mean(axis=0), other - reference.mean(axis=0)
    values = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {"mean": float(values.mean()), "min": float(values.min())}


def measure(shared: Path, name: str, calib_n: int, n: int) -> dict[str, Any]:
    """Return the cosines of every variant of one model on every test set."""
    checkpoint = load_checkpoint(f"local-dir:{shared / 'models' / name}")
    variants = [(method, "default") for method in METHODS] + [("percentile", "with attention"), ("percentile", "without fc2")]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        export_tower(checkpoint, "image", folder / "fp32.onnx")
        histograms = collect_all(folder / "fp32.onnx", folder, pixels(shared, CALIBRATION, checkpoint.preprocess, calib_n))
        tests = {data: pixels(shared, data, checkpoint.preprocess, n) for data in TESTS}
        reference = {data: embed(folder / "fp32.onnx", inputs) for data, inputs in tests.items()}
        for method, placement in variants:
            clips = {tensor: clip_of(histogram, method) for tensor, histogram in histograms.items()}
            write_variant(folder / "fp32.onnx", folder / "int8.onnx", clips, placement)
            figures = {data: cosines(reference[data], embed(folder / "int8.onnx", inputs)) for data, inputs in tests.items()}
            results[f"{method}, {placement}"] = figures
            print(
                name,
                f"{method}, {placement}",
                *(f"{data} {v['mean']:.4f} (worst {v['min']:.3f})" for data, v in figures.items()),
                flush=True,
            )
    return results


def main() -> None:
    """Measure every model and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--calib-n", type=int, default=512)
    parser.add_argument("-n", type=int, default=1000, help="test images per data set")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = {name: measure(arguments.shared, name, arguments.calib_n, arguments.n) for name in MODELS}
    if arguments.output:
        write_json(arguments.output, record("quantize_placement", {"calib_n": arguments.calib_n, "n": arguments.n, "results": results}))


if __name__ == "__main__":
    main()
