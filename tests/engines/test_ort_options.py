"""Exact integer products: where two of 16 bits overflow, every session of ours gives the integers that numpy gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import SIZE, make_toy_bundle, rewrite_manifest

from clipq.engines.onnxruntime.options import EXACT_PRODUCTS, session_entries, session_options
from clipq.engines.table import open_engine
from clipq.evaluate.provenance import tower_facts
from clipq.export.quantize.graph import open_on_cpu

STATIC, DEPTH = "ort-int8-static", 64


def _largest(path: Path, operator: str) -> Path:
    """Write ``y = q(x) @ w`` where every weight is the largest: any two products together are beyond 16 bits."""
    weights = {"w": np.full((DEPTH, 8), 127, np.int8), "one": np.float32(1), "zero": np.int8(0)}
    if operator == "MatMulInteger":
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "step", "offset"]),
            helper.make_node("MatMulInteger", ["q", "w", "offset", "zero"], ["sums"]),
            helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "step"], ["y"]),
        ]
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["v"]),
            helper.make_node("MatMul", ["d", "v"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", DEPTH), ("y", 8))]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("operator", ["MatMulInteger", "MatMul"])
def test_largest_products_do_not_saturate(tmp_path: Path, operator: str) -> None:
    """Sums of 64 products of the largest numbers, of a dynamic and of a static product, by ``open_on_cpu`` and by the options alone."""
    path, x = _largest(tmp_path / "largest.onnx", operator), np.full((3, DEPTH), 127, np.float32)
    expected = np.full((3, 8), 127 * 127 * DEPTH, np.float32)
    plain = onnxruntime.InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
    for session in (open_on_cpu(path), plain):
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)


def test_every_session_has_the_entry(tmp_path: Path) -> None:
    """The sessions of an engine and of the export ask for exact products; without ours nobody does."""
    bundle, (name,) = make_toy_bundle(tmp_path), EXACT_PRODUCTS
    with open_engine(bundle, STATIC, threads=1) as engine:
        engine.run("image", np.zeros((1, 3, SIZE, SIZE), np.float32))
        sessions = [*engine._sessions.values(), open_on_cpu(tmp_path / "towers/image.fp32.onnx")]  # type: ignore[attr-defined]
        assert [session.get_session_options().get_session_config_entry(name) for session in sessions] == ["1"] * 3
    with pytest.raises(RuntimeError, match=name):
        session_options(exact_products=False).get_session_config_entry(name)


def test_entries_are_of_integer_kernels_on_the_cpu_only(tmp_path: Path) -> None:
    """FP32 engines and other providers need none; embeddings of a quantized tower are stored under them, those of FP32 towers not."""
    entry = replace(make_toy_bundle(tmp_path).engine(STATIC), quantized=("image",))
    assert session_entries(entry) == EXACT_PRODUCTS
    others = [replace(entry, quantized=()), replace(entry, provider="TensorrtExecutionProvider"), replace(entry, runtime="tensorrt")]
    assert [session_entries(other) for other in others] == [{}] * 3
    bundle = rewrite_manifest(tmp_path, {STATIC: entry})
    assert tower_facts(bundle, STATIC, "image")["session"] == EXACT_PRODUCTS
    assert "session" not in tower_facts(bundle, STATIC, "text")
