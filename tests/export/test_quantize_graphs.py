"""Quantized graphs of every tower family: what is INT8, what it costs, what all runtimes accept, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import centred_cosine, embed, inputs_of, optimized_operators

from clipq.errors import DataError, ExportError
from clipq.export.quantize import graph as graph_module
from clipq.export.quantize.collect import CHUNK, collect
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.facts import METADATA_KEY
from clipq.export.quantize.padding import padding_of
from clipq.export.quantize.static import quantize_static
from clipq.files import sha256_file
from clipq.recipe import CALIBRATION_METHODS

Array = np.ndarray
FAMILIES = ("vit", "resnet", "siglip", "coca", "convnext")


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_stays_close(towers: Callable[[str, str], Path], family: str, tower: str, tmp_path: Path) -> None:
    """Static and dynamic graphs of every family open, keep the embeddings and hold INT8 weights."""
    source = towers(family, tower)
    inputs = inputs_of(source, 8)
    reference = embed(source, inputs)
    static = quantize_static(source, tmp_path / "static.onnx", [inputs], "mse")
    dynamic = quantize_dynamic(source, tmp_path / "dynamic.onnx")
    for name in ("static.onnx", "dynamic.onnx"):
        error = np.abs(embed(tmp_path / name, inputs) - reference).max()
        assert error < 0.1 * np.abs(reference).max()
    for facts in (static, dynamic):
        assert facts["target_bytes"] < facts["source_bytes"]
        assert len(facts["quantized"]) == sum(facts["counts"]["int8"].values()) > 0
        assert not set(facts["quantized"]) & set(facts["fp32"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynamic.onnx", "static.onnx"]


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_methods_on_a_vit(towers: Callable[[str, str], Path], method: str, tmp_path: Path) -> None:
    """Every method keeps a ViT's embeddings and says what it chose."""
    source, target = towers("vit", "image"), tmp_path / "graph.onnx"
    inputs = inputs_of(source, 20)
    facts = quantize_static(source, target, [inputs], method)  # type: ignore[arg-type]
    assert centred_cosine(embed(source, inputs), embed(target, inputs)) > 0.99
    assert facts["method"] == method
    assert facts["images"] == 20
    assert all(0 < value["clip"] <= value["largest"] for value in facts["ranges"].values())


def test_what_is_quantized_in_a_vit(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Four linear layers per block are INT8; patch embedding, attention products and the projection are not."""
    facts = quantize_static(towers("vit", "image"), tmp_path / "graph.onnx", [inputs_of(towers("vit", "image"), 4)], "minmax")
    assert facts["counts"] == {
        "int8": {"MatMul": 8},
        "fp32": {
            "first convolution: reads the pixels": 1,
            "product of two activations": 4,
            "final projection: makes the embedding": 1,
        },
    }


def test_shared_activation_has_one_scale(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Attention pooling reads one tensor with three layers: each has a Q/DQ of its own, all of one scale, and all are fused."""
    source, target = towers("resnet", "image"), tmp_path / "graph.onnx"
    facts = quantize_static(source, target, [inputs_of(source, 4)], "minmax")
    graph = onnx.load(str(target)).graph
    scales = {tensor.name: float(numpy_helper.to_array(tensor)) for tensor in graph.initializer if not tensor.dims}
    read = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    shared = [node.input[1] for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "/visual/attnpool/Add_output_0"]
    assert read == set(facts["ranges"])
    assert len(set(shared)) == 3
    assert len({scales[name] for name in shared}) == 1
    assert optimized_operators(target)["MatMulIntegerToFloat"] == facts["counts"]["int8"]["MatMul"] == 3


def test_batch_size_changes_nothing(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Batches of 1, 7 and 40 images give the same file, byte for byte."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 40)
    for size in (1, 7, 40):
        quantize_static(source, tmp_path / f"{size}.onnx", (inputs[i : i + size] for i in range(0, 40, size)), "percentile")
    assert len({sha256_file(path) for path in tmp_path.iterdir()}) == 1


def test_scales_are_those_of_the_samples(tmp_path: Path) -> None:
    """In a graph small enough for the hand, scale and integers are the absolute maxima over 127."""
    weight = np.array([[1.0, 254.0], [-127.0, 2.0]], np.float32)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    _write_product(source, weight)
    quantize_static(source, target, [np.array([[1, -2], [0.5, 4]], np.float32)], "minmax")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(target)).graph.initializer}
    assert stored["x2.scale"] == pytest.approx(8 / 127)
    np.testing.assert_allclose(stored["product.weight.scale"], [1, 2])
    np.testing.assert_array_equal(stored["product.weight.int8"], [[1, 127], [-127, 1]])


def _write_product(path: Path, weight: Array) -> None:
    """Write ``y = sum(2 x @ weight)``: one MatMul that is neither first nor last."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x2"]),
        helper.make_node("MatMul", ["x2", "w"], ["m"], name="product"),
        helper.make_node("Relu", ["m"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.mark.parametrize(("alpha", "trans_a", "quantized"), [(1.0, 0, True), (2.0, 0, False), (1.0, 1, False)])
def test_gemm_with_a_factor_stays(tmp_path: Path, alpha: float, trans_a: int, quantized: bool) -> None:
    """A plain Gemm becomes an INT8 MatMul and Add; one with a factor or transposed input stays, with its reason."""
    attributes = {"alpha": alpha, "transA": trans_a, "transB": 1}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="gemm", **attributes),
        helper.make_node("MatMul", ["g", "w"], ["h"], name="plain"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in (("w", (8, 8)), ("b", (8,)))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "source.onnx"))
    inputs = rng.standard_normal((8, 8)).astype(np.float32)
    facts = quantize_static(tmp_path / "source.onnx", tmp_path / "target.onnx", [inputs], "minmax")
    assert ("gemm" in facts["quantized"]) is quantized
    if not quantized:
        assert facts["fp32"]["gemm"] == "Gemm with a factor, a transposed input or a computed bias"
    reference = embed(tmp_path / "source.onnx", inputs)
    assert np.abs(embed(tmp_path / "target.onnx", inputs) - reference).max() < 0.05 * np.abs(reference).max()


def test_dynamic_is_fused(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """ONNX Runtime turns every dynamic layer into one DynamicQuantizeMatMul and every static one into MatMulIntegerToFloat."""
    source = towers("vit", "image")
    dynamic = quantize_dynamic(source, tmp_path / "dynamic.onnx")
    static = quantize_static(source, tmp_path / "static.onnx", [inputs_of(source, 4)], "minmax")
    assert optimized_operators(tmp_path / "dynamic.onnx")["DynamicQuantizeMatMul"] == len(dynamic["quantized"])
    assert optimized_operators(tmp_path / "static.onnx")["MatMulIntegerToFloat"] == len(static["quantized"])


def test_convolutions_are_fused(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Every INT8 convolution of a ResNet becomes one QLinearConv in ONNX Runtime."""
    source = towers("resnet", "image")
    facts = quantize_static(source, tmp_path / "static.onnx", [inputs_of(source, 4)], "minmax")
    assert optimized_operators(tmp_path / "static.onnx")["QLinearConv"] == facts["counts"]["int8"]["Conv"]


def test_metadata_is_kept_and_extended(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """What the exporter wrote stays; the scheme, method and the source's hash are added."""
    source, target = towers("vit", "image"), tmp_path / "graph.onnx"
    quantize_static(source, target, [inputs_of(source, 4)], "entropy")
    before, after = ({entry.key: entry.value for entry in onnx.load(str(path)).metadata_props} for path in (source, target))
    added = json.loads(after.pop(METADATA_KEY))
    assert after == before
    assert added["method"] == "entropy"
    assert added["source_sha256"] == sha256_file(source)


def test_large_models_use_a_data_file(towers: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the weights stand in one file beside the graph, which gives the same embeddings."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 4)
    quantize_static(source, tmp_path / "whole.onnx", [inputs], "minmax")
    monkeypatch.setattr(graph_module, "EXTERNAL_DATA_BYTES", 1000)
    facts = quantize_static(source, tmp_path / "split.onnx", [inputs], "minmax")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["split.onnx", "split.onnx.data", "whole.onnx"]
    assert facts["target_bytes"] == sum((tmp_path / name).stat().st_size for name in ("split.onnx", "split.onnx.data"))
    np.testing.assert_array_equal(embed(tmp_path / "whole.onnx", inputs), embed(tmp_path / "split.onnx", inputs))


def test_memory_does_not_grow_with_images(towers: Callable[[str, str], Path]) -> None:
    """Python's peak while collecting is the same for 40 and 400 images."""
    source = towers("vit", "image")
    peaks = []
    for images in (CHUNK, 40, 400):
        tracemalloc.start()
        collect(source, (_inputs_chunk() for _ in range(images // CHUNK)), padding_of(source))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.1 * peaks[1]


def _inputs_chunk() -> Array:
    return np.random.default_rng(0).standard_normal((CHUNK, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 3, 32, 32), np.float32)]])
def test_no_images_is_an_error(towers: Callable[[str, str], Path], batches: list[Array], tmp_path: Path) -> None:
    """Without images there is an error and no file."""
    with pytest.raises(DataError, match="no calibration images; found 0"):
        quantize_static(towers("vit", "image"), tmp_path / "graph.onnx", batches, "minmax")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_an_error(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """An image that makes NaN is named by tensor and position, and nothing is written."""
    images = inputs_of(towers("vit", "image"), 20)
    images[12] = np.nan
    with pytest.raises(ExportError, match=r"NaN or infinity in .*images 8 to 15"):
        quantize_static(towers("vit", "image"), tmp_path / "graph.onnx", [images], "minmax")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_leaves_the_old_file(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """An error in the stream of images ends the run and the earlier graph stays."""

    def broken() -> Iterator[Array]:
        yield inputs_of(towers("vit", "image"), 4)
        raise RuntimeError("disk gone")

    target = tmp_path / "graph.onnx"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk gone"):
        quantize_static(towers("vit", "image"), target, broken(), "minmax")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["graph.onnx"]


def test_zero_images_content_is_safe(towers: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Calibrated on a tensor that is zero everywhere, the graph still gives finite embeddings."""
    _write_product(tmp_path / "source.onnx", np.ones((2, 2), np.float32))
    quantize_static(tmp_path / "source.onnx", tmp_path / "target.onnx", [np.zeros((4, 2), np.float32)], "mse")
    assert np.isfinite(embed(tmp_path / "target.onnx", np.ones((1, 2), np.float32))).all()


@pytest.mark.parametrize("content", [None, b"", b"not a graph"])
def test_unreadable_graph(content: bytes | None, tmp_path: Path) -> None:
    """A missing, empty or broken graph gives one clear error."""
    source = tmp_path / "source.onnx"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(ExportError, match=r"source\.onnx"):
        quantize_dynamic(source, tmp_path / "target.onnx")


def test_nan_weight_is_refused(tmp_path: Path) -> None:
    """A weight with NaN is named before anything is written."""
    _write_product(tmp_path / "source.onnx", np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ExportError, match="NaN or infinity in the weights of product"):
        quantize_dynamic(tmp_path / "source.onnx", tmp_path / "target.onnx")
