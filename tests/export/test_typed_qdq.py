"""Q/DQ in half and newer operator sets: scales, integers, and operators that are written differently."""

from __future__ import annotations

import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from clipq.engines.onnxruntime.options import session_options
from clipq.errors import ExportError
from clipq.export.typed import opset
from clipq.export.typed.half import to_half
from clipq.export.typed.numbers import HALVES

Array = np.ndarray


def _node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def _write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: tuple[int | str, ...], version: int = 17) -> Path:
    """Write a graph from ``x`` of a shape to ``y`` of two dimensions, of three where ``x`` has four."""
    result = [f"y{index}" for index in range(max(2, len(shape) - 1))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", shape), ("y", result))]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9), str(path))
    return path


def _layer(path: Path, integers: Array, scales: Array, *, scale: float = 0.1, version: int = 17) -> Path:
    """Write ``y = dq(q(x)) @ dq(integers)``, INT8 or FP8."""
    zero = integers.dtype.type(0)
    weights = {
        "s": np.array(scale, np.float32),
        "z": np.array(zero),
        "w": integers,
        "ws": scales.astype(np.float32),
        "wz": np.full(scales.shape, zero, integers.dtype),
    }
    nodes = [
        *[_node("QuantizeLinear", ["x", "s", "z"], "q"), _node("DequantizeLinear", ["q", "s", "z"], "d")],
        *[_node("DequantizeLinear", ["w", "ws", "wz"], "dw", axis=1), _node("MatMul", ["d", "dw"], "y")],
    ]
    return _write(path, nodes, weights, ("n", len(integers)), version)


def _run(path: Path, x: Array) -> Array:
    output: Array = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return output


def _initializers(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def test_a_quantized_product_by_hand(tmp_path: Path) -> None:
    """0.7 on a scale of 0.1 is 7; 7 and 5 come back as multiples of the half nearest to 0.1, rounded to half."""
    source = _layer(tmp_path / "a.onnx", np.array([[5, 0], [0, 127]], np.int8), np.array([0.1, 1.0]))
    facts = to_half(source, tmp_path / "b.onnx", "fp16")
    assert facts["opset"] == 19
    assert facts["nodes"] == {"fp16": 4, "fp32": 0, "casts": 2}
    assert facts["quantization"] == {"scales": 3, "subnormal_scales": 0, "changed_integers": 0}
    tenth = float(np.float16(0.1))
    seven, five, clipped = np.float16(7 * tenth), np.float16(5 * tenth), np.float16(-128 * tenth)
    assert seven != np.float16(0.7)
    found = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, {"x": np.array([[0.7, -20.0]], np.float32)})[0]
    np.testing.assert_array_equal(found, [[np.float16(float(seven) * float(five)), np.float16(127 * float(clipped))]])


def test_tiny_scales_keep_the_nearest_weights(tmp_path: Path) -> None:
    """A scale of 1e-6 is 17 steps of FP16, so 100 becomes 99; one of 1e-12 becomes the smallest step, and its weights zero."""
    integers = np.array([[100, 100, 100], [-127, -127, -127]], np.int8)
    facts = to_half(_layer(tmp_path / "a.onnx", integers, np.array([1e-6, 1e-12, 1e-2])), tmp_path / "b.onnx", "fp16")
    stored = _initializers(tmp_path / "b.onnx")
    np.testing.assert_array_equal(stored["w"], [[99, 0, 100], [-125, 0, -127]])
    np.testing.assert_array_equal(stored["ws.fp16"], np.array([17 * 2.0**-24, 2.0**-24, 0.01], np.float16))
    assert facts["quantization"] == {"scales": 4, "subnormal_scales": 2, "changed_integers": 4}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_scales_of_full_precision_leave_integers(tmp_path: Path, dtype: str) -> None:
    """Rounding a scale moves no integer in [-127, 127], neither in FP16 nor in BF16."""
    rng = np.random.default_rng(0)
    integers = np.tile(np.arange(-127, 128, dtype=np.int8)[:, None], (1, 500))
    facts = to_half(_layer(tmp_path / "a.onnx", integers, rng.uniform(1e-4, 2, 500)), tmp_path / "b.onnx", dtype)
    assert facts["quantization"] == {"scales": 501, "subnormal_scales": 0, "changed_integers": 0}


def test_a_scale_too_large_is_refused(tmp_path: Path) -> None:
    """A scale of 1e5 has no FP16 form and is named."""
    with pytest.raises(ExportError, match="ws does not fit FP16"):
        to_half(_layer(tmp_path / "a.onnx", np.ones((1, 1), np.int8), np.array([1e5])), tmp_path / "b.onnx", "fp16")


def test_fp8_passes_through(tmp_path: Path) -> None:
    """FP8 Q/DQ at operator set 19 keep their type, zero points and values; the product follows by hand."""
    weight = np.array([[448, -3.5], [1, 0.001953125]], ml_dtypes.float8_e4m3fn)
    source = _layer(tmp_path / "a.onnx", weight, np.array([0.5, 0.25]), scale=0.25, version=19)
    facts = to_half(source, tmp_path / "b.onnx", "fp16")
    assert facts["opset"] == 19
    stored = _initializers(tmp_path / "b.onnx")
    assert {name: stored[name].dtype for name in ("w", "wz", "z")} == dict.fromkeys(("w", "wz", "z"), weight.dtype)
    np.testing.assert_array_equal(stored["w"].astype(np.float32), weight.astype(np.float32))
    found = ReferenceEvaluator(str(tmp_path / "b.onnx")).run(None, {"x": np.array([[1, 8]], np.float32)})[0]
    np.testing.assert_array_equal(found, [[228, 1 * -0.875 + 8 * 0.00048828125]])


def test_fp8_weights_follow_a_tiny_scale(tmp_path: Path) -> None:
    """The FP8 weight nearest to 256e-6 on the rounded scale is stored."""
    source = _layer(tmp_path / "a.onnx", np.array([[256.0]], ml_dtypes.float8_e4m3fn), np.array([4e-8]), version=19)
    assert to_half(source, tmp_path / "b.onnx", "fp16")["quantization"]["changed_integers"] == 1
    np.testing.assert_array_equal(_initializers(tmp_path / "b.onnx")["w"].astype(np.float32), [[176]])  # 256 * 4e-8 / 2**-24 = 171.8


@pytest.mark.parametrize("version", [18, 19, 20, 22])
def test_operators_that_changed_give_the_same(tmp_path: Path, version: int) -> None:
    """Split, reductions, pads, pools, resizing and Casts: the same numbers before and after."""
    nodes = [
        *[_node("Pad", ["x", "p"], "a"), _node("Conv", ["a", "w"], "c"), _node("AveragePool", ["c"], "m", kernel_shape=[2, 2])],
        *[_node("Resize", ["m", "", "", "size"], "r", mode="linear"), _node("ReduceMean", ["r"], "v", axes=[2, 3])],
        helper.make_node("Split", ["v"], ["s0", "s1"], name="split", axis=1),
        *[_node("ReduceL2", ["s0"], "l", axes=[1], keepdims=0), _node("ReduceMax", ["s1"], "t", keepdims=0), _node("Add", ["l", "t"], "e")],
        *[_node("Cast", ["e"], "i", to=TensorProto.INT32), _node("Cast", ["i"], "f", to=TensorProto.FLOAT), _node("Add", ["e", "f"], "y")],
    ]
    rng = np.random.default_rng(0)
    weights = {
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "size": np.array([2, 4, 9, 9]),
    }
    model = onnx.load(str(_write(tmp_path / "a.onnx", nodes, weights, (2, 3, 6, 6))))
    opset.upgrade(model, version)
    onnx.checker.check_model(model, full_check=True)
    assert opset.opset_of(model) == version
    assert [node.name for node in model.graph.node] == [node.name for node in nodes]
    onnx.save(model, str(tmp_path / "b.onnx"))
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(_run(tmp_path / "a.onnx", x), _run(tmp_path / "b.onnx", x), rtol=1e-6)


def test_no_older_operator_set(tmp_path: Path) -> None:
    """A graph that is newer stays what it is."""
    model = onnx.load(str(_write(tmp_path / "a.onnx", [_node("Relu", ["x"], "y")], {}, (1, 1), 21)))
    opset.upgrade(model, 19)
    assert opset.opset_of(model) == 21


def test_an_operator_that_means_something_else_is_refused(tmp_path: Path) -> None:
    """GroupNormalization changed its scale in operator set 21: it is named, not passed on."""
    weights = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    nodes = [_node("GroupNormalization", ["x", "s", "b"], "y", num_groups=2)]
    model = onnx.load(str(_write(tmp_path / "a.onnx", nodes, weights, (1, 4, 2, 2), 18)))
    with pytest.raises(ExportError, match=r"y \(GroupNormalization\) cannot be taken from operator set 18 to 22"):
        opset.upgrade(model, 22)


@pytest.mark.parametrize("operator", sorted(opset._MEAN_THE_SAME))
def test_operators_taken_as_they_are_only_gained_options(operator: str) -> None:
    """In every operator set from 17 to 22 the old inputs come first, new ones are optional, and no attribute went or became required."""
    versions = [
        onnx.defs.get_schema(operator, number)
        for number in range(17, opset.NEWEST + 1)
        if onnx.defs.has(operator, max_inclusive_version=number)
    ]
    for old, new in itertools.pairwise(versions):
        assert [value.name for value in new.inputs][: len(old.inputs)] == [value.name for value in old.inputs]
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        assert all(value.option == optional for value in new.inputs[len(old.inputs) :])
        assert len(new.outputs) == len(old.outputs)
        assert set(old.attributes) <= set(new.attributes)
        assert not any(new.attributes[name].required for name in set(new.attributes) - set(old.attributes))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_figures_of_the_half_types(dtype: str) -> None:
    """Largest, smallest full-precision and smallest value are those of the type."""
    half = HALVES[dtype]
    facts = ml_dtypes.finfo(half.dtype)
    assert (half.largest, half.normal, half.smallest) == (float(facts.max), float(facts.smallest_normal), float(facts.smallest_subnormal))
