"""The ONNX Runtime engine: what it computes, and everything it refuses before and after computing."""

from __future__ import annotations

import importlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_bundle import CONTEXT, DIM, MODEL, SIZE, image_graph, make_toy_bundle, rewrite_manifest

from clipq.artifact import Bundle
from clipq.engines.onnxruntime.run import OrtEngine
from clipq.engines.table import ENGINES, open_engine
from clipq.errors import EngineError, MissingRuntimeError, RefusedError, UsageError

IMAGE = "towers/image.fp32.onnx"
PIXELS = np.random.default_rng(0).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(0, 9, (4, CONTEXT)).astype(np.int32)


def test_values_are_those_of_numpy(tmp_path: Path) -> None:
    """Both towers compute what their graphs say, in FP32, and tell which provider did."""
    bundle = make_toy_bundle(tmp_path)
    pooled = PIXELS.reshape(5, 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(5, 48)
    graph = {tensor.name: numpy_helper.to_array(tensor) for tensor in image_graph().graph.initializer}
    with open_engine(bundle, "ort-fp32", threads=1) as engine:
        np.testing.assert_allclose(engine.run("image", PIXELS), pooled @ graph["matrix"], atol=1e-5)
        texts = engine.run("text", TOKENS)
        assert engine.provider == "CPUExecutionProvider"
    table = numpy_helper.to_array(onnx.load(str(tmp_path / "towers/text.fp32.onnx")).graph.initializer[0])
    np.testing.assert_allclose(texts, table[TOKENS].mean(axis=1), atol=1e-6)


def test_several_threads_may_run_it(tmp_path: Path) -> None:
    """Batches run at the same time give what they give one after another."""
    batches = [np.random.default_rng(i).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32) for i in range(40)]
    with open_engine(make_toy_bundle(tmp_path), "ort-fp32", threads=1) as engine, ThreadPoolExecutor(4) as pool:
        alone = [engine.run("image", batch) for batch in batches]
        together = list(pool.map(lambda batch: engine.run("image", batch), batches))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("shares", [True, False])
def test_threads_and_spinning_are_set(tmp_path: Path, *, shares: bool) -> None:
    """The thread count is the one that was asked for, and an engine that shares the cores does not spin."""
    with open_engine(make_toy_bundle(tmp_path), "ort-fp32", threads=2, shares_cores=shares) as engine:
        options = engine._sessions["image"].get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == ("0" if shares else "1")
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@pytest.mark.parametrize(
    ("tower", "batch"),
    [("image", PIXELS.astype(np.float64)), ("image", PIXELS[:, :, :8]), ("image", PIXELS[0]), ("text", TOKENS.astype(np.int64))],
    ids=["dtype", "size", "no batch", "int64 tokens"],
)
def test_wrong_input_is_an_error(tmp_path: Path, tower: str, batch: np.ndarray) -> None:
    """Names, dtypes and shapes are checked before inference."""
    with (
        open_engine(make_toy_bundle(tmp_path), "ort-fp32") as engine,
        pytest.raises(EngineError, match=f"wrong input for the {tower} tower"),
    ):
        engine.run(tower, batch)  # type: ignore[arg-type]


def _poison(graph: onnx.ModelProto) -> None:
    matrix = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    matrix[3, 2] = np.nan
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(matrix, "matrix"))


def test_nan_in_weights_is_an_error(tmp_path: Path) -> None:
    """An output that is not finite is never a result."""
    bundle = make_toy_bundle(tmp_path, change={IMAGE: _poison})
    with open_engine(bundle, "ort-fp32") as engine, pytest.raises(EngineError, match=r"NaN or infinity .* 5 of 5 rows"):
        engine.run("image", PIXELS)


def _other_model(graph: onnx.ModelProto) -> None:
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, {"clipq.model": "ViT-L-14:openai", "clipq.state_sha256": MODEL.state_sha256})


def test_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    """A graph that says it is of another model does not run, even where the manifest names its hash."""
    bundle = make_toy_bundle(tmp_path, change={IMAGE: _other_model})
    with (
        pytest.raises(RefusedError, match=r"engine of another model; found clipq.model 'ViT-L-14:openai'"),
        open_engine(bundle, "ort-fp32"),
    ):
        pass


def _rename_output(graph: onnx.ModelProto) -> None:
    graph.graph.node[-1].output[0] = graph.graph.output[0].name = "features"


def _half_width(graph: onnx.ModelProto) -> None:
    matrix = numpy_helper.to_array(graph.graph.initializer[0])[:, : DIM // 2]
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(matrix), "matrix"))
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = DIM // 2


def _double(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    graph.graph.node[0].input[0] = "cast"
    graph.graph.node.insert(0, helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT))


def _other_size(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = SIZE * 2
    matrix = np.tile(numpy_helper.to_array(graph.graph.initializer[0]), (2, 1))
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(matrix, "matrix"))


@pytest.mark.parametrize("change", [_rename_output, _half_width, _double, _other_size])
def test_wrong_signature_is_an_error(tmp_path: Path, change: object) -> None:
    """Input and output names, types and shapes must be those of the manifest before anything runs."""
    bundle = make_toy_bundle(tmp_path, change={IMAGE: change})  # type: ignore[dict-item]
    with pytest.raises(EngineError, match="other inputs or outputs"), open_engine(bundle, "ort-fp32"):
        pass


def test_truncated_graph_is_one_clear_error(tmp_path: Path) -> None:
    """A graph that was cut off before it was hashed gives one line that names the file."""
    bundle = make_toy_bundle(tmp_path)
    path = tmp_path / IMAGE
    path.write_bytes(path.read_bytes()[:-200])
    bundle = rewrite_manifest(tmp_path, bundle.manifest.engines)
    with pytest.raises(EngineError, match=r"cannot load .*image.fp32.onnx") as caught, open_engine(bundle, "ort-fp32"):
        pass
    assert "\n" not in str(caught.value)


def test_changed_file_is_refused(tmp_path: Path) -> None:
    """A file whose hash is not the manifest's is never loaded."""
    bundle = make_toy_bundle(tmp_path)
    (tmp_path / IMAGE).write_bytes((tmp_path / IMAGE).read_bytes()[:-1] + b"x")
    with pytest.raises(RefusedError, match="not the file the manifest names"):
        open_engine(bundle, "ort-fp32")


def test_external_data_is_loaded_and_checked(tmp_path: Path) -> None:
    """Weights in a file of their own are found beside the graph, and refused when they were changed."""
    bundle = make_toy_bundle(tmp_path)
    with open_engine(bundle, "ort-fp32") as engine:
        expected = engine.run("image", PIXELS)
    onnx.save(image_graph(), str(tmp_path / IMAGE), save_as_external_data=True, location="image.fp32.onnx.data", size_threshold=0)
    bundle = rewrite_manifest(tmp_path, bundle.manifest.engines)
    with open_engine(bundle, "ort-fp32") as engine:
        np.testing.assert_array_equal(engine.run("image", PIXELS), expected)
    data = tmp_path / f"{IMAGE}.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(RefusedError, match=r"image.fp32.onnx.data is not the file"):
        open_engine(Bundle.open(tmp_path), "ort-fp32")


def test_missing_onnxruntime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the line says what to install, exit code 4."""
    bundle = make_toy_bundle(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(MissingRuntimeError, match=r"pip install 'clipq\[cpu\]'"):
        open_engine(bundle, "ort-fp32")


def test_unknown_engines_are_usage_errors(tmp_path: Path) -> None:
    """A name nobody knows, and one this bundle lacks, each suggest the nearest."""
    bundle = make_toy_bundle(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'ort-fp32'"):
        open_engine(bundle, "ort-fp23")
    bundle = rewrite_manifest(tmp_path, {"ort-fp32": bundle.manifest.engines["ort-fp32"]})
    with pytest.raises(UsageError, match="unknown engine of this bundle 'ort-int8-static'"):
        open_engine(bundle, "ort-int8-static")


def test_table_names_classes_that_exist() -> None:
    """Every line of the table leads to a class of the shape the table promises."""
    for kind in ENGINES.values():
        if kind.planned:
            continue
        module, name = kind.loader.split(":")
        assert callable(getattr(importlib.import_module(module), name).from_bundle)
    assert ENGINES["ort-fp32"].loader.endswith(OrtEngine.__name__)


def test_failure_inside_the_runtime_is_one_line(tmp_path: Path) -> None:
    """An error that ONNX Runtime raises while computing (a token outside the vocabulary) is an EngineError of one line."""
    with (
        open_engine(make_toy_bundle(tmp_path), "ort-fp32") as engine,
        pytest.raises(EngineError, match="ort-fp32 failed in its text tower") as caught,
    ):
        engine.run("text", np.full((1, CONTEXT), 10**6, np.int32))
    assert "\n" not in str(caught.value)
