"""Exports by method: the engines of a bundle, what they say of themselves, what runs, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_towers import embed

from clipq.artifact import Bundle
from clipq.engines.table import open_engine
from clipq.errors import ExportError, RefusedError, UsageError
from clipq.evaluate.proof import prove
from clipq.evaluate.provenance import describe_engine
from clipq.export.pipeline import export_bundle
from clipq.export.quantize.observe import observe
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import write_scheme
from clipq.methods import BITS, engine_ids
from clipq.recipe import Recipe

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="needs clipq[tensorrt-rtx]")
METHODS = ("mse", "gptq", "bias-correction")
ENGINES = (*engine_ids(METHODS, ["W8A8", "W4A4"]), *engine_ids(["hqq"], ["W8A32", "W4A32"]))


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Callable[[str], str]) -> Recipe:
    """The tiny ViT, both towers, by several methods."""
    return Recipe(tiny_checkpoint("vit"), ENGINES, towers=("image", "text"), calib="synthetic:scenes:calibration", calib_n=8)


@pytest.fixture(scope="module")
def bundle(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; shared, so do not change it."""
    return export_bundle(recipe, tmp_path_factory.mktemp("methods") / "bundle")


def _said(bundle: Bundle, engine_id: str) -> dict[str, object]:
    said: dict[str, object] = json.loads(bundle.file(f"engines/{engine_id}/engine.json").read_text())
    return said


def test_every_engine_is_there_and_says_what_it_is(bundle: Bundle) -> None:
    """Method, bits and simulated stand in graph facts, engine.json, the manifest and the report's entry; both towers are quantized."""
    bundle.verify()
    for engine_id in ENGINES:
        entry, said, described = bundle.engine(engine_id), _said(bundle, engine_id), describe_engine(bundle, engine_id)
        simulated = "w4a4" in engine_id
        assert entry.quantized == ("image", "text")
        assert entry.simulated is simulated
        assert said.get("simulated", False) is simulated
        assert described.get("simulated", False) is simulated
        facts = said["graphs"][f"towers/image.{engine_id.removeprefix('ort-')}.onnx"]  # type: ignore[index]
        assert facts["bits"] == engine_id.split("-")[1].upper()


def test_nothing_falls_back(bundle: Bundle) -> None:
    """By ONNX Runtime's profile INT8 engines run in INT8, and of weights in blocks one kernel reads them: none is called fallen back."""
    layers = prove(bundle, ENGINES)
    for engine_id in ENGINES:
        precision = bundle.engine(engine_id).precision
        assert "fallback" not in layers[engine_id]
        shares = layers[engine_id]["multiply_adds"]  # layers of 32 inputs have one block each, of which a profile does not tell the bits
        assert shares[precision] + shares.get("unknown", 0) == pytest.approx(layers[engine_id]["asked"][precision], abs=0.01)
        assert shares[precision] > 0.4
    assert {bundle.engine(f"ort-w{bits}a32-hqq").precision for bits in (8, 4)} == {"int8-weights", "int4-weights"}


def test_weights_alone_say_which_session_entry_they_need(bundle: Bundle) -> None:
    """Without it ONNX Runtime rounds activations to 8 bits; INT8 engines have theirs."""
    assert _said(bundle, "ort-w4a32-hqq")["session"] == {"session.qdq_matmulnbits_accuracy_level": "1"}
    assert _said(bundle, "ort-w4a4-gptq")["session"] == {"session.x64quantprecision": "1"}


def test_a_manifest_that_hides_the_simulation_is_refused(bundle: Bundle) -> None:
    """The id decides whether an engine is simulated; a manifest that says otherwise is not believed."""
    entry = replace(bundle.engine("ort-w4a4-gptq"), simulated=False)
    other = Bundle(bundle.folder, replace(bundle.manifest, engines={**bundle.manifest.engines, "ort-w4a4-gptq": entry}))
    with pytest.raises(RefusedError, match=r"expected=?.*simulated"):
        open_engine(other, "ort-w4a4-gptq")


def test_the_same_export_gives_the_same_files(recipe: Recipe, bundle: Bundle, tmp_path: Path) -> None:
    """GPTQ and bias correction depend on nothing but model, recipe and images."""
    engines = ("ort-w4a4-gptq", "ort-w4a4-bias-correction")
    again = export_bundle(replace(recipe, engines=engines), tmp_path / "again")
    for engine_id in engines:
        for tower in ("image", "text"):
            name = again.engine(engine_id).towers[tower]
            assert again.manifest.files[name].sha256 == bundle.manifest.files[name].sha256


@rtx
def test_tensorrt_rtx_builds_the_methods(recipe: Recipe, tmp_path: Path) -> None:
    """The builder takes the W8A8 graphs of GPTQ and bias correction with an FP16 rest."""
    engines = ("trtrtx-w8a8-gptq", "trtrtx-w8a8-bias-correction")
    made = export_bundle(replace(recipe, engines=engines, towers=("image",), batch=(1, 2, 4)), tmp_path / "bundle")
    for engine_id in engines:
        entry = made.engine(engine_id)
        assert entry.graphs["image"] == f"towers/image.{engine_id.removeprefix('trtrtx-')}-fp16.onnx"
        assert entry.towers["image"] == f"engines/{engine_id}/image.plan"
        assert (entry.precision, entry.simulated) == ("int8", False)


def test_graphs_only_leaves_plans_of_methods_to_the_target(recipe: Recipe, tmp_path: Path) -> None:
    """A bundle prepared for TensorRT holds the method's graph with an FP16 rest, and TensorRT 8's with an FP32 one."""
    made = export_bundle(replace(recipe, engines=("trt-w8a8-gptq",), towers=("image",), graphs_only=True), tmp_path / "bundle")
    entry = made.engine("trt-w8a8-gptq")
    assert (entry.towers, entry.graphs["image"]) == ({}, "towers/image.w8a8-gptq-fp16.onnx")
    assert "towers/image.w8a8-gptq.onnx" in made.manifest.files


@pytest.mark.parametrize("engine_id", ["ort-w4a8-gptq", "ort-w8a8-minmax", "ort-w8a8-bias-correction", "trt-w8a8-mse"])
def test_methods_need_calibration_images(recipe: Recipe, engine_id: str, tmp_path: Path) -> None:
    """Without any the export ends at once with one line, and nothing is made."""
    with pytest.raises(UsageError, match=f"{engine_id} needs calibration images") as caught:
        export_bundle(replace(recipe, engines=(engine_id,), calib="", graphs_only=True), tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def _write_product(path: Path, weight: np.ndarray) -> None:
    """Write ``y = relu(2 x @ weight - 1)``."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["x2"]),
        helper.make_node("MatMul", ["x2", "w"], ["m"], name="product"),
        helper.make_node("Sub", ["m", "one"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in zip("xy", weight.shape, strict=True)]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(weight.shape[1], np.float32), "one")]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.mark.parametrize("scheme", [Scheme("mse", rounding="gptq"), Scheme("entropy", BITS["W4A4"], "gptq", corrected=True)])
@pytest.mark.parametrize("empty", ["weights", "images"])
def test_zeros_are_safe(scheme: Scheme, empty: str, tmp_path: Path) -> None:
    """A layer of zeros, or images that are zero everywhere, give finite scales, and the bias alone comes out."""
    weight = np.zeros((4, 3), np.float32) if empty == "weights" else np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    images = np.zeros((8, 4), np.float32) if empty == "images" else np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    _write_product(tmp_path / "source.onnx", weight)
    observed = observe(tmp_path / "source.onnx", [images], tmp_path)
    write_scheme(observed, tmp_path / "g.onnx", scheme, inputs=lambda: iter([images]))
    np.testing.assert_array_equal(embed(tmp_path / "g.onnx", images), np.zeros((8, 3)))


@pytest.mark.parametrize("method", ["gptq", "bias-correction"])
def test_nan_in_calibration_is_one_line(method: str, tmp_path: Path) -> None:
    """An image that makes NaN ends every method before anything is written."""
    _write_product(tmp_path / "source.onnx", np.ones((4, 3), np.float32))
    images = np.ones((8, 4), np.float32)
    images[5, 2] = np.nan
    with pytest.raises(ExportError, match="NaN or infinity in x2") as caught:
        write_scheme(observe(tmp_path / "source.onnx", [images], tmp_path), tmp_path / f"{method}.onnx", Scheme("minmax"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]
