"""A whole export: the layout of the bundle, its lineage, its engines, and every way it can be interrupted or misused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipq.artifact import Bundle, parse_manifest
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import read_calibration_list
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines import closeness
from clipq.engines.golden import pictures_of
from clipq.engines.table import open_engine
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.errors import BusyError, DataError, ExportError, RefusedError, UsageError
from clipq.evaluate.verify.verify import VerifyOptions, verify_bundle
from clipq.export.pipeline import complete, export_bundle
from clipq.files import locked, sha256_file
from clipq.machine import describe_code
from clipq.recipe import Recipe

ENGINES = ("torch-fp32", "ort-fp32", "ort-int8-dynamic", "ort-int8-static")
MODELS = Path(__file__).resolve().parents[2] / ".." / "shared" / "models"


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Callable[[str], str]) -> Recipe:
    """The tiny ViT with every engine, calibrated on a few drawn scenes."""
    return Recipe(tiny_checkpoint("vit"), ENGINES, calib="synthetic:scenes:calibration", calib_n=16, calib_method="minmax")


@pytest.fixture(scope="module")
def bundle(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; shared, so do not change it."""
    return export_bundle(recipe, tmp_path_factory.mktemp("bundle") / "new")


def test_the_layout_is_the_contract(bundle: Bundle) -> None:
    """Every file has its place, the manifest names each, and nothing else lies about."""
    expected = {
        *("preprocess.json", "tokenizer/tokenizer.json", "tokenizer/config.json", "golden.npz", "calibration.csv"),
        *(*(f"golden/{number}.jpg" for number in range(6)), "golden/6.png", "golden/pictures.json", "golden/pictures.npz"),
        *("towers/image.fp32.onnx", "towers/text.fp32.onnx"),
        *("towers/image.int8-dynamic.onnx", "towers/image.int8.onnx"),
        *(f"engines/{engine_id}/engine.json" for engine_id in ENGINES),
    }
    assert set(bundle.manifest.files) == expected
    present = {str(path.relative_to(bundle.folder)) for path in bundle.folder.rglob("*") if path.is_file()}
    assert present == expected | {"manifest.json", ".lock"}
    bundle.verify()


def test_the_manifest_tells_what_scoring_needs(bundle: Bundle, recipe: Recipe) -> None:
    """Model, recipe with its hash, versions, machine, and how well the towers match PyTorch."""
    manifest = bundle.manifest
    assert (manifest.model.id, manifest.model.embed_dim, manifest.model.context_length) == (recipe.model, 24, 77)
    assert manifest.model.logit_scale == pytest.approx(1 / 0.07)
    assert manifest.recipe_sha256 == recipe.sha256()
    assert manifest.recipe["calib_n"] == 16
    assert set(manifest.recipe["parity"]) == {"image", "text"}
    assert manifest.recipe["parity"]["text"]["min_cosine"] > 0.999999
    assert {"clipq", "torch", "onnx", "onnxruntime"} <= set(manifest.versions)
    assert manifest.device["cores"] >= 1


def test_the_manifest_tells_where_all_came_from(bundle: Bundle, recipe: Recipe) -> None:
    """Model, calibration images by digest, and code, as an older manifest does not: it opens all the same."""
    told = bundle.manifest.provenance
    (_, *rows) = (bundle.folder / "calibration.csv").read_text().splitlines()
    assert told["model"] == {"source": "local"}
    assert (told["data"]["calibration"]["data"], told["data"]["calibration"]["images"], len(rows)) == (recipe.calib, 16, 16)
    assert len(told["data"]["calibration"]["digest"]) == 64
    assert told["code"] == describe_code()
    value = json.loads((bundle.folder / "manifest.json").read_text())
    del value["provenance"]
    assert parse_manifest(json.dumps(value).encode(), bundle.folder).provenance == {}


def test_every_file_names_what_it_was_made_from(bundle: Bundle) -> None:
    """Towers come from the checkpoint, quantized graphs from towers."""
    files = bundle.manifest.files
    assert files["towers/image.fp32.onnx"].parent == bundle.manifest.model.state_sha256
    for kind in ("int8-dynamic", "int8"):
        assert files[f"towers/image.{kind}.onnx"].parent == files["towers/image.fp32.onnx"].sha256


def test_the_text_tower_stays_fp32_and_is_shared(bundle: Bundle) -> None:
    """By default only the image tower is quantized, and the text graph is one file for all."""
    for engine_id, graph in (("ort-int8-dynamic", "int8-dynamic"), ("ort-int8-static", "int8")):
        entry = bundle.engine(engine_id)
        assert (entry.precision, entry.quantized, entry.provider) == ("int8", ("image",), "CPUExecutionProvider")
        assert entry.towers == {"image": f"towers/image.{graph}.onnx", "text": "towers/text.fp32.onnx"}
    assert bundle.engine("torch-fp32").towers == {}


def test_engine_json_says_how_it_was_made(bundle: Bundle) -> None:
    """Which nodes are INT8, by which method, and how far the result is from PyTorch."""
    said = json.loads(bundle.file("engines/ort-int8-static/engine.json").read_text())
    assert (said["engine"], said["precision"], said["quantized"]) == ("ort-int8-static", "int8", ["image"])
    assert said["session"] == {"session.x64quantprecision": "1"}
    assert "session" not in json.loads(bundle.file("engines/ort-fp32/engine.json").read_text())
    assert said["graphs"]["towers/image.int8.onnx"]["images"] == 16
    assert 0.9 < said["graphs"]["towers/image.int8.onnx"]["parity"]["min_centred_cosine"] < 1


def test_every_engine_reproduces_the_golden_tensors(bundle: Bundle) -> None:
    """FP32 engines to rounding, INT8 engines nearly, all through the bundle alone."""
    with np.load(bundle.file("golden.npz"), allow_pickle=False) as golden:
        inputs = {"image": golden["pixels"], "text": golden["tokens"]}
        outputs = {"image": golden["image_embedding"], "text": golden["text_embedding"]}
    assert (inputs["image"].shape, inputs["text"].shape) == ((8, 3, 32, 32), (8, 77))
    for engine_id in ENGINES:
        with open_engine(bundle, engine_id, threads=1) as engine:
            np.testing.assert_allclose(engine.run("text", inputs["text"]), outputs["text"], atol=1e-5)
            tolerance = 0.3 if "int8" in engine_id else 1e-5
            np.testing.assert_allclose(engine.run("image", inputs["image"]), outputs["image"], atol=tolerance)


def test_golden_pictures_have_open_clips_pixels_and_pytorchs_embeddings(bundle: Bundle) -> None:
    """Decoded anew, each picture has the pixels that open_clip's transform makes of it and our preprocessing too, bit for bit."""
    pictures, preprocess = pictures_of(bundle), Preprocess.from_file(bundle.file("preprocess.json"))
    checkpoint = load_checkpoint(bundle.manifest.model.id)
    for name, pixels in zip(pictures.names, pictures.pixels, strict=True):
        picture = Image.open(bundle.file(name))
        np.testing.assert_array_equal(checkpoint.transform()(picture), pixels, strict=True)
        np.testing.assert_array_equal(preprocess.normalise(preprocess.pixels_u8(picture)[None])[0], pixels, strict=True)
    np.testing.assert_allclose(checkpoint.embed("image", pictures.pixels), pictures.image_embedding, atol=1e-6)


def test_an_export_verifies(bundle: Bundle) -> None:
    """Where it was made, every engine is within its limits, PyTorch agrees with itself, and the pixels are the same."""
    found = verify_bundle(bundle, VerifyOptions(bench_seconds=0))
    assert found["problems"] == []
    assert found["preprocessing"]["identical"] is True
    assert list(found["engines"]) == list(ENGINES)
    for engine_id, entry in found["engines"].items():
        assert all(tower["limits"] for tower in entry["golden"]["towers"].values()), engine_id
    assert found["engines"]["torch-fp32"]["golden"]["top1_agreement"] == 1


def test_preprocessing_tokenizer_and_calibration_can_be_read_back(bundle: Bundle) -> None:
    """The readers of the other rooms understand what was written."""
    assert Preprocess.from_file(bundle.file("preprocess.json")).size == (32, 32)
    assert len(read_calibration_list(bundle.file("calibration.csv"))) == 16
    config = Tokenizer.from_files(bundle.file("tokenizer/tokenizer.json").parent).config
    assert (config.context_length, config.end_id, config.pooling) == (77, 49407, "argmax")


def test_two_exports_have_the_same_graphs(bundle: Bundle, recipe: Recipe, tmp_path: Path) -> None:
    """Everything that computes is reproducible to the byte."""
    again = export_bundle(recipe, tmp_path / "again").manifest.files
    for name, entry in bundle.manifest.files.items():
        if not name.endswith("engine.json"):
            assert again[name].sha256 == entry.sha256, name


def test_both_towers_can_be_quantized(recipe: Recipe, tmp_path: Path) -> None:
    """Text calibration uses captions made from the class names of the calibration data."""
    made = export_bundle(replace(recipe, engines=("ort-int8-static",), towers=("text", "image")), tmp_path / "both")
    assert list(made.manifest.engines) == ["torch-fp32", "ort-int8-static"]
    assert made.engine("ort-int8-static").quantized == ("image", "text")
    said = json.loads(made.file("engines/ort-int8-static/engine.json").read_text())
    assert said["graphs"]["towers/text.int8.onnx"]["images"] > 0
    with open_engine(made, "ort-int8-static", threads=1) as engine:
        assert engine.run("text", np.full((1, 77), 49407, np.int32)).shape == (1, 24)


def test_weights_in_sibling_files_are_named_too(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model too large for one file is as well guarded as a small one."""
    monkeypatch.setattr("clipq.export.quantize.graph.EXTERNAL_DATA_BYTES", 1000)
    made = export_bundle(replace(recipe, engines=("ort-fp32",)), tmp_path / "large")
    assert {"towers/image.fp32.onnx.data", "towers/text.fp32.onnx.data"} <= set(made.manifest.files)
    with open_engine(made, "ort-fp32", threads=1) as engine:
        assert engine.run("image", np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 24)
    (made.folder / "towers/image.fp32.onnx.data").write_bytes(b"other")
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        open_engine(Bundle.open(made.folder), "ort-fp32")


def test_random_weights_are_said_loudly(tiny_architecture: str, tmp_path: Path) -> None:
    """Nobody takes the accuracy of a random model for a result."""
    made = export_bundle(Recipe(f"{tiny_architecture}:random", ("torch-fp32",)), tmp_path / "random")
    assert made.manifest.model.id.endswith(":random")
    assert "RANDOM WEIGHTS" in made.manifest.recipe["warning"]
    assert "calibration.csv" not in made.manifest.files


def test_a_tower_that_does_not_match_is_not_shipped(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate fails closed: no manifest, no graph."""
    monkeypatch.setattr(closeness, "MIN_COSINE", 1.1)
    with pytest.raises(ExportError, match=r"image\.fp32\.onnx does not match PyTorch and was deleted"):
        export_bundle(recipe, tmp_path / "bad")
    assert not (tmp_path / "bad" / "manifest.json").exists()
    assert not list((tmp_path / "bad" / "towers").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": ("ort-int8-statik",)}, "unknown engine.*Did you mean 'ort-int8-static'"),
        ({"calib": ""}, "ort-int8-static needs calibration images.*--calib"),
        ({"calib": "synthetik:scenes"}, "unknown kind of data id.*Did you mean 'synthetic'"),
        ({"calib": "imagefolder:/no/such/folder"}, "/no/such/folder"),
        ({"model": "local-dir:/no/such/model"}, "no open_clip model at /no/such/model"),
        ({"model": "VitB32"}, "incomplete model id"),
    ],
)
def test_a_wrong_name_leaves_no_folder(recipe: Recipe, tmp_path: Path, change: dict[str, object], message: str) -> None:
    """Every name is checked before anything is made."""
    with pytest.raises((UsageError, DataError), match=message):
        export_bundle(replace(recipe, **change), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_recipe_is_completed() -> None:
    """The baseline is always there, once; the demo brings its calibration data; unused calibration data is dropped."""
    assert complete(Recipe("demo")).calib == "synthetic:scenes:calibration"
    assert complete(Recipe("demo")).model == "demo:under"
    assert complete(Recipe("demo", ("ort-fp32", "torch-fp32", "ort-fp32"), calib="x")).engines == ("torch-fp32", "ort-fp32")
    assert complete(Recipe("demo", ("ort-fp32",), calib="x")).calib == ""


def test_two_runs_at_once_do_not_mix(recipe: Recipe, tmp_path: Path) -> None:
    """The second one is told so and changes nothing."""
    with locked(tmp_path), pytest.raises(BusyError, match="in use by another clipq run"):
        export_bundle(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def finished(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the finished bundle."""
    return shutil.copytree(bundle.folder, tmp_path / "copy")


def test_a_finished_bundle_is_not_overwritten(finished: Path, recipe: Recipe) -> None:
    """Neither by the same recipe nor, with --resume, by another one; the difference is named."""
    before = sha256_file(finished / "manifest.json")
    with pytest.raises(UsageError, match="already holds this bundle"):
        export_bundle(recipe, finished)
    with pytest.raises(UsageError, match="another recipe; found calib_n 16; expected calib_n 8"):
        export_bundle(replace(recipe, calib_n=8), finished, resume=True)
    assert sha256_file(finished / "manifest.json") == before


def test_resuming_a_finished_bundle_checks_it(finished: Path, recipe: Recipe) -> None:
    """Whole it is accepted as it is; damaged it is refused."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    export_bundle(recipe, finished, resume=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    graph = finished / "towers" / "image.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        export_bundle(recipe, finished, resume=True)


def test_other_weights_behind_the_same_id_are_noticed(
    bundle: Bundle, recipe: Recipe, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that was trained further is another model."""
    from clipq.export import pipeline

    real = pipeline.load_checkpoint
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda model_id: replace(real(model_id), state_sha256="f" * 64))
    with pytest.raises(UsageError, match="was made from other weights"):
        export_bundle(recipe, finished, resume=True)


_DIE = """
import os, resource, signal, sys
from pathlib import Path
from clipq.cli.main import export_main
import clipq.export.onnx as onnx_export
publish = onnx_export.publish
def die(written, target):
    if target.name.startswith("text"):
        os.kill(os.getpid(), signal.SIGKILL)
    publish(written, target)
if sys.argv[1] == "kill":
    onnx_export.publish = die
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
sys.exit(export_main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", ["kill", "full"])
def test_an_interrupted_export_resumes(bundle: Bundle, recipe: Recipe, tmp_path: Path, how: str) -> None:
    """Killed with -9, or out of space, in the middle of the text tower: what is finished stays, and the result is the same."""
    folder = tmp_path / "bundle"
    options = ["--engines", ",".join(ENGINES), "--calib", recipe.calib, "--calib-n", "16", "--calib-method", "minmax"]
    command = [sys.executable, "-c", _DIE, how, recipe.model, "-o", str(folder), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == (-9 if how == "kill" else 1), ended.stderr
    if how == "full":
        assert ended.stderr.strip().splitlines()[-1].startswith("clipq: cannot write")
        assert "--resume" in ended.stderr
    image = folder / "towers" / "image.fp32.onnx"
    made = image.stat().st_mtime_ns
    assert not (folder / "towers" / "text.fp32.onnx").exists()
    with pytest.raises(UsageError, match="unfinished export"):
        export_bundle(recipe, folder)
    resumed = export_bundle(recipe, folder, resume=True)
    resumed.verify()
    assert image.stat().st_mtime_ns == made
    assert {path.name for path in folder.rglob(".*")} == {".lock"}
    assert not (folder / "stages.json").exists()
    graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    assert [resumed.manifest.files[name] for name in graphs] == [bundle.manifest.files[name] for name in graphs]


@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="the photograph models are not beside the project")
def test_a_trained_model_exports(tmp_path: Path) -> None:
    """Trained weights pass the gate with room to spare, and INT8 stays close."""
    model = f"local-dir:{(MODELS / 'photo-base').resolve()}"
    recipe = Recipe(model, ("ort-fp32", "ort-int8-static"), calib="synthetic:scenes:calibration", calib_n=16)
    made = export_bundle(recipe, tmp_path / "photo")
    for figures in made.manifest.recipe["parity"].values():
        assert figures["max_abs_error"] < 1e-5 * figures["max_abs_output"]
        assert figures["min_centred_cosine"] > 1 - 1e-6
    said = json.loads(made.file("engines/ort-int8-static/engine.json").read_text())
    assert said["graphs"]["towers/image.int8.onnx"]["parity"]["min_centred_cosine"] > 0.98
