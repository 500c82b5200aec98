"""Attribution on bundles with planted causes: the stage where the loss was planted carries it, and every way it can end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_bundle import MODEL, make_toy_bundle, rewrite_manifest

from clipq.artifact import Bundle, EngineEntry, describe_file, write_manifest
from clipq.attribution.measure import shares, squared_error
from clipq.attribution.stages import Stage, plan_stages
from clipq.cli.main import main
from clipq.errors import UsageError
from clipq.export.pipeline import export_bundle
from clipq.files import write_json
from clipq.recipe import Recipe

DATA = ["--data", "synthetic:scenes", "--limit", "40", "-q"]
STATIC = "engines/ort-int8-static/image.onnx"


def _name_layer(graph: onnx.ModelProto) -> None:
    """Give the one product of the toy graph the name that its quantized form has too."""
    graph.graph.node[-1].name = "layer"


def _quantize(weight_step: float, activation_clip: float) -> Callable[[onnx.ModelProto], None]:
    """Return what makes the toy graph INT8 with steps of this size for its weight, and a grid of activations that ends at the clip."""

    def change(graph: onnx.ModelProto) -> None:
        weight = np.random.default_rng(0).standard_normal((48, MODEL.embed_dim)).astype(np.float32)
        steps = np.full(MODEL.embed_dim, weight_step, np.float32)
        values = {
            "integers": np.clip(np.rint(weight / steps), -127, 127).astype(np.int8),
            "steps": steps,
            "zeros": np.zeros(len(steps), np.int8),
            "scale": np.array(activation_clip / 127, np.float32),
            "zero": np.zeros((), np.int8),
        }
        del graph.graph.initializer[:], graph.graph.node[-1]
        graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
        graph.graph.node.extend(
            [
                helper.make_node("QuantizeLinear", ["flat", "scale", "zero"], ["q"], name="q"),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="d"),
                helper.make_node("DequantizeLinear", ["integers", "steps", "zeros"], ["w"], name="w", axis=1),
                helper.make_node("MatMul", ["d", "w"], ["embedding"], name="layer"),
            ]
        )

    return change


def _bundle(folder: Path, weight_step: float, activation_clip: float, **options: Any) -> Bundle:
    change = {"towers/image.fp32.onnx": _name_layer, STATIC: _quantize(weight_step, activation_clip)}
    return make_toy_bundle(folder, change=change, **options)


def _run(bundle: Path, folder: Path, *options: str) -> dict[str, Any]:
    assert main(["attribute", str(bundle), *DATA, "-o", str(folder), *options]) == 0
    found: dict[str, Any] = json.loads((folder / "attribution.json").read_text())
    schema = json.loads((files_of("clipq.attribution") / "attribution.schema.json").read_text())
    jsonschema.validate(found, schema)
    return found


def _shares(found: dict[str, Any]) -> dict[str, float]:
    return {key: part["share"] for key, part in found["loss"]["parts"].items()}


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ViT with both towers quantized; shared, so do not change it."""
    recipe = Recipe(tiny_checkpoint("vit"), ("torch-fp32", "ort-int8-static", "ort-int8-dynamic"), towers=("image", "text"))
    recipe = replace(recipe, calib="synthetic:scenes:calibration", calib_n=16)
    return export_bundle(recipe, tmp_path_factory.mktemp("attribution") / "bundle")


@pytest.mark.parametrize(
    ("weight_step", "activation_clip", "guilty", "innocent"),
    [(1.5, 3.0, "weights", "activations"), (0.03, 0.8, "activations", "weights")],
)
def test_the_planted_cause_carries_the_loss(tmp_path: Path, weight_step: float, activation_clip: float, guilty: str, innocent: str) -> None:
    """Coarse weights show as weights, clipped activations as activations; the other one has next to nothing of it."""
    found = _run(_bundle(tmp_path / "bundle", weight_step, activation_clip).folder, tmp_path / "out")
    parts = _shares(found)
    assert max(parts, key=parts.__getitem__) == guilty
    assert parts[guilty] > 0.95
    assert abs(parts[innocent]) < 0.05
    assert abs(parts["engine"]) < 0.01
    assert abs(found["loss"]["remainder"]["share"]) < 0.1
    assert [stage["key"] for stage in found["stages"]] == ["export", "half", "weights", "activations", "quantized", "engine", "default"]
    assert found["provenance"]["left_out"]["preprocess"] == "the bundle has no torch-fp32"
    moved = {stage["key"]: stage["to_before"]["disagreement"] for stage in found["stages"][1:]}
    assert moved[guilty] > moved[innocent]


def test_figures_of_a_stage_are_those_of_its_embeddings(tmp_path: Path) -> None:
    """Squared error, cosines, flips and accuracy of a stage, computed again from the toy's own formula."""
    from clipq.calib_data.pipeline import batches
    from clipq.calib_data.preprocess import Preprocess
    from clipq.evaluate.datasets import load_sets

    bundle = _bundle(tmp_path / "bundle", 1.5, 3.0)
    found = _run(bundle.folder, tmp_path / "out")
    ((images,), _) = (list(part.values()) for part in load_sets(bundle, ["synthetic:scenes"], [], limit=40, seed=0))
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    pixels = np.concatenate([batch.pixels for batch in batches(images.source, images.index, preprocess)])
    flat = pixels.reshape(40, 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(40, 48)
    weight = np.random.default_rng(0).standard_normal((48, MODEL.embed_dim)).astype(np.float32)
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (flat @ weight, flat @ (np.rint(weight / 1.5) * 1.5)))
    stage = next(stage for stage in found["stages"] if stage["key"] == "weights")["to_before"]
    assert stage["squared_error"]["image"] == pytest.approx(((first - second) ** 2).sum(axis=1).mean(), rel=1e-4)
    assert stage["squared_error"]["text"] == 0
    cosines = (first * second).sum(axis=1)
    expected = {"mean": cosines.mean(), "p1": np.percentile(cosines, 1), "min": cosines.min()}
    assert stage["cosine"] == pytest.approx(expected, rel=1e-5)
    flips = stage["flips"]
    assert stage["acc1"]["delta"] == pytest.approx(flips["wrong_to_correct"] - flips["correct_to_wrong"])
    assert stage["disagreement"] == pytest.approx(sum(flips.values()))


def test_a_planted_difference_of_pixels_is_the_first_stage(exported: Bundle, tmp_path: Path) -> None:
    """A bundle that resizes and normalises another way than its model loses at preprocessing, by far the most."""
    folder = tmp_path / "bundle"
    shutil.copytree(exported.folder, folder)
    changed = json.loads((folder / "preprocess.json").read_text()) | {"interpolation": "bilinear", "mean": [0.1, 0.9, 0.4]}
    write_json(folder / "preprocess.json", changed)
    files = {**exported.manifest.files, "preprocess.json": describe_file(folder, "preprocess.json")}
    write_manifest(folder, replace(exported.manifest, files=files))
    found = _run(folder, tmp_path / "out", "--no-fp16", "--limit", "16")
    assert found["pixels"]["images_differing"] == 1
    assert found["pixels"]["max_abs"] > 0.5
    parts = {key: part["squared_error"] for key, part in found["loss"]["parts"].items()}
    assert max(parts, key=parts.__getitem__) == "preprocess"


@pytest.mark.parametrize("engine", ["ort-int8-static", "ort-int8-dynamic"])
def test_an_exported_engine_with_both_towers(exported: Bundle, tmp_path: Path, engine: str) -> None:
    """All ten stages, pixels as open_clip's, parts and remainder sum to the whole, the text tower's loss is in the texts alone."""
    found = _run(exported.folder, tmp_path, "--engine", engine, "--limit", "24")
    assert found["pixels"] == {"max_abs": 0.0, "share_differing": 0.0, "images_differing": 0.0}
    stages = {stage["key"]: stage for stage in found["stages"]}
    assert list(stages) == ["reference", "preprocess", "export", "half", "weights", "activations", "text", "quantized", "engine", "default"]
    assert stages["text"]["to_before"]["squared_error"]["image"] == 0
    assert stages["text"]["to_before"]["squared_error"]["text"] > 0
    assert stages["weights"]["to_before"]["squared_error"]["text"] == 0
    assert stages["half"]["to_before"]["squared_error"]["both"] < 0.1 * stages["quantized"]["to_before"]["squared_error"]["both"]
    assert stages["export"]["to_before"]["squared_error"]["both"] < 1e-6
    loss = found["loss"]
    whole = sum(part["squared_error"] for part in (*loss["parts"].values(), loss["remainder"]))
    assert whole == pytest.approx(loss["total"])
    assert loss["total"] == stages["engine"]["to_first"]["squared_error"]["both"]
    assert not list(tmp_path.glob(".graphs*"))


def test_an_fp32_engine_has_no_quantization_to_blame(tmp_path: Path) -> None:
    """Of an FP32 engine the graph is all there is, and what is left out is told with its reason."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    found = _run(bundle.folder, tmp_path / "out", "--engine", "ort-fp32")
    assert [stage["key"] for stage in found["stages"]] == ["export", "engine"]
    assert found["loss"]["total"] < 1e-12
    assert found["provenance"]["left_out"]["quantization"] == "nothing of ort-fp32 is quantized"


def test_a_sigmoid_model(tmp_path: Path) -> None:
    """SigLIP's bias and its probabilities are taken as they are."""
    model = replace(MODEL, logit_bias=-10.0)
    found = _run(_bundle(tmp_path / "bundle", 1.5, 3.0, model=model).folder, tmp_path / "out", "--no-fp16")
    assert "half" not in [stage["key"] for stage in found["stages"]]
    assert found["stages"][0]["ece15"] != _run(_bundle(tmp_path / "other", 1.5, 3.0).folder, tmp_path / "out2")["stages"][0]["ece15"]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """Shards that are missing are computed again, the others stay, and the figures are those of one run."""
    bundle = _bundle(tmp_path / "bundle", 1.5, 3.0)
    found = _run(bundle.folder, tmp_path / "out")
    stores = sorted((tmp_path / "out" / "embeddings").iterdir())
    shutil.rmtree(stores[0])
    (stores[1] / "finished.json").unlink()
    kept = {path: path.stat().st_mtime_ns for store in stores[1:] for path in store.glob("*.npy")}
    again = _run(bundle.folder, tmp_path / "out", "--resume")
    assert again["stages"] == found["stages"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (stores[0] / "finished.json").is_file()


def test_unreadable_images_are_named_and_left_out(tmp_path: Path) -> None:
    """One broken file of 120 is skipped at every stage alike."""
    from clipq.calib_data.table import open_source

    source = open_source("synthetic:scenes")
    for sample in source.read(range(120)):
        path = tmp_path / "images" / source.classnames[sample.label] / f"{sample.id.replace('/', '_')}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.data)
    path.write_bytes(b"P6 broken")
    bundle = _bundle(tmp_path / "bundle", 1.5, 3.0)
    found = _run(bundle.folder, tmp_path / "out", "--data", f"imagefolder:{tmp_path / 'images'}", "--limit", "120")
    assert found["dataset"]["n"] == 119
    assert [name.endswith(path.name) for name in found["dataset"]["skipped"]] == [True]


def test_streams_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table on stdout, JSON alone with --json -, and a page without scripts that shows every part and escapes names."""
    bundle = _bundle(tmp_path / "bundle", 1.5, 3.0)
    arguments = ["attribute", str(bundle.folder), *DATA, "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("The loss of ort-int8-static, a squared embedding error of ")
    assert "weights alone (from export)" in streams.out
    assert streams.out.rstrip().endswith("attribution.html")
    assert streams.err == ""
    assert main([*arguments, "--json", "-", "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "attribution.json").read_text())
    page = (tmp_path / "out" / "attribution.html").read_text()
    assert page.count("<rect") == len(json.loads((tmp_path / "out" / "attribution.json").read_text())["loss"]["parts"]) + 2
    assert "<script" not in page
    assert "| weights alone (from export) |" in (tmp_path / "out" / "attribution.md").read_text()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--engine", "ort-int8-statik"], 2, "unknown engine"),
        (["--engine", "trt-int8"], 2, "unknown engine of this bundle"),
        (["--data", "synthetic:scenery"], 2, "Did you mean"),
        (["--limit", "0"], 2, "--limit"),
        (["--seed", "-1"], 2, "--seed"),
        (["--data", "synthetic:scenes-near"], 1, "no class names"),
        (["--engine", "ort-int8-dynamic"], 1, "holds nothing quantized"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str) -> None:
    """Wrong words end with 2, unusable data and graphs without the stage with 1, always in one line."""
    bundle = _bundle(tmp_path / "bundle", 1.5, 3.0)
    assert main(["attribute", str(bundle.folder), *DATA, "-o", str(tmp_path / "out"), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out" / "attribution.json").exists()


def test_images_of_the_calibration_are_refused(exported: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images that set the ranges cannot tell what the ranges cost."""
    arguments = ["attribute", str(exported.folder), "--data", "synthetic:scenes:calibration", "-o", str(tmp_path), "-q"]
    assert main(arguments) == 1
    assert "calibrat" in capsys.readouterr().err


def test_the_reference_itself_is_refused(exported: Bundle) -> None:
    """FP32 PyTorch is what engines are compared with."""
    with pytest.raises(UsageError, match="nothing to attribute"):
        plan_stages(exported, "torch-fp32")


def test_a_device_that_is_not_here_ends_with_four(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine for a GPU is refused before any work where there is none."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    entry = replace(bundle.manifest.engines["ort-fp32"], provider="CUDAExecutionProvider")
    bundle = rewrite_manifest(tmp_path / "bundle", {**bundle.manifest.engines, "ort-cuda-fp32": entry})
    assert main(["attribute", str(bundle.folder), *DATA, "-o", str(tmp_path / "out"), "--engine", "ort-cuda-fp32"]) == 4
    assert "ort-cuda-fp32 cannot run" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize(
    ("engine", "graph", "keys"),
    [
        ("ort-cuda-fp16", "fp16", ["half", "engine"]),
        ("trt-int8", "int8-fp16", ["half", "weights", "activations", "quantized", "engine"]),
        ("trt-fp8", "fp8-fp16", ["half", "weights", "activations", "quantized", "engine"]),
        ("trt-bf16", "bf16", ["half", "engine"]),
    ],
)
def test_stages_of_engines_in_half_precision(tmp_path: Path, engine: str, graph: str, keys: list[str]) -> None:
    """Half precision is a part of the loss where the engine computes in it, and there are integer kernels to tell apart on the CPU only."""
    from clipq.engines.table import ENGINES as KNOWN

    made = make_toy_bundle(tmp_path / "bundle")
    shutil.copy(made.folder / "towers/image.fp32.onnx", made.folder / f"towers/image.{graph}.onnx")
    kind, graphs = KNOWN[engine], {"image": f"towers/image.{graph}.onnx", "text": "towers/text.fp32.onnx"}
    towers = {} if kind.planned else graphs
    entry = EngineEntry(kind.runtime, kind.provider, kind.precision, towers, (), graphs if kind.planned else {})
    bundle = rewrite_manifest(made.folder, {**made.manifest.engines, engine: entry})
    plan = plan_stages(bundle, engine, no_torch="not here")
    assert [stage.key for stage in plan.stages] == ["export", *keys]
    stages = {stage.key: stage for stage in plan.stages}
    assert stages["half"].part
    assert stages["half"].text == "fp32"
    assert stages["engine"].before == keys[-2]
    assert plan.half == ("bf16" if graph == "bf16" else "fp16")


def test_an_altered_data_set_has_no_pixels_of_open_clip(exported: Bundle, tmp_path: Path) -> None:
    """Where a data set alters our pixels, PyTorch on the altered ones comes first, and every stage sees the same ones."""
    data = "corrupt-synth:contrast/5:synthetic:scenes"
    found = _run(exported.folder, tmp_path, "--data", data, "--limit", "8", "--no-fp16", "--engine", "ort-int8-dynamic")
    assert (found["stages"][0]["key"], found["pixels"]) == ("preprocess", None)
    assert "alters" in found["provenance"]["left_out"]["reference"]
    assert found["stages"][1]["to_before"]["squared_error"]["both"] < 1e-6


def test_only_the_defaults_are_without_exact_products(exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage behind the engine opens the deployed file of both towers, without the entry that every other stage has."""
    from clipq.attribution import towers as module
    from clipq.evaluate.embed import plan_work

    opened: list[tuple[Path, bool]] = []

    def spy(path: Path, *, exact_products: bool, **_options: Any) -> None:
        opened.append((path, exact_products))

    monkeypatch.setattr(module, "open_on_cpu", spy)
    plan = plan_stages(exported, "ort-int8-static")
    last = plan.stages[-1]
    assert (last.key, last.before, last.part, last.image, last.text) == ("default", "engine", False, "default", "default")
    with module.Towers(exported, plan, plan_work(1, 4), tmp_path) as towers:
        for tower in ("image", "text"):
            towers.open(tower, "default")
        for form in ("fp32", "weights", "activations", "quantized"):
            towers.open("image", form)
    assert opened[:2] == [(exported.folder / f"towers/{tower}.int8.onnx", False) for tower in ("image", "text")]
    assert all(exact for _, exact in opened[2:])


def test_shares_by_hand() -> None:
    """A ladder sums to the whole; measured alone leaves a remainder; what follows the engine is none of its loss; no loss has no shares."""
    rows = [("a", "", True), ("b", "a", True), ("w", "b", True), ("v", "b", True), ("q", "b", False), ("e", "q", True), ("d", "e", False)]
    stages = {key: Stage(key, key, "", before, "fp32", "fp32", part) for key, before, part in rows}
    found = shares(stages, {"a": 0.0, "b": 1.0, "w": 3.0, "v": 2.0, "q": 5.0, "e": 4.0, "d": 9.0})
    assert {key: part["share"] for key, part in found["parts"].items()} == {"b": 0.25, "w": 0.5, "v": 0.25, "e": -0.25}
    assert found["remainder"] == {"squared_error": 1.0, "share": 0.25}
    assert shares(stages, dict.fromkeys(stages, 0.0))["remainder"] == {"squared_error": 0.0, "share": None}


def test_squared_error_is_twice_what_the_cosine_lacks() -> None:
    """For unit vectors, whatever the lengths that came in."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 50, 8)).astype(np.float32)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert squared_error(a, 3 * b) == pytest.approx(2 - 2 * cosine.mean(), rel=1e-5)
    assert squared_error(a, 2 * a) == 0


def test_graphs_of_an_engine_in_half_precision(exported: Bundle, tmp_path: Path) -> None:
    """Every stage of an INT8 graph with an FP16 rest runs on the CPU; the rounded graph lies near the one that rounds nothing but Q/DQ."""
    from clipq.attribution.towers import Towers, form_facts
    from clipq.evaluate.embed import plan_work
    from clipq.export.typed.half import to_half

    folder = tmp_path / "bundle"
    shutil.copytree(exported.folder, folder)
    to_half(folder / "towers/image.int8.onnx", folder / "towers/image.int8-fp16.onnx", "fp16")
    graphs = {"image": "towers/image.int8-fp16.onnx", "text": "towers/text.fp32.onnx"}
    entry = EngineEntry("tensorrt", "cuda", "int8", {}, ("image",), graphs)
    files = {**exported.manifest.files, graphs["image"]: describe_file(folder, graphs["image"])}
    write_manifest(folder, replace(exported.manifest, files=files, engines={**exported.manifest.engines, "trt-int8": entry}))
    bundle = Bundle.open(folder)
    pixels = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    found = {}
    for engine in ("ort-int8-static", "trt-int8"):
        plan = plan_stages(bundle, engine)
        (tmp_path / engine).mkdir()
        with Towers(bundle, plan, plan_work(1, 4), tmp_path / engine) as towers:
            forms = [form for form in plan.forms("image") if form not in {"reference", "torch", "engine", "default"}]
            found[engine] = {form: towers.open("image", form)(pixels) for form in forms}
    assert list(found["trt-int8"]) == ["fp32", "half", "weights", "activations", "quantized"]
    plain = found["trt-int8"]["fp32"]
    away = {form: squared_error(plain, rows) for form, rows in found["trt-int8"].items()}
    assert away["half"] < 0.1 * away["quantized"]
    assert away["quantized"] == pytest.approx(squared_error(plain, found["ort-int8-static"]["quantized"]), rel=0.5)
    assert not np.array_equal(found["trt-int8"]["quantized"], found["ort-int8-static"]["quantized"])
    assert form_facts(bundle, plan, "image", "quantized")["stage"] == "quantized"
