"""A quantized graph taken apart: by hand on one layer, and exactly the FP32 graph when everything is taken out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed, inputs_of

from clipq.errors import ExportError
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.fp8 import write_fp8
from clipq.export.quantize.graph import open_on_cpu, scratch_folder
from clipq.export.quantize.observe import observe
from clipq.export.quantize.partial import simulated, without_activation_quantization, without_quantization, without_weight_quantization
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import quantize_static, write_scheme
from clipq.export.typed.half import to_half
from clipq.methods import BITS

Array = np.ndarray
WEIGHT = np.array([[1.0, -0.5], [0.25, 2.0], [-1.5, 0.75]], np.float32)
SCALE, CLIP_AT = np.float32(0.1), np.float32(12.7)
STEPS = np.array([0.5, 0.25], np.float32)
X = np.array([[0.33, -0.07, 20.0], [1.0, 2.04, -3.0]], np.float32)


def _write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array]) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _plain(path: Path, weight: Array = WEIGHT) -> Path:
    return _write(path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], {"w": weight})


def _static(path: Path) -> Path:
    """Write one INT8 layer with steps so coarse that both roundings show."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="dw", axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["y"], name="layer"),
    ]
    integers = np.rint(WEIGHT / STEPS).astype(np.int8)
    return _write(path, nodes, {"s": np.array(SCALE), "z": np.zeros((), np.int8), "w": integers, "ws": STEPS, "wz": np.zeros(2, np.int8)})


def _run(path: Path, x: Array = X) -> Array:
    output: Array = open_on_cpu(path, quantized_kernels=False).run(None, {"x": x})[0]
    return output


def _rounded_x() -> Array:
    return (np.clip(np.rint(X / SCALE), -128, 127) * SCALE).astype(np.float32)


def test_one_static_layer_by_hand(tmp_path: Path) -> None:
    """Weights alone, activations alone, both and neither are the products that numpy gives."""
    source, plain = _static(tmp_path / "q.onnx"), _plain(tmp_path / "p.onnx")
    weight = np.rint(WEIGHT / STEPS) * STEPS
    assert not np.array_equal(weight, WEIGHT)
    without_activation_quantization(source, tmp_path / "w.onnx")
    without_weight_quantization(source, tmp_path / "a.onnx", plain)
    simulated(source, tmp_path / "s.onnx")
    without_quantization(source, tmp_path / "n.onnx", plain)
    for name, expected in {"w": X @ weight, "a": _rounded_x() @ WEIGHT, "s": _rounded_x() @ weight, "n": X @ WEIGHT}.items():
        np.testing.assert_allclose(_run(tmp_path / f"{name}.onnx"), expected, rtol=1e-5, err_msg=name)


def test_one_dynamic_layer_by_hand(tmp_path: Path) -> None:
    """The range of the batch gives the grid of the activations; the integer product becomes one in FP32."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"), helper.make_node("Identity", ["h"], ["y"], name="end")]
    nodes.append(helper.make_node("MatMul", ["h", "v"], ["unused"], name="last"))
    plain = _write(
        tmp_path / "p.onnx",
        [*nodes[:1], helper.make_node("MatMul", ["h", "v"], ["y"], name="last")],
        {"w": WEIGHT, "v": np.eye(2, dtype=np.float32)},
    )
    quantize_dynamic(plain, tmp_path / "q.onnx")
    step = np.float32((X.max() - X.min()) / 255)
    zero = np.rint(-X.min() / step)
    x = ((np.clip(np.rint(X / step) + zero, 0, 255) - zero) * step).astype(np.float32)
    columns = np.abs(WEIGHT).max(axis=0) / 127
    weight = (np.rint(WEIGHT / columns) * columns).astype(np.float32)
    without_activation_quantization(tmp_path / "q.onnx", tmp_path / "w.onnx")
    without_weight_quantization(tmp_path / "q.onnx", tmp_path / "a.onnx", plain)
    simulated(tmp_path / "q.onnx", tmp_path / "s.onnx")
    for name, expected in {"w": X @ weight, "a": x @ WEIGHT, "s": x @ weight}.items():
        np.testing.assert_allclose(_run(tmp_path / f"{name}.onnx"), expected, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(_run(tmp_path / "s.onnx"), _run(tmp_path / "q.onnx"), rtol=1e-5)


@pytest.mark.parametrize("form", ["int8", "int8-attention", "int8-dynamic", "fp8", "int8-fp16", "fp8-fp16"])
@pytest.mark.parametrize(("family", "tower"), [("vit", "image"), ("resnet", "image"), ("vit", "text")])
def test_without_any_quantization_it_is_the_plain_graph(
    towers: Callable[[str, str], Path], tmp_path: Path, family: str, tower: str, form: str
) -> None:
    """Taking every Q/DQ out of every form of a real tower gives back the FP32 graph's embeddings; leaving them in does not."""
    if form == "fp8-fp16" and tower == "text":
        pytest.skip("as the image tower")
    plain = towers(family, tower)
    source, inputs = _quantized(plain, tmp_path, form), inputs_of(plain, 4)
    without_quantization(source, tmp_path / "n.onnx", plain)
    simulated(source, tmp_path / "s.onnx")
    expected = embed(plain, inputs)
    wide = 2e-3 if form.endswith("fp16") else 1e-5  # weights that are not quantized stay rounded to half
    np.testing.assert_allclose(embed(tmp_path / "n.onnx", inputs), expected, atol=wide * np.abs(expected).max())
    assert np.abs(embed(tmp_path / "s.onnx", inputs) - expected).max() > 1e-4 * np.abs(expected).max()
    assert not {"QuantizeLinear", "DequantizeLinear", "MatMulInteger"} & {n.op_type for n in onnx.load(str(tmp_path / "n.onnx")).graph.node}


def _quantized(plain: Path, folder: Path, form: str) -> Path:
    batches = [inputs_of(plain, 8, seed=1)]
    source = folder / "quantized.onnx"
    if form == "int8-dynamic":
        quantize_dynamic(plain, source)
    elif form.startswith("fp8"):
        with scratch_folder(source) as scratch:
            write_fp8(observe(plain, batches, scratch), source)
    else:
        quantize_static(plain, source, batches, "minmax", mha="int8" if form == "int8-attention" else "fp16")
    if form.endswith("fp16"):
        to_half(source, folder / "half.onnx", "fp16")
        return folder / "half.onnx"
    return source


def test_what_cannot_be_taken_apart_is_told(tmp_path: Path) -> None:
    """A graph with nothing quantized, weights of another model, and an integer product of another tool are errors in one line."""
    plain, source = _plain(tmp_path / "p.onnx"), _static(tmp_path / "q.onnx")
    with pytest.raises(ExportError, match="holds nothing quantized"):
        simulated(plain, tmp_path / "s.onnx")
    other = _write(tmp_path / "o.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], name="elsewhere")], {"w": WEIGHT})
    with pytest.raises(ExportError, match="no such weight for layer; found none"):
        without_weight_quantization(source, tmp_path / "a.onnx", other)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="q"),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="layer"),
        helper.make_node("Cast", ["i"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    with pytest.raises(ExportError, match=r"layer of .* cannot be spelled out"):
        simulated(_write(tmp_path / "i.onnx", nodes, {"w": np.ones((3, 2), np.int8)}), tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


@pytest.mark.parametrize("bits", ["W4A4", "W6A6"])
def test_fewer_bits_lose_their_clips_too(towers: Callable[[str, str], Path], bits: str, tmp_path: Path) -> None:
    """Below 8 bits a Clip stands before each Q; a graph without quantization is the FP32 graph, far beyond the calibrated range too."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 4)
    write_scheme(observe(source, [0.1 * inputs], tmp_path), tmp_path / "q.onnx", Scheme("minmax", BITS[bits]))
    without_quantization(tmp_path / "q.onnx", tmp_path / "n.onnx", source)
    assert not any(node.op_type == "Clip" for node in onnx.load(str(tmp_path / "n.onnx")).graph.node)
    np.testing.assert_allclose(embed(tmp_path / "n.onnx", inputs), embed(source, inputs), rtol=1e-4, atol=1e-4)
