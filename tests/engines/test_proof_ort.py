"""What ONNX Runtime's profile proves, on graphs that really run: fused INT8 kernels, and the ways a quantized layer stays FP32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import CPU, make_toy_bundle

from clipq.engines.onnxruntime.options import session_options
from clipq.engines.onnxruntime.profile import read_profile
from clipq.engines.proof import RanLayer, TowerProof, read_asked, read_work, work_of_name
from clipq.engines.table import open_engine
from clipq.errors import EngineError

CONSTANTS = {
    "s": np.float32(0.1),
    "z": np.int8(0),
    "w": np.ones((48, 8), np.int8),
    "ws": np.ones(8, np.float32),
    "wz": np.zeros(8, np.int8),
    "b": np.ones(8, np.float32),
}
QUANTIZED_INPUT = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"])]
QDQ = [*QUANTIZED_INPUT, helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=1)]


def profiled(tmp_path: Path, nodes: list[Any], constants: dict[str, Any], shape: tuple[int, ...], work: dict[str, int]) -> TowerProof:
    """Run a graph once on ONNX Runtime and read its profile."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = session_options()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    session.run(None, {"x": np.zeros((1, *shape), np.float32)})
    return read_profile(Path(session.end_profiling()).read_text(), work)


def computing(proof: TowerProof) -> list[tuple[str, str, int]]:
    """Return kind, precision and multiply-adds of what computes."""
    return [(layer.kind, layer.precision, layer.multiply_adds) for layer in proof.layers if layer.computes]


def test_quantized_product_is_int8(tmp_path):
    """MatMul and Sub of a bias stay apart, and the product becomes one INT8 kernel."""
    nodes = [*QDQ, helper.make_node("MatMul", ["d", "dw"], ["m"], name="/a/MatMul"), helper.make_node("Sub", ["m", "b"], ["y"])]
    proof = profiled(tmp_path, nodes, CONSTANTS, (48,), {})
    assert computing(proof) == [("product", "int8", 48 * 8)]
    assert {layer.provider for layer in proof.layers} == {CPU}
    assert proof.attention == "none"


def test_quantized_product_with_a_bias_silently_runs_in_fp32(tmp_path):
    """MatMul and Add of two dimensions become a Gemm before Q/DQ is seen: the graph says INT8, the kernel is FP32."""
    nodes = [*QDQ, helper.make_node("MatMul", ["d", "dw"], ["m"], name="/a/MatMul"), helper.make_node("Add", ["m", "b"], ["y"])]
    proof = profiled(tmp_path, nodes, CONSTANTS, (48,), {})
    assert computing(proof) == [("product", "fp32", 48 * 8)]
    assert sum(layer.kind == "reformat" for layer in proof.layers) == 3


def test_products_that_share_one_quantized_input_silently_run_in_fp32(tmp_path):
    """One DequantizeLinear that several products read: ONNX Runtime fuses none of them."""
    products = [helper.make_node("MatMul", ["d", "dw"], [f"m{i}"], name=f"/{i}/MatMul") for i in range(3)]
    nodes = [*QDQ, *products, helper.make_node("Sum", ["m0", "m1", "m2"], ["y"])]
    proof = profiled(tmp_path, nodes, CONSTANTS, (5, 48), {})
    assert [layer[1] for layer in computing(proof)] == ["fp32"] * 3


def test_dynamic_quantization_is_int8(tmp_path):
    """DynamicQuantizeLinear, MatMulInteger and the scaling become one kernel with float inputs that computes in INT8."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "w", "qz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["qs", "ws1"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["y"]),
    ]
    proof = profiled(tmp_path, nodes, {**CONSTANTS, "ws1": np.float32(0.1)}, (48,), {})
    assert computing(proof) == [("product", "int8", 48 * 8)]


@pytest.mark.parametrize(("quantized_result", "precision"), [(True, "int8"), (False, "fp32")])
def test_convolution_needs_quantization_behind_it(tmp_path, quantized_result, precision):
    """Without Q/DQ on its result a convolution runs in FP32; with it, its weights are packed and its work comes from the table."""
    constants = {
        **CONSTANTS,
        "w": np.ones((4, 3, 3, 3), np.int8),
        "ws": np.ones(4, np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        *QUANTIZED_INPUT,
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["c" if quantized_result else "y"], name="/c/Conv"),
    ]
    if quantized_result:
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
            helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
        ]
    work = 4 * 6 * 6 * 3 * 3 * 3
    assert computing(profiled(tmp_path, nodes, constants, (3, 8, 8), {"/c/Conv": work})) == [("convolution", precision, work)]


def test_fused_attention(tmp_path):
    """A fused attention kernel is recognised, with the work of its two products; the scores of 5 tokens and 8 channels."""
    nodes = [helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)]
    proof = profiled(tmp_path, nodes, {}, (5, 8), {})
    assert computing(proof) == [("attention", "fp32", 2 * 5 * 5 * 8)]
    assert proof.attention == "fused"


def test_attention_that_makes_q_k_and_v_itself(tmp_path):
    """The work of the joint projection is counted with that of the scores, though its weights are packed out of sight."""
    constants = {"w": np.ones((8, 24), np.float32), "b": np.ones(24, np.float32)}
    nodes = [helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=2)]
    assert computing(profiled(tmp_path, nodes, constants, (5, 8), {})) == [("attention", "fp32", 5 * 8 * 24 + 2 * 5 * 5 * 8)]


def event(op_type: str, provider: str = CPU) -> dict[str, Any]:
    """A node of a profile, as ONNX Runtime 1.32 writes it."""
    shapes = {"input_type_shape": [{"float": [1, 8]}], "output_type_shape": [{"float": [1, 4]}]}
    return {"cat": "Node", "name": f"{op_type}_kernel_time", "args": {"op_name": op_type, "provider": provider, **shapes}}


def test_a_swallowed_subgraph_is_unknown():
    """What the TensorRT provider compiled tells nothing of its inside, so neither do we."""
    text = json.dumps([event("TRTKernel_graph_tower_1234_0_0", "TensorrtExecutionProvider"), event("Cast")])
    proof = read_profile(text, {})
    assert (proof.layers[0].kind, proof.layers[0].precision) == ("product", "unknown")
    assert proof.layers[0].provider == "TensorrtExecutionProvider"
    assert proof.attention == "unknown"


@pytest.mark.parametrize(
    ("text", "message"), [("", "cannot read"), ("[]", "names no node"), ('[{"cat": "Node", "name": "a_kernel_time"}]', "cannot read")]
)
def test_unreadable_profile(text, message):
    """A profile without nodes proves nothing and is an error."""
    with pytest.raises(EngineError, match=message):
        read_profile(text, {})


def test_engine_proves_its_towers_and_leaves_no_files(tmp_path, monkeypatch):
    """Each tower runs once on one sample; the profile is gone afterwards; a tower without products proves that too."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    with open_engine(make_toy_bundle(tmp_path / "bundle"), "ort-fp32", 1) as engine:
        image, text = engine.prove("image"), engine.prove("text")
    assert image is not None
    assert text is not None
    assert computing(image) == [("product", "fp32", 48 * 8)]
    assert computing(text) == []
    assert list(scratch.iterdir()) == []


def test_tables_of_engine_json(tmp_path):
    """Without engine.json, or without its tables, there is no work to speak of."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    assert read_work(bundle, "ort-fp32") == {}
    assert read_asked(bundle, "ort-fp32") == {}


def test_name_of_a_layer_begins_with_its_node():
    """The longest beginning wins: ``MatMul_1`` is not ``MatMul``."""
    work = {"/a/MatMul": 1, "/a/MatMul_1": 2}
    assert [work_of_name(name, work) for name in ("/a/MatMul", "/a/MatMul_1/Fusion", "/b/MatMul")] == [1, 2, 0]


@pytest.mark.parametrize(
    ("kinds", "attention"),
    [
        (("product", "softmax", "product"), "not fused"),
        (("product", "attention"), "fused"),
        (("attention", "softmax"), "partly fused"),
        (("product", "convolution"), "none"),
    ],
)
def test_attention_of_a_tower(kinds, attention):
    """Fused means every softmax is inside a kernel with its products."""
    layers = tuple(RanLayer(kind, kind, "fp32", 1, CPU) for kind in kinds)
    assert TowerProof("test", layers).attention == attention
