"""The gate of portable graphs: it passes what this room writes, and names what TensorRT would refuse in graphs of other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as quantize_with_ort

from clipq.errors import ExportError
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.static import quantize_static


def _write_product(path: Path) -> Path:
    """Write ``y = relu(2 x @ w + b)`` of four channels."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x2"], name="double"),
        helper.make_node("Gemm", ["x2", "w", "b"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["y"], name="relu"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in (("w", (4, 4)), ("b", (4,)))]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    """Return the path of a graph of our own."""
    target = tmp_path / "target.onnx"
    quantize_static(_write_product(tmp_path / "source.onnx"), target, [np.ones((1, 4), np.float32)], "minmax")
    return target


def _set_zero_point(model: onnx.ModelProto, value: Any) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "x2.zero_point":
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _asymmetric(model: onnx.ModelProto) -> None:
    _set_zero_point(model, np.array(3, np.int8))


def _unsigned(model: onnx.ModelProto) -> None:
    _set_zero_point(model, np.array(0, np.uint8))


def _no_zero_point(model: onnx.ModelProto) -> None:
    del next(node for node in model.graph.node if node.name == "x2.quantize").input[2]


def _feed_relu(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.name == "relu").input[0] = "x2.dequantized"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_asymmetric, r"x2\.quantize has an asymmetric zero point \(3\); x2\.dequantize has an asymmetric"),
        (_unsigned, r"x2\.quantize has zero points of type UINT8"),
        (_no_zero_point, r"x2\.quantize has zero points of type UINT8"),
        (_feed_relu, r"relu \(Relu\) reads a quantized value"),
    ],
)
def test_gate_names_node_and_fault(portable: Path, damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    """The gate passes what this room writes; each fault is named with its node, and the message says how to export again."""
    assert_qdq_portable(portable)
    model = onnx.load(str(portable))
    damage(model)
    onnx.save(model, str(portable))
    with pytest.raises(ExportError, match=message) as caught:
        assert_qdq_portable(portable)
    assert "ActivationSymmetric" in str(caught.value)


def test_gate_refuses_other_forms(tmp_path: Path) -> None:
    """FP32 and dynamic graphs are not the portable QDQ graph."""
    source = _write_product(tmp_path / "source.onnx")
    quantize_dynamic(source, tmp_path / "dynamic.onnx")
    with pytest.raises(ExportError, match="no QuantizeLinear"):
        assert_qdq_portable(source)
    with pytest.raises(ExportError, match="is DynamicQuantizeLinear, an operator on integers"):
        assert_qdq_portable(tmp_path / "dynamic.onnx")


class _Samples(CalibrationDataReader):
    """Eight rows that are never negative, so that an asymmetric zero point is not zero."""

    def __init__(self) -> None:
        self.left: Iterator[Any] = iter([{"x": np.random.default_rng(0).random((8, 4), np.float32)}])

    def get_next(self) -> Any:
        return next(self.left, None)


def _foreign(folder: Path, **options: Any) -> Path:
    target = folder / "foreign.onnx"
    quantize_with_ort(str(_write_product(folder / "source.onnx")), str(target), _Samples(), **options)
    return target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_type": QuantType.QInt8}, "has an asymmetric zero point"),
        ({"activation_type": QuantType.QUInt8}, "has zero points of type UINT8"),
        ({"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}}, "has a quantized bias (INT32)"),
        ({"quant_format": QuantFormat.QOperator}, "an operator on integers"),
    ],
)
def test_gate_refuses_what_onnxruntime_makes_by_itself(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Real graphs of onnxruntime.quantization with its own settings: the named fault is the one TensorRT refuses."""
    with pytest.raises(ExportError) as caught:
        assert_qdq_portable(_foreign(tmp_path, **options))
    assert message in str(caught.value)


def test_the_advice_of_the_gate_works(tmp_path: Path) -> None:
    """onnxruntime.quantization with exactly the settings that the message names passes the gate."""
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    options = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    assert_qdq_portable(_foreign(tmp_path, op_types_to_quantize=["MatMul", "Gemm", "Conv"], extra_options=extra, **options))
