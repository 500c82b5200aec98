"""Graphs of fewer than 8 bits: what ONNX Runtime computes is, to the last bit, what numpy's fake quantization gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed, inputs_of, kernels_that_ran, optimized_operators

from clipq.export.quantize.facts import METADATA_KEY
from clipq.export.quantize.observe import observe
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import write_scheme
from clipq.export.quantize.weights import quantize_weight, scale_of
from clipq.methods import BITS

Array = np.ndarray
SIMULATED = ("W6A8", "W6A6", "W4A8", "W4A4")


def _fake(values: Array, largest: float, limit: int) -> Array:
    """Round to ``limit`` steps up to ``largest``, in float32 as a Clip, a Q and a DQ do; at 8 bits without a Clip, down to -128."""
    scale = scale_of(largest, limit)
    least = limit + (limit == 127)
    return (np.clip(np.rint(values / scale), -least, limit) * scale).astype(np.float32)


def _write_products(path: Path, first: Array, second: Array) -> None:
    """Write ``y = relu(|2 x @ first| @ second)``: two products, the second of which makes no embedding."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x2"]),
        helper.make_node("MatMul", ["x2", "a"], ["m"], name="first"),
        helper.make_node("Abs", ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["n"], name="second"),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(first)])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", second.shape[1]])]
    weights = [numpy_helper.from_array(weight, name) for weight, name in ((first, "a"), (second, "b"))]
    graph = helper.make_graph(nodes, "products", ends, result, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def _powers(rng: np.random.Generator, shape: tuple[int, int], limit: int) -> Array:
    """Weights whose scales are powers of two: every sum is exact, so the order of additions cannot matter."""
    weight = rng.integers(-limit, limit + 1, shape)
    weight[0] = limit
    return (weight * 2.0 ** rng.integers(-3, 3, shape[1]) + 2.0**-6 * rng.random(shape) * (np.arange(shape[0]) > 0)[:, None]).astype(
        np.float32
    )


@pytest.mark.parametrize("bits", ["W8A8", *SIMULATED])
def test_equal_to_numpy_to_the_last_bit(bits: str, tmp_path: Path) -> None:
    """Two products with INT8 kernels and everything optimised equal fake quantization, for inputs far beyond the range too."""
    rng, kind = np.random.default_rng(0), BITS[bits]
    first, second = _powers(rng, (8, 16), kind.weight_limit), _powers(rng, (16, 4), kind.weight_limit)
    seen = rng.uniform(-1, 1, (64, 8)).astype(np.float32)
    seen[0, 0] = kind.activation_limit / 2  # so the step of 2 x is one
    _write_products(tmp_path / "source.onnx", first, second)
    observed = observe(tmp_path / "source.onnx", [seen], tmp_path)
    facts = write_scheme(observed, tmp_path / "target.onnx", Scheme("minmax", kind))
    x = np.concatenate([seen, rng.normal(0, 3 * kind.activation_limit, (64, 8)).astype(np.float32)])
    hidden = x * 2
    for name, weight, tensor in (("first", first, "x2"), ("second", second, "r")):
        integers, scales = quantize_weight(weight, 1, kind.weight_limit)
        assert name in facts["quantized"]
        step = scale_of(facts["ranges"][tensor]["clip"], kind.activation_limit)
        rounded = np.rint(_fake(hidden, facts["ranges"][tensor]["clip"], kind.activation_limit) / step).astype(np.int64)
        assert rounded.max() == kind.activation_limit
        product = (rounded @ integers.astype(np.int64)).astype(np.float32) * (step * scales)
        hidden = np.abs(product)
    np.testing.assert_array_equal(embed(tmp_path / "target.onnx", x), np.maximum(product, 0))
    operators = optimized_operators(tmp_path / "target.onnx")
    assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 2, operators


@pytest.mark.parametrize("bits", SIMULATED)
@pytest.mark.parametrize("family", ["vit", "resnet", "convnext"])
def test_kernels_are_those_of_eight_bits(towers: Callable[[str, str], Path], family: str, bits: str, tmp_path: Path) -> None:
    """Fewer bits run as many integer products and convolutions as 8, stay within their grid and pass the gate."""
    source, kind = towers(family, "image"), BITS[bits]
    inputs = inputs_of(source, 4)
    observed = observe(source, [inputs], tmp_path)
    ran = []
    for one in ("W8A8", bits):
        path = tmp_path / f"{one}.onnx"
        facts = write_scheme(observed, path, Scheme("percentile", BITS[one]))
        ran.append({name: kernels_that_ran(path, inputs)[name] for name in ("MatMulIntegerToFloat", "QLinearConv", "MatMul", "FusedConv")})
        assert_qdq_portable(path)
    assert ran[0] == ran[1]
    assert (facts["bits"], facts["simulated"]) == (bits, True)
    graph = onnx.load(str(path))
    stored = [numpy_helper.to_array(t) for t in graph.graph.initializer if t.name.endswith(".weight.int8")]
    assert max(np.abs(values.astype(int)).max() for values in stored) == kind.weight_limit
    clips = sum(node.op_type == "Clip" and node.name.endswith(".clip") for node in graph.graph.node)
    assert clips == (len(facts["quantized"]) if kind.activations < 8 else 0)
    added = json.loads({entry.key: entry.value for entry in graph.metadata_props}[METADATA_KEY])
    assert (added["bits"], added["simulated"]) == (bits, True)


@pytest.mark.parametrize("bits", ["W6A6", "W4A4"])
def test_results_of_convolutions_keep_eight_bits(towers: Callable[[str, str], Path], bits: str, tmp_path: Path) -> None:
    """Q/DQ behind a convolution are there for its kernel: they have 127 steps and no Clip, whatever the bits."""
    source = towers("resnet", "image")
    observed = observe(source, [inputs_of(source, 4)], tmp_path)
    write_scheme(observed, tmp_path / "g.onnx", Scheme("minmax", BITS[bits]))
    graph = onnx.load(str(tmp_path / "g.onnx")).graph
    scales = {t.name: float(numpy_helper.to_array(t)) for t in graph.initializer if not t.dims and t.data_type == TensorProto.FLOAT}
    results = {layer.result: observed.histograms[layer.result].largest for layer in observed.layers if layer.operator == "Conv"}
    behind = {node.input[0]: scales[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in results}
    assert len(behind) > 3
    for name, scale in behind.items():
        assert scale == pytest.approx(float(scale_of(results[name])), rel=1e-6)  # a random ResNet starts with channels of zeros


@pytest.mark.parametrize(("bits", "steps"), [("W8A8", 127), ("W6A6", 31), ("W4A4", 7)])
def test_probabilities_use_the_whole_grid(towers: Callable[[str, str], Path], bits: str, steps: int, tmp_path: Path) -> None:
    """With attention quantized too, probabilities have the fixed step 1/limit, and both products run in INT8."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 4)
    observed = observe(source, [inputs], tmp_path, attention=True)
    facts = write_scheme(observed, tmp_path / "g.onnx", Scheme("minmax", BITS[bits]), mha="int8")
    graph = onnx.load(str(tmp_path / "g.onnx")).graph
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    probabilities = [product.inputs[0] for product in observed.products if product.probabilities]
    assert probabilities
    for name in probabilities:
        assert float(scales[f"{name}.scale"]) == pytest.approx(1 / steps)
        assert facts["ranges"][name]["clip"] == 1
    ran = kernels_that_ran(tmp_path / "g.onnx", inputs)
    assert ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] == len(facts["quantized"])


def test_error_grows_as_bits_fall(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Embeddings move further away with each step from W8A8 to W4A4, and W6A8 less than W6A6, W4A8 less than W4A4."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 24)
    observed, reference, errors = observe(source, [inputs], tmp_path), embed(source, inputs), {}
    for bits in ("W8A8", *SIMULATED):
        write_scheme(observed, tmp_path / "g.onnx", Scheme("mse", BITS[bits], "mse"))
        errors[bits] = float(np.linalg.norm(embed(tmp_path / "g.onnx", inputs) - reference))
    assert errors["W8A8"] < errors["W6A8"] < errors["W6A6"] < errors["W4A4"]
    assert errors["W6A8"] < errors["W4A8"] < errors["W4A4"]
