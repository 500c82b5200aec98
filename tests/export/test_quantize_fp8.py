"""FP8 graphs against E4M3 written out by hand, on ONNX Runtime and in the TensorRT-RTX builder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed, inputs_of

from clipq.errors import ExportError
from clipq.export.quantize.fp8 import LARGEST, NO_CONVOLUTION, quantize_weight_fp8, write_fp8
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.observe import observe
from clipq.export.quantize.portable import assert_qdq_portable

Array = np.ndarray
Towers = Callable[[str, str], Path]
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="needs clipq[tensorrt-rtx]")


def _e4m3_numbers() -> Array:
    """All numbers >= 0 of E4M3 without infinities, from its definition: bias 7, three bits, 1111.111 is NaN."""
    subnormal = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    normal = [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    return np.array([*subnormal, *normal[:-1]])


NUMBERS = _e4m3_numbers()
PRODUCTS = {"vit": 4, "siglip": 14, "resnet": 2}  # of attention, in the towers below


def _nearest(values: Array) -> Array:
    """Round to the nearest number of E4M3, ties to the even one, saturating."""
    magnitude = np.minimum(np.abs(values), NUMBERS[-1])
    above = np.clip(np.searchsorted(NUMBERS, magnitude), 1, len(NUMBERS) - 1)
    low, high = NUMBERS[above - 1], NUMBERS[above]
    up = (magnitude - low > high - magnitude) | ((magnitude - low == high - magnitude) & (above % 2 == 0))
    return np.sign(values) * np.where(up, high, low)


def _layer(weight: Array) -> Layer:
    return Layer("n", "MatMul", "x", "y", "w", weight.astype(np.float32), 1)


def test_the_format_by_hand() -> None:
    """The largest number is 448, the smallest 2**-9, and 448 is the largest weight's."""
    assert NUMBERS[-1] == LARGEST
    assert NUMBERS[1] == 2.0**-9
    values, scale = quantize_weight_fp8(_layer(np.array([[896.0, -1.0], [0.0, 33.0]])))
    assert scale == 2
    assert values.astype(np.float32).tolist() == [[448, -0.5], [0, 16]]  # 16.5 is between 16 and 18


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**90), 2.0**90, width=32)), st.integers(-20, 20))
def test_weights_are_the_nearest_numbers(values: Array, exponent: int) -> None:
    """Every weight becomes the nearest E4M3 number of the scale and none NaN; a power of two more changes only the scale."""
    weight = values[None]
    found, scale = quantize_weight_fp8(_layer(weight))
    np.testing.assert_array_equal(found.astype(np.float64), _nearest((weight / scale).astype(np.float64)))
    assert np.abs(found.astype(np.float64)).max() <= LARGEST
    if np.abs(weight).max() > 2.0**-60:
        again, larger = quantize_weight_fp8(_layer(weight * np.float32(2.0**exponent)))
        assert larger == scale * 2.0**exponent
        np.testing.assert_array_equal(
            again.astype(np.float64)[np.abs(weight) > 2.0**-60], found.astype(np.float64)[np.abs(weight) > 2.0**-60]
        )


def _write_product(path: Path, weight: Array) -> Path:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x2"], name="double"),
        helper.make_node("MatMul", ["x2", "w"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(weight)]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_equal_to_the_second_implementation(tmp_path: Path) -> None:
    """ONNX Runtime's FP8 graph gives what numbers rounded by hand give, values beyond the calibrated range saturate."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    source = _write_product(tmp_path / "source.onnx", weight)
    calibration, x = rng.standard_normal((2, 32, 16)).astype(np.float32)
    x[0] *= 10
    facts = write_fp8(observe(source, [calibration], tmp_path), tmp_path / "target.onnx")
    scale = np.float32(2 * np.abs(calibration).max() / LARGEST)
    values, weight_scale = quantize_weight_fp8(_layer(weight))
    expected = np.maximum(_nearest(2 * x / scale) * scale @ (_nearest(weight / weight_scale) * weight_scale), 0)
    np.testing.assert_allclose(embed(tmp_path / "target.onnx", x), expected, rtol=1e-4, atol=1e-4)
    assert facts["counts"]["fp8"] == {"MatMul": 1}
    assert facts["ranges"]["x2"]["clip"] == facts["ranges"]["x2"]["largest"] == pytest.approx(2 * np.abs(calibration).max())
    assert values.dtype.itemsize == 1


@pytest.mark.parametrize(("family", "tower"), [("vit", "image"), ("vit", "text"), ("siglip", "image"), ("resnet", "image")])
@pytest.mark.parametrize("mha", ["fp16", "fp8"])
def test_towers_stay_close(towers: Towers, tmp_path: Path, family: str, tower: str, mha: str) -> None:
    """FP8 towers keep their embeddings on ONNX Runtime; types, operator set and facts are those of FP8; convolutions stay."""
    source, target = towers(family, tower), tmp_path / "graph.onnx"
    inputs = inputs_of(source, 16)
    facts = write_fp8(observe(source, [inputs], tmp_path, attention=True), target, mha=mha)  # type: ignore[arg-type]
    model = onnx.load(str(target))
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith("zero_point")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    assert [entry.version for entry in model.opset_import] == [19]
    assert_qdq_portable(target, "fp8")
    with pytest.raises(ExportError, match="zero points of type FLOAT8E4M3FN"):
        assert_qdq_portable(target)
    reference = embed(source, inputs)
    assert np.abs(embed(target, inputs) - reference).max() < 0.15 * np.abs(reference).max()
    assert set(facts["counts"]["fp8"]) == {"MatMul"}
    assert facts["counts"]["fp32"].get(NO_CONVOLUTION, 0) == (18 if family == "resnet" else 0)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if "Softmax_output_0.scale" in tensor.name}
    assert len(scales) == (PRODUCTS[family] // 2 if mha == "fp8" else 0)
    assert all(scale == np.float32(1 / 448) for scale in scales.values())


@rtx
@pytest.mark.parametrize("mha", ["fp16", "fp8"])
@pytest.mark.parametrize("family", ["vit", "siglip"])
def test_tensorrt_rtx_builds_the_typed_form(towers: Towers, tmp_path: Path, family: str, mha: str) -> None:
    """The TensorRT-RTX builder makes a plan of the FP8 graph with FP16 for the rest, for GPUs that have FP8."""
    from clipq.engines.tensorrt.build import BuildOptions, build_plan
    from clipq.export.typed.half import to_half

    source = towers(family, "image")
    write_fp8(observe(source, [inputs_of(source, 4)], tmp_path, attention=True), tmp_path / "fp8.onnx", mha=mha)  # type: ignore[arg-type]
    to_half(tmp_path / "fp8.onnx", tmp_path / "half.onnx", "fp16")
    options = BuildOptions(batch=(1, 4, 8), compute_capabilities=("8.9",))
    built = build_plan("tensorrt-rtx", tmp_path / "half.onnx", tmp_path / "plan", "fp8", options)
    assert built["size_bytes"] == (tmp_path / "plan").stat().st_size > 0
