"""A bundle of toy graphs: pooled colours times a matrix, averaged word vectors; whole in a hundredth of a second, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipq.artifact import Bundle, EngineEntry, Manifest, ModelEntry, describe_file, write_manifest
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.synthetic import open_synthetic
from clipq.files import sha256_json, write_json

SIZE, DIM, CONTEXT = 16, 8, 16
MODEL = ModelEntry("toy:none", "ab" * 32, DIM, logit_scale=30.0, logit_bias=None, context_length=CONTEXT)
CPU = "CPUExecutionProvider"
ENGINES = {"ort-fp32": 0.0, "ort-int8-dynamic": 0.05, "ort-int8-static": 0.2}
Change = Callable[[onnx.ModelProto], None]


def words() -> list[str]:
    """Return the vocabulary: padding, unknown, and every word of the synthetic class names and templates."""
    scenes = open_synthetic("scenes")
    texts = [*scenes.classnames, *scenes.templates]
    return ["<pad>", "<unk>", *sorted({word for text in texts for word in text.lower().replace(".", " ").split()})]


def image_graph(noise: float = 0.0, *, model: ModelEntry = MODEL, seed: int = 0) -> onnx.ModelProto:
    """Return pixels -> 4 x 4 pooled colours -> matrix -> embedding; noise stands for quantization."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((48, model.embed_dim)).astype(np.float32)
    matrix += noise * rng.standard_normal(matrix.shape).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embedding"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    return _model(nodes, pixels, {"matrix": matrix}, model)


def text_graph(*, model: ModelEntry = MODEL) -> onnx.ModelProto:
    """Return tokens -> word vectors -> their mean."""
    table = np.random.default_rng(1).standard_normal((len(words()), model.embed_dim)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["embedding"], axes=[1], keepdims=0),
    ]
    return _model(nodes, helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", CONTEXT]), {"table": table}, model)


def _model(nodes: list[Any], value: Any, weights: Mapping[str, Any], model: ModelEntry) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", model.embed_dim])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "toy", [value], [output], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {"clipq.model": model.id, "clipq.state_sha256": model.state_sha256})
    return made


def make_toy_bundle(folder: Path, *, model: ModelEntry = MODEL, change: Mapping[str, Change] | None = None) -> Bundle:
    """Write a bundle with the engines of ``ENGINES``.

    Args:
        folder: Where.
        model: Its model entry.
        change: File name -> what is done to that graph before it is written.
    """
    (folder / "towers").mkdir(parents=True)
    names = {engine_id: f"engines/{engine_id}/image.onnx" if noise else "towers/image.fp32.onnx" for engine_id, noise in ENGINES.items()}
    graphs = {name: image_graph(ENGINES[engine_id], model=model) for engine_id, name in names.items()}
    graphs["towers/text.fp32.onnx"] = text_graph(model=model)
    for name, graph in graphs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (change or {}).get(name, lambda _graph: None)(graph)
        onnx.save(graph, str(folder / name))
    write_json(folder / "preprocess.json", Preprocess((SIZE, SIZE), "shortest", "bicubic", (0.5,) * 3, (0.25,) * 3).to_json())
    _write_tokenizer(folder / "tokenizer")
    engines = {
        name: EngineEntry("onnxruntime", CPU, "fp32" if name == "ort-fp32" else "int8", {"image": image, "text": "towers/text.fp32.onnx"})
        for name, image in names.items()
    }
    return rewrite_manifest(folder, engines, model)


def rewrite_manifest(
    folder: Path, engines: Mapping[str, EngineEntry], model: ModelEntry = MODEL, said: Mapping[str, Any] | None = None
) -> Bundle:
    """Write a manifest that names every file as it now is, with what the recipe says besides the model, and open the bundle."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = [name for name in files if name not in {"manifest.json", ".lock"}]
    recipe = {"model": model.id, **(said or {})}
    entries = {name: describe_file(folder, name) for name in files}
    write_manifest(folder, Manifest(model, entries, engines, recipe, sha256_json(recipe), {}, {}))
    return Bundle.open(folder)


def _write_tokenizer(folder: Path) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(CONTEXT)
    backend.enable_padding(length=CONTEXT, pad_id=0, pad_token="<pad>")
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "context_length": CONTEXT,
        "clean": "lower",
        "start_id": None,
        "end_id": None,
        "pad_id": 0,
        "zeroed_id": None,
        "pooling": "mean",
    }
    (folder / "config.json").write_text(json.dumps(config))
