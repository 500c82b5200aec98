"""The table of work: what each node takes, checked against what ONNX Runtime's profile shows of the same graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.errors import ExportError
from clipq.export.onnx import export_tower
from clipq.export.work import asked_of, work_of


def save(path, nodes, constants, shape, opset=19):
    """Write a graph x -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), key)
            for key, value in constants.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), str(path))
    return path


def convolution(path, **attributes):
    """Write a graph with one convolution of a 3 x 8 x 8 image into 6 channels."""
    weights = np.ones((6, 3 // attributes.get("group", 1), 3, 3), np.float32)
    return save(path, [helper.make_node("Conv", ["x", "w"], ["y"], name="c", **attributes)], {"w": weights}, (3, 8, 8))


@pytest.mark.parametrize(
    ("attributes", "work"), [({}, 6 * 36 * 27), ({"strides": [2, 2]}, 6 * 9 * 27), ({"pads": [1, 1, 1, 1], "group": 3}, 6 * 64 * 9)]
)
def test_convolutions_by_hand(tmp_path, attributes, work):
    """Size of the result times weights behind each of its values: stride, padding and groups count."""
    assert work_of(convolution(tmp_path / "g.onnx", **attributes)) == {"c": work}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_by_hand(tmp_path, transposed):
    """A Gemm sums over the inner dimension, wherever it stands."""
    nodes = [helper.make_node("Gemm", ["w" if transposed else "x", "v"], ["y"], name="g", transA=transposed)]
    constants = {"w": np.ones((4, 5), np.float32), "v": np.ones((4, 7), np.float32)}
    assert work_of(save(tmp_path / "g.onnx", nodes, constants, (4,))) == {"g": (5 if transposed else 1) * 7 * 4}


@pytest.mark.parametrize("family", ["vit", "resnet", "siglip", "coca", "convnext"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_every_family_agrees_with_what_runs(tmp_path, tiny_checkpoint, family, tower):
    """Shapes by inference and shapes that ONNX Runtime saw give the same work, for every family and both towers."""
    import onnxruntime

    from clipq.engines.onnxruntime.profile import read_profile

    path = tmp_path / "tower.onnx"
    export_tower(load_checkpoint(tiny_checkpoint(family)), tower, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix, options.log_severity_level = True, str(tmp_path / "profile"), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    session.run(None, {value.name: np.zeros((1, *value.shape[1:]), np.float32 if tower == "image" else np.int32)})
    text = Path(session.end_profiling()).read_text()
    ran = {layer.name: layer.multiply_adds for layer in read_profile(text, {}).layers if layer.computes}
    assert work_of(path) == ran
    assert asked_of(path) == {"fp32": sum(ran.values())}


def quantized(kind, *, both=True, half=False):
    """Return nodes and constants of a product of quantized inputs, with a transpose behind the DequantizeLinear of the weights."""
    scale = np.float16(0.1) if half else np.float32(0.1)
    zero = helper.make_tensor("z", kind, [], [0])
    nodes = [
        *([helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16)] if half else [helper.make_node("Identity", ["x"], ["xh"])]),
        helper.make_node("QuantizeLinear", ["xh", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"]),
        helper.make_node("Transpose", ["dw"], ["dwt"]),
        helper.make_node("MatMul", ["d" if both else "xh", "dwt"], ["m"], name="m"),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    return nodes, {"s": scale, "z": zero, "w": helper.make_tensor("w", kind, [8, 4], [1] * 32)}


@pytest.mark.parametrize(
    ("kind", "options", "precision"),
    [
        (TensorProto.INT8, {}, "int8"),
        (TensorProto.INT8, {"half": True}, "int8"),
        (TensorProto.FLOAT8E4M3FN, {"half": True}, "fp8"),
        (TensorProto.INT8, {"both": False}, "fp32"),
        (TensorProto.INT8, {"both": False, "half": True}, "fp16"),
    ],
)
def test_what_a_graph_asks_for(tmp_path, kind, options, precision):
    """INT8 and FP8 where both inputs are dequantized; weights alone are computed with in the activation's type."""
    path = save(tmp_path / "g.onnx", *quantized(kind, **options), (4,))
    assert asked_of(path) == {precision: 4 * 8}
    assert work_of(path) == {"m": 4 * 8}


def test_unknown_shape_is_an_error(tmp_path):
    """A dimension that depends on the values of the input cannot be counted, and the message names the node."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"]),
        helper.make_node("MatMul", ["f", "t"], ["y"], name="/a/MatMul"),
    ]
    with pytest.raises(ExportError, match="how much work /a/MatMul"):
        work_of(save(tmp_path / "g.onnx", nodes, {}, (4,)))


def test_unreadable_graph(tmp_path):
    """A file that is no graph is an error of the export."""
    (tmp_path / "g.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot read the graph"):
        work_of(tmp_path / "g.onnx")


def test_a_graph_that_changed_is_read_again(tmp_path):
    """Engines share what was read of one file; a file written anew is another one."""
    path = tmp_path / "g.onnx"
    before = work_of(convolution(path))
    assert work_of(path) == before
    assert work_of(convolution(path, strides=[2, 2])) != before
