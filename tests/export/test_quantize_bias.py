"""Moments of activations and the correction of biases, against slow sums and on small graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed, inputs_of, optimized_operators

from clipq.errors import ExportError
from clipq.export.quantize.bias import correct_biases, mean_error
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.moments import Moments, on_grid
from clipq.export.quantize.observe import observe
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import write_scheme
from clipq.export.quantize.weights import quantize_weight
from clipq.methods import BITS

Array = np.ndarray


def test_grid_by_hand() -> None:
    """Steps of a half up to three: halves round to even, what lies beyond saturates."""
    values = np.float32([0.25, 0.75, -0.3, 9, -9])
    np.testing.assert_array_equal(on_grid(values, np.float32(0.5), 3), np.float32([0, 1, -0.5, 1.5, -1.5]))


def test_moments_are_those_of_the_samples() -> None:
    """Means and second moments added in parts equal slow sums over all vectors."""
    vectors = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    moments = Moments.empty(4, second=True)
    for part in np.array_split(vectors, 7):
        moments.add(part, np.float32(0.25), 7)
    rounded = [[min(max(round(float(x) / 0.25), -7), 7) * 0.25 for x in row] for row in vectors]
    np.testing.assert_allclose(moments.mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(moments.mean_rounded, np.mean(rounded, axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.gram, sum(np.outer(row, row) for row in rounded), rtol=1e-5)
    assert moments.count == 50


def _moments(vectors: Array, scale: float, limit: int) -> Moments:
    moments = Moments.empty(vectors.shape[1], second=False)
    moments.add(vectors.astype(np.float32), np.float32(scale), limit)
    return moments


def test_mean_error_of_a_product_is_analytic() -> None:
    """It equals the mean over samples of what the quantized product adds."""
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((400, 6)).astype(np.float32) + 1, rng.standard_normal((6, 3)).astype(np.float32)
    integers, scales = quantize_weight(weight, 1, 7)
    added = on_grid(x, np.float32(0.3), 7) @ (integers * scales) - x @ weight
    found = mean_error(Layer("n", "MatMul", "x", "y", "w", weight, 1), integers, scales, _moments(x, 0.3, 7))
    np.testing.assert_allclose(found, added.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mean_error_of_a_convolution(groups: int) -> None:
    """On constant images without borders it is what torch's convolution adds, with groups too."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((8, 4 // groups, 3, 3)).astype(np.float32)
    integers, scales = quantize_weight(weight, 0, 7)
    channels = rng.standard_normal(4).astype(np.float32)
    image = np.broadcast_to(channels[:, None, None], (4, 5, 5))[None].copy()
    rounded = on_grid(image, np.float32(0.4), 7)
    results = [
        torch.nn.functional.conv2d(torch.from_numpy(a), torch.from_numpy(b), groups=groups).numpy()[0, :, 1, 1]
        for a, b in ((rounded, (integers * scales[:, None, None, None]).astype(np.float32)), (image, weight))
    ]
    found = mean_error(Layer("n", "Conv", "x", "y", "w", weight, 0), integers, scales, _moments(channels[None], 0.4, 7))
    np.testing.assert_allclose(found, results[0] - results[1], atol=1e-4)


_BIAS = np.float32([1, 2])


def _graph(following: str) -> onnx.ModelProto:
    """``product`` and what follows it: an Add or Sub on either side, a shared constant, nothing, or two readers."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="product")]
    nodes += {
        "add": [helper.make_node("Add", ["m", "b"], ["y"])],
        "add-left": [helper.make_node("Add", ["b", "m"], ["y"])],
        "sub": [helper.make_node("Sub", ["m", "b"], ["y"])],
        "sub-left": [helper.make_node("Sub", ["b", "m"], ["y"])],
        "scalar": [helper.make_node("Add", ["m", "one"], ["y"])],
        "shared": [helper.make_node("Add", ["m", "b"], ["z"]), helper.make_node("Mul", ["z", "b"], ["y"])],
        "none": [helper.make_node("Identity", ["m"], ["y"])],
        "two": [helper.make_node("Add", ["m", "b"], ["z"]), helper.make_node("Mul", ["z", "m"], ["y"])],
    }[following]
    weights = {"w": np.eye(2, dtype=np.float32), "b": _BIAS, "one": np.float32([1])}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("following", ["add", "add-left", "sub", "sub-left", "scalar", "shared", "none", "two"])
def test_the_result_of_the_layer_moves_and_nothing_else(following: str, tmp_path: Path) -> None:
    """Whatever stands behind a layer, the corrected graph gives what the graph gives when the error is taken from the layer's result."""
    x, error = np.float32([[3, -4], [0.5, 8]]), np.array([0.25, -2.0])
    model = _graph(following)
    onnx.save(model, str(tmp_path / "before.onnx"))
    correct_biases(model, {"product": error})
    onnx.save(model, str(tmp_path / "after.onnx"))
    np.testing.assert_array_equal(embed(tmp_path / "after.onnx", x), embed(tmp_path / "before.onnx", x - error.astype(np.float32)))
    grown = len(model.graph.node) - len(_graph(following).graph.node)
    assert grown == (following in {"scalar", "sub-left", "none", "two"})


@pytest.mark.parametrize("family", ["vit", "resnet", "convnext"])
def test_corrected_towers_are_portable_and_fused(towers: Callable[[str, str], Path], family: str, tmp_path: Path) -> None:
    """Corrected W8A8 graphs pass the gate, have as many integer kernels as plain ones, and nearer means at 4 bits of weights."""
    source = towers(family, "image")
    inputs = inputs_of(source, 24)
    observed = observe(source, [inputs], tmp_path)
    kernels, offsets = [], []
    for corrected in (False, True):
        for bits in ("W8A8", "W4A8"):
            path = tmp_path / f"{corrected}.{bits}.onnx"
            facts = write_scheme(observed, path, Scheme("minmax", BITS[bits], corrected=corrected), inputs=lambda: iter([inputs]))
            assert facts["corrected"] is corrected
            assert_qdq_portable(path)
        operators = optimized_operators(tmp_path / f"{corrected}.W8A8.onnx")
        kernels.append({name: operators[name] for name in ("MatMulIntegerToFloat", "QLinearConv", "QGemm")})
        offsets.append(np.linalg.norm((embed(path, inputs) - embed(source, inputs)).mean(axis=0)))
    assert kernels[0] == kernels[1]
    assert sum(kernels[1].values()) > 0
    assert offsets[1] < offsets[0]


@pytest.mark.parametrize("scheme", [Scheme("minmax", corrected=True), Scheme("minmax", rounding="gptq")])
def test_a_second_pass_needs_images(towers: Callable[[str, str], Path], scheme: Scheme, tmp_path: Path) -> None:
    """Without calibration inputs, or with none left, a scheme that needs moments is an error and nothing is written."""
    source = towers("vit", "image")
    (tmp_path / "scratch").mkdir()
    observed = observe(source, [inputs_of(source, 2)], tmp_path / "scratch")
    with pytest.raises(ExportError, match="needs calibration images"):
        write_scheme(observed, tmp_path / "g.onnx", scheme)
    with pytest.raises(ExportError, match="no calibration images for a second pass"):
        write_scheme(observed, tmp_path / "g.onnx", scheme, inputs=lambda: iter([]))
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
