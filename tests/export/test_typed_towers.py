"""Typed graphs of every tower family and of the demo: types, numbers, and TensorRT-RTX's own parser and builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from clipq.engines.onnxruntime.options import session_options
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.onnx import export_tower
from clipq.export.quantize.fp8 import write_fp8
from clipq.export.quantize.observe import observe
from clipq.export.quantize.static import quantize_static
from clipq.export.typed.half import to_half
from clipq.export.typed.rounded import rounded_outputs

Array = np.ndarray
Make = Callable[[str, str, str], Path]
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FAMILIES = ("vit", "resnet", "siglip", "coca", "convnext", "demo")
TOWERS = [*((family, "image") for family in FAMILIES), ("coca", "text"), ("siglip", "text"), ("demo", "text")]
QUANTIZED = [
    *((family, "image", "int8-fp16") for family in FAMILIES),
    *[("vit", "image", "int8mha-fp16"), ("demo", "image", "int8-bf16"), ("demo", "image", "fp8-fp16"), ("vit", "image", "fp8mha-fp16")],
]
GRAPHS = [*((family, tower, kind) for family, tower in TOWERS for kind in ("fp16", "bf16")), *QUANTIZED]
BUILT = [
    graph for graph in GRAPHS if graph[2] == "fp16" or graph[0] not in {"coca", "siglip"}
]  # those two take longest, and have no other operators


@pytest.fixture(scope="module")
def graphs(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function from family, tower and kind of graph to its file."""
    folder = tmp_path_factory.mktemp("typed")

    def make(family: str, tower: str, kind: str) -> Path:
        path = folder / f"{family}.{tower}.{kind}.onnx"
        if path.exists():
            return path
        if kind == "fp32":
            export_tower(load_checkpoint("demo:under" if family == "demo" else tiny_checkpoint(family)), tower, path)
        elif kind in {"int8", "int8mha"}:
            source = make(family, tower, "fp32")
            quantize_static(source, path, [_inputs(source, 8)], "minmax", mha="int8" if kind == "int8mha" else "fp16")
        elif kind in {"fp8", "fp8mha"}:
            source = make(family, tower, "fp32")
            mha = kind == "fp8mha"
            write_fp8(observe(source, [_inputs(source, 8)], folder, attention=mha), path, mha="fp8" if mha else "fp16")
        else:
            number, _, half = kind.rpartition("-")
            to_half(make(family, tower, number or "fp32"), path, half)
        return path

    return make


def _inputs(path: Path, n: int) -> Array:
    """Return pixels of differing contrast, or texts."""
    shape = [dim.dim_value for dim in onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim][1:]
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        tokens = rng.integers(1, 300, (n, *shape)).astype(np.int32)
        tokens[np.arange(n), rng.integers(5, shape[0], n)] = 301 if "demo" in path.name else 49407
        return tokens
    return (np.linspace(0.1, 3, n).reshape(n, 1, 1, 1) * rng.standard_normal((n, *shape))).astype(np.float32)


def _embed(path: Path, inputs: Array) -> Array:
    session = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
    output: Array = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return output


def _centred_cosine(a: Array, b: Array) -> float:
    a, b = (a - a.mean(axis=0)).astype(np.float64), (b - a.mean(axis=0)).astype(np.float64)
    return float((np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def _types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.input, *inferred.value_info, *inferred.output]}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _assert_close(found: Array, reference: Array, dtype: str, family: str) -> None:
    """Check the largest difference and the centred cosine, which says nothing of a random ResNet: 1 % of its embedding varies at all."""
    roughness = {"fp16": 1, "bf16": 8}[dtype]
    assert np.abs(found - reference).max() < 0.004 * roughness * np.abs(reference).max()
    if family != "resnet":
        assert 1 - _centred_cosine(reference, found) < 1e-4 * roughness**2


@pytest.mark.parametrize(("family", "tower"), TOWERS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_close_to_fp32(graphs: Make, family: str, tower: str, dtype: str) -> None:
    """With every result rounded to half, embeddings stay near those of FP32, and so they do as ONNX Runtime computes them."""
    source, typed = graphs(family, tower, "fp32"), graphs(family, tower, dtype)
    inputs = _inputs(source, 8)
    _assert_close(rounded_outputs(typed, inputs), _embed(source, inputs), dtype, family)
    if dtype == "fp16":  # ONNX Runtime's CPU provider has no BF16 products
        _assert_close(_embed(typed, inputs), _embed(source, inputs), dtype, family)


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, _, kind in QUANTIZED])
def test_half_adds_little_to_the_error_of_quantization(graphs: Make, family: str, kind: str) -> None:
    """A quantized graph with a half rest is about as far from FP32 as the same graph with an FP32 rest."""
    source = graphs(family, "image", "fp32")
    inputs = _inputs(source, 32)
    reference = _embed(source, inputs)
    before = np.sqrt(np.mean((_embed(graphs(family, "image", kind.rpartition("-")[0]), inputs) - reference) ** 2))
    after = np.sqrt(np.mean((rounded_outputs(graphs(family, "image", kind), inputs) - reference) ** 2))
    assert after < 1.3 * before


@pytest.mark.parametrize(("family", "tower", "kind"), GRAPHS)
def test_types(graphs: Make, family: str, tower: str, kind: str) -> None:
    """ONNX finds no mixed types; ends keep theirs; normalisations and Softmax are FP32, products half; no Cast is needless."""
    model = onnx.load(str(graphs(family, tower, kind)))
    onnx.checker.check_model(model, full_check=True)
    types, half = _types(model), HALF[kind[-4:]]
    producers = {name: node for node in model.graph.node for name in node.output}
    assert types[model.graph.output[0].name] == TensorProto.FLOAT
    assert types[model.graph.input[0].name] == (TensorProto.FLOAT if tower == "image" else TensorProto.INT32)
    for node in model.graph.node:
        floats = {types[name] for name in node.input if name and types[name] in {TensorProto.FLOAT, half}}
        assert len(floats) <= 1, node.name
        if node.op_type in {"LayerNormalization", "Softmax", "ReduceMean", "Erf", "Tanh"}:
            assert floats == {TensorProto.FLOAT}
        elif node.op_type in {"MatMul", "Gemm", "QuantizeLinear"}:
            assert floats == {half}, node.name
        elif node.op_type == "Cast":
            source = producers.get(node.input[0])
            assert source is None or source.op_type != "Cast" or types[source.input[0]] not in {TensorProto.FLOAT, half}
            assert types[node.input[0]] != types[node.output[0]]


@pytest.mark.parametrize(("family", "tower", "kind"), QUANTIZED)
def test_nothing_between_quantization_and_product(graphs: Make, family: str, tower: str, kind: str) -> None:
    """Every product of the QDQ graph still reads its DequantizeLinear at once, in half, and zero points stay."""
    before, after = (onnx.load(str(graphs(family, tower, name))) for name in (kind.rpartition("-")[0], kind))
    assert _dequantized_products(after) == _dequantized_products(before)
    assert _dequantized_products(after)
    types = _types(after)
    for node in after.graph.node:
        if node.op_type == "DequantizeLinear":
            assert types[node.output[0]] == HALF[kind[-4:]]
            assert types[node.input[1]] == HALF[kind[-4:]]
    zero = [[tensor for tensor in model.graph.initializer if tensor.name.endswith("zero_point")] for model in (before, after)]
    assert {tensor.name: tensor.data_type for tensor in zero[0]} == {tensor.name: tensor.data_type for tensor in zero[1]}
    assert not any(numpy_helper.to_array(tensor).astype(np.float32).any() for tensor in zero[1])


def _dequantized_products(model: ModelProto) -> set[tuple[str, int]]:
    """Return name and place of each input of a product that a DequantizeLinear makes."""
    made = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    products = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm", "Conv"}]
    return {(node.name, index) for node in products for index, name in enumerate(node.input) if name in made}


@pytest.mark.parametrize(("family", "tower", "kind"), GRAPHS)
def test_node_names_stay(graphs: Make, family: str, tower: str, kind: str) -> None:
    """Every computing node keeps name and operator, and none is added but Casts."""
    before, after = (onnx.load(str(graphs(family, tower, name))) for name in (kind.rpartition("-")[0] or "fp32", kind))

    def named(nodes: list[NodeProto]) -> list[tuple[str, str]]:
        return [(node.name, node.op_type) for node in nodes if node.op_type not in {"Cast", "Constant", "Identity"}]

    assert named(after.graph.node) == named(before.graph.node)
    casts = [node.name for node in after.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


@pytest.mark.parametrize(("family", "tower", "kind"), BUILT)
def test_tensorrt_rtx_builds_it(graphs: Make, family: str, tower: str, kind: str) -> None:
    """TensorRT-RTX, strongly typed, parses and builds the graph, and sees the types that were meant."""
    pytest.importorskip("tensorrt_rtx_libs", reason="the TensorRT-RTX wheels are not installed")
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="the TensorRT-RTX wheels are not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(graphs(family, tower, kind)))
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    half = trt.DataType.BF16 if kind.endswith("bf16") else trt.DataType.HALF
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    assert _outputs(layers, trt.LayerType.MATRIX_MULTIPLY) == {half}
    fragile = _outputs(layers, trt.LayerType.SOFTMAX) | _outputs(layers, trt.LayerType.NORMALIZATION)
    assert fragile == {trt.DataType.FLOAT}
    assert network.get_output(0).dtype == trt.DataType.FLOAT
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = list(network.get_input(0).shape)[1:]
    profile.set_shape(network.get_input(0).name, [1, *shape], [4, *shape], [8, *shape])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config).nbytes > 0


def _outputs(layers: list[Any], kind: Any) -> set[Any]:
    return {layer.get_output(0).dtype for layer in layers if layer.type == kind}
