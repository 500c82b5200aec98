"""Attention in INT8: which products may be quantized, with what scales, and that INT8 kernels run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed, inputs_of, kernels_that_ran

from clipq.export.quantize.attention import UNSAFE, find_products
from clipq.export.quantize.graph import load_graph
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.static import quantize_static

Array = np.ndarray
Towers = Callable[[str, str], Path]
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="needs clipq[tensorrt-rtx]")


def _write_attention(path: Path, *, leak: str = "") -> tuple[Path, Array]:
    """Write ``y = softmax(q k^T + mask) v`` with q, k, v = x w, and return the weights; ``leak`` is a tensor that the output reads too."""
    weights = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name], name=f"project_{name}") for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], name="mask"),
        helper.make_node("Softmax", ["masked"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["attended"], name="values"),
        helper.make_node("Add", ["attended", leak or "attended"], ["z"], name="sum"),
        helper.make_node("Relu", ["z"], ["y"], name="relu"),
    ]
    mask = np.triu(np.full((4, 4), -10_000, np.float32), 1)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(weight, f"w{name}") for name, weight in zip("qkv", weights, strict=True)]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], [*tensors, numpy_helper.from_array(mask, "mask")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path, weights


def _rounded(values: Array, clip: float) -> Array:
    """INT8 by hand: symmetric, saturating, to the nearest even."""
    step = np.float32(clip / 127)
    return (np.clip(np.rint(values / step), -127, 127) * step).astype(np.float32)


def _weight(weight: Array) -> Array:
    return np.stack([_rounded(column, np.abs(column).max()) for column in weight.T], axis=1)


def _attention_by_hand(x: Array, weights: Array, calibration: Array) -> Array:
    """A second implementation: the same attention with each INT8 rounding written out."""
    exact = [calibration @ weight for weight in weights]
    q, k, v = (_rounded(x, np.abs(calibration).max()) @ _weight(weight) for weight in weights)
    q, k, v = (_rounded(value, np.abs(seen).max()) for value, seen in zip((q, k, v), exact, strict=True))
    scores = q @ k.transpose(0, 2, 1) + np.triu(np.full((4, 4), -10_000), 1)
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = _rounded(exponentials / exponentials.sum(axis=-1, keepdims=True), 1) @ v
    return np.maximum(2 * attended, 0)


def test_equal_to_attention_by_hand(tmp_path: Path) -> None:
    """The graph computes what the same roundings in numpy compute; INT8 is not FP32."""
    source, weights = _write_attention(tmp_path / "source.onnx")
    rng = np.random.default_rng(1)
    calibration, x = rng.standard_normal((2, 8, 4, 4)).astype(np.float32)
    quantize_static(source, tmp_path / "target.onnx", [calibration], "minmax", mha="int8")
    expected = _attention_by_hand(x, weights, calibration)
    difference = np.abs(embed(tmp_path / "target.onnx", x) - expected)
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.05  # where a value lies on the edge of two levels, one step
    assert np.abs(expected - embed(source, x)).max() > 1e-3


def test_probabilities_have_the_scale_of_one(tmp_path: Path) -> None:
    """Whatever the images and method, the softmax's result has scale 1/127 and zero point 0, and is not observed."""
    source, _ = _write_attention(tmp_path / "source.onnx")
    facts = quantize_static(source, tmp_path / "target.onnx", [np.full((2, 4, 4), 0.1, np.float32)], "entropy", mha="int8")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(tmp_path / "target.onnx")).graph.initializer}
    assert stored["p.scale"] == np.float32(1 / 127)
    assert stored["p.zero_point"] == 0
    assert facts["ranges"]["p"] == {"largest": 1.0, "clip": 1.0}
    assert facts["mha"] == "int8"


def test_keys_are_transposed_before_they_are_quantized(tmp_path: Path) -> None:
    """Q/DQ stands between the transpose and the product, so that the DQ feeds the MatMul."""
    source, _ = _write_attention(tmp_path / "source.onnx")
    quantize_static(source, tmp_path / "target.onnx", [np.ones((1, 4, 4), np.float32)], "minmax", mha="int8")
    nodes = {node.output[0]: node for node in onnx.load(str(tmp_path / "target.onnx")).graph.node}
    for name in nodes["scores"].input:
        dequantize = nodes[name]
        assert dequantize.op_type == "DequantizeLinear"
        assert nodes[dequantize.input[0]].op_type == "QuantizeLinear"
    assert nodes[nodes[nodes["scores"].input[1]].input[0]].input[0] == "kt"


@pytest.mark.parametrize(
    ("leak", "safe"), [("", ["scores", "values"]), ("q", ["values"]), ("kt", ["values"]), ("p", ["scores"]), ("v", ["scores"])]
)
def test_a_tensor_that_is_read_elsewhere_is_left_alone(tmp_path: Path, leak: str, safe: list[str]) -> None:
    """A product whose input anything but a product reads stays FP32, with its reason, and the graph still works."""
    source, _ = _write_attention(tmp_path / "source.onnx", leak=leak)
    products, unsafe = find_products(load_graph(source))
    assert [product.name for product in products] == safe
    assert unsafe == {name: UNSAFE for name in ("scores", "values") if name not in safe}
    x = np.random.default_rng(0).standard_normal((8, 4, 4)).astype(np.float32)
    facts = quantize_static(source, tmp_path / "target.onnx", [x], "minmax", mha="int8")
    assert set(facts["quantized"]) == {"project_q", "project_k", "project_v", *safe}
    assert np.abs(embed(source, x) - embed(tmp_path / "target.onnx", x)).max() < 0.1 * np.abs(embed(source, x)).max()


@pytest.mark.parametrize("mha", ["fp16", "int8"])
@pytest.mark.parametrize(
    ("family", "tower", "products"), [("vit", "image", 4), ("vit", "text", 4), ("resnet", "image", 2), ("siglip", "image", 14)]
)
def test_integer_kernels_run(towers: Towers, tmp_path: Path, family: str, tower: str, products: int, mha: str) -> None:
    """ONNX Runtime's profile counts one INT8 kernel for every product that the facts call INT8, and FP32 ones for the others."""
    source, target = towers(family, tower), tmp_path / "graph.onnx"
    inputs = inputs_of(source, 8)
    facts = quantize_static(source, target, [inputs], "minmax", mha=mha)  # type: ignore[arg-type]
    ran = kernels_that_ran(target, inputs)
    asked = facts["counts"]["int8"]
    kept = [name for name, why in facts["fp32"].items() if "convolution" not in why]
    assert ran["MatMulIntegerToFloat"] + ran["QLinearMatMul"] == asked["MatMul"]
    assert ran["MatMul"] + ran["FusedMatMul"] == len(kept)
    assert facts["counts"]["fp32"].get("product of two activations", 0) == (products if mha == "fp16" else 0)
    assert_qdq_portable(target)
    reference = embed(source, inputs)
    assert np.abs(embed(target, inputs) - reference).max() < 0.15 * np.abs(reference).max()


@rtx
@pytest.mark.parametrize("mha", ["fp16", "int8"])
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_tensorrt_rtx_builds_both_placements(towers: Towers, tmp_path: Path, family: str, mha: str) -> None:
    """The TensorRT-RTX builder makes a plan of the INT8 graph with FP16 for the rest."""
    from clipq.engines.tensorrt.build import BuildOptions, build_plan
    from clipq.export.typed.half import to_half

    source = towers(family, "image")
    quantize_static(source, tmp_path / "int8.onnx", [inputs_of(source, 4)], "minmax", mha=mha)  # type: ignore[arg-type]
    to_half(tmp_path / "int8.onnx", tmp_path / "half.onnx", "fp16")
    built = build_plan("tensorrt-rtx", tmp_path / "half.onnx", tmp_path / "plan", "int8", BuildOptions(batch=(1, 4, 8)))
    assert built["size_bytes"] == (tmp_path / "plan").stat().st_size > 0
