"""Engines that run a plan: built here with TensorRT-RTX, prepared for the target, rebuilt there, and every refusal on the way."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipq.artifact import Bundle, describe_file
from clipq.engines.table import ENGINES
from clipq.engines.tensorrt.build import BuildOptions
from clipq.engines.tensorrt.device import DeviceFacts
from clipq.errors import ExportError, MissingRuntimeError, RefusedError, UsageError
from clipq.export.pipeline import export_bundle
from clipq.export.plans import plan_sources, target_device
from clipq.export.rebuild import rebuild_bundle
from clipq.files import sha256_file
from clipq.machine import describe_code
from clipq.recipe import Recipe

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="needs clipq[tensorrt-rtx]")
OPTIONS = BuildOptions(batch=(1, 4, 8))


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Callable[[str], str]) -> Recipe:
    """The tiny ViT for FP16 and INT8 plans, calibrated on a few drawn scenes."""
    engines = ("trtrtx-fp16", "trtrtx-int8")
    return Recipe(tiny_checkpoint("vit"), engines, calib="synthetic:scenes:calibration", calib_n=8, calib_method="minmax", batch=(1, 4, 8))


@pytest.fixture(scope="module")
def graphs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle prepared for a target with TensorRT; shared, so do not change it."""
    engines = ("trt-fp16", "trt-int8", "trtrtx-fp16", "trtrtx-int8")
    return export_bundle(replace(recipe, engines=engines, graphs_only=True), tmp_path_factory.mktemp("graphs") / "bundle")


@rtx
def test_export_builds_plans_and_names_their_hashes(recipe: Recipe, tmp_path: Path) -> None:
    """Plans come from the real builder, lie in their engine's folder with a log, and say how they were built."""
    bundle = export_bundle(recipe, tmp_path / "bundle")
    bundle.verify()
    fp16, int8 = bundle.engine("trtrtx-fp16"), bundle.engine("trtrtx-int8")
    assert fp16.towers == {"image": "engines/trtrtx-fp16/image.plan", "text": "engines/trtrtx-fp16/text.plan"}
    assert int8.towers == {"image": "engines/trtrtx-int8/image.plan", "text": fp16.towers["text"]}, "the FP32 text plan is built once"
    assert int8.graphs == {"image": "towers/image.int8-fp16.onnx", "text": "towers/text.fp32.onnx"}
    assert (fp16.quantized, int8.quantized, int8.provider) == ((), ("image",), "cuda")
    said = json.loads(bundle.file("engines/trtrtx-int8/engine.json").read_text())
    assert said["plans"]["image"]["size_bytes"] == bundle.manifest.files[int8.towers["image"]].size_bytes > 1000
    assert bundle.manifest.files[int8.towers["image"]].parent == bundle.manifest.files[int8.graphs["image"]].sha256
    assert "engines/trtrtx-int8/image.build.log" in bundle.manifest.files
    assert sum(said["work"]["image"].values()) == sum(said["asked"]["image"].values()) > 0
    assert said["asked"]["image"]["int8"] > 0


def test_graphs_only_leaves_the_plans_to_the_target(graphs: Bundle) -> None:
    """Nothing that runs is claimed, every graph is there, and TensorRT 8's graph is among them."""
    for engine_id in ("trt-fp16", "trt-int8"):
        entry = graphs.engine(engine_id)
        assert entry.towers == {}
        assert all(name in graphs.manifest.files for name in entry.graphs.values())
    assert graphs.manifest.files["towers/image.int8-fp16.onnx"].parent == graphs.manifest.files["towers/image.int8.onnx"].sha256
    assert not [name for name in graphs.manifest.files if name.endswith(".plan")]


def test_tensorrt_8_builds_from_the_graph_of_opset_17(graphs: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 10 takes the FP16-typed QDQ graph, version 8 the FP32-typed one it was made from."""
    kind, named = ENGINES["trt-int8"], graphs.engine("trt-int8").graphs
    for strongly_typed, image in ((False, "towers/image.int8.onnx"), (True, "towers/image.int8-fp16.onnx")):
        api = type("Api", (), {"strongly_typed": strongly_typed})()
        monkeypatch.setattr("clipq.export.plans.load_api", lambda _runtime, api=api: api)
        assert plan_sources(kind, named) == {"image": image, "text": "towers/text.fp32.onnx"}
        assert plan_sources(ENGINES["trt-fp16"], {"image": "towers/image.fp16.onnx"}) == {"image": "towers/image.fp16.onnx"}


@rtx
def test_rebuild_makes_a_new_bundle_that_names_its_parent(graphs: Bundle, tmp_path: Path) -> None:
    """The target's bundle has the plans, the parent's hash and the same graphs; resuming it only checks it."""
    engines = ("trtrtx-fp16", "trtrtx-int8")
    made = rebuild_bundle(graphs, engines, tmp_path / "here", OPTIONS)
    made.verify()
    assert made.manifest.parent_sha256 == sha256_file(graphs.folder / "manifest.json")
    assert set(made.manifest.engines) == {"torch-fp32", *engines}
    assert made.manifest.recipe["rebuilt"] == {"engines": list(engines), "batch": [1, 4, 8], "compatibility": [], "for": []}
    assert made.manifest.provenance == {**graphs.manifest.provenance, "rebuilt_by": describe_code()}
    assert made.engine("trtrtx-int8").towers["image"] == "engines/trtrtx-int8/image.plan"
    assert made.manifest.files["towers/image.fp32.onnx"] == graphs.manifest.files["towers/image.fp32.onnx"]
    before = sha256_file(tmp_path / "here" / "manifest.json")
    rebuild_bundle(graphs, engines, tmp_path / "here", OPTIONS, resume=True)
    assert sha256_file(tmp_path / "here" / "manifest.json") == before


@rtx
def test_rebuild_needs_neither_torch_nor_onnx(graphs: Bundle, tmp_path: Path) -> None:
    """On the target the command runs where both are missing."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'open_clip'): sys.modules[name] = None\n"
        "from clipq.cli.main import export_main\n"
        f"sys.argv = ['clipq-export', '--rebuild', {str(graphs.folder)!r}, '-o', {str(tmp_path / 'here')!r}, '--engines', 'trtrtx-fp16']\n"
        "sys.exit(export_main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Bundle.open(tmp_path / "here").engine("trtrtx-fp16").towers["image"] == "engines/trtrtx-fp16/image.plan"


@rtx
def test_rebuild_goes_on_after_an_interruption(graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built before the interruption is not built again."""
    from clipq.export import plans

    built: list[str] = []
    real = plans.build_plan

    def build_once(runtime: str, graph: Path, plan: Path, precision: str, options: BuildOptions) -> dict[str, object]:
        if built:
            raise KeyboardInterrupt
        built.append(plan.name)
        return real(runtime, graph, plan, precision, options)

    monkeypatch.setattr(plans, "build_plan", build_once)
    with pytest.raises(KeyboardInterrupt):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS)
    assert not (tmp_path / "here" / "manifest.json").exists()
    with pytest.raises(UsageError, match="unfinished"):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS)
    monkeypatch.setattr(plans, "build_plan", lambda *a: built.append(a[2].name) or real(*a))
    rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS, resume=True)
    assert built == ["image.plan", "text.plan"]


def test_only_tensorrt_builds_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX builds for many; of TensorRT the GPU is part of what a run depends on."""
    orin = DeviceFacts("Orin", "8.7", "540.3.0", "12.2", 8 << 30)
    monkeypatch.setattr("clipq.export.plans.require_device", lambda: orin)
    assert target_device(["torch-fp32", "trtrtx-int8"]) is None
    assert target_device(["torch-fp32", "trt-int8"]) == orin.to_json()


@rtx
def test_rebuild_of_another_gpu_is_not_continued(graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was begun on another device would mix plans of both."""
    from clipq.export import plans, rebuild

    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plans, "build_plan", interrupted)
    monkeypatch.setattr(rebuild, "target_device", lambda _chosen: {"name": "Orin"})
    with pytest.raises(KeyboardInterrupt):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS)
    monkeypatch.setattr(rebuild, "target_device", lambda _chosen: {"name": "Thor"})
    with pytest.raises(UsageError, match="cannot be continued; found another device"):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS, resume=True)


def test_rebuild_refuses_what_it_cannot_build(graphs: Bundle, tmp_path: Path) -> None:
    """Unknown engines, engines without plans, a bundle without any, and a graph that is not the manifest's."""
    with pytest.raises(UsageError, match="unknown engine with a plan to build 'trt-int4'"):
        rebuild_bundle(graphs, ("trt-int4",), tmp_path / "a", OPTIONS)
    plain = Bundle(graphs.folder, replace(graphs.manifest, engines={"torch-fp32": graphs.engine("torch-fp32")}))
    with pytest.raises(UsageError, match=r"no engine with a plan to build.*--graphs-only"):
        rebuild_bundle(plain, (), tmp_path / "b", OPTIONS)
    assert not (tmp_path / "a").exists()


@rtx
@pytest.mark.parametrize(
    ("engines", "options", "message"),
    [
        (("trtrtx-fp16",), replace(OPTIONS, batch=(1, 2, 4)), r"plans of other options; found .*\[1, 4, 8\].*; expected .*\[1, 2, 4\]"),
        (("trtrtx-int8",), OPTIONS, "holds another bundle"),
    ],
)
def test_a_finished_rebuild_is_not_taken_for_another(
    graphs: Bundle, tmp_path: Path, engines: tuple[str, ...], options: BuildOptions, message: str
) -> None:
    """Other batches or engines than those that were built are a slip that is told, not passed over."""
    rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", OPTIONS)
    with pytest.raises(UsageError, match=message):
        rebuild_bundle(graphs, engines, tmp_path / "here", options)


@pytest.mark.parametrize("change", [{"batch": (8, 4)}, {"batch": (8, 4, 2)}, {"compatibility": ("hardwear",)}])
def test_rebuild_refuses_wrong_options_at_once(graphs: Bundle, tmp_path: Path, change: dict[str, Any]) -> None:
    """As an export does, before anything is copied or built."""
    with pytest.raises(UsageError, match=r"--batch is wrong|unknown compatibility"):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "a", replace(OPTIONS, **change))
    assert not (tmp_path / "a").exists()


def test_rebuild_refuses_an_engine_of_another_clipq(graphs: Bundle, tmp_path: Path) -> None:
    """An engine that this version cannot make is named, not a traceback."""
    engines = {**graphs.manifest.engines, "trt-int4": graphs.engine("trt-int8")}
    with pytest.raises(UsageError, match="unknown engine with a plan to build 'trt-int4'"):
        rebuild_bundle(Bundle(graphs.folder, replace(graphs.manifest, engines=engines)), (), tmp_path / "a", OPTIONS)


@rtx
def test_rebuild_refuses_graphs_that_are_not_there(graphs: Bundle, tmp_path: Path) -> None:
    """A graph that the bundle does not hold is named."""
    files = {name: entry for name, entry in graphs.manifest.files.items() if name != "towers/image.fp16.onnx"}
    with pytest.raises(ExportError, match=r"the bundle has no towers/image\.fp16\.onnx to build from"):
        rebuild_bundle(Bundle(graphs.folder, replace(graphs.manifest, files=files)), ("trtrtx-fp16",), tmp_path / "a", OPTIONS)


@rtx
@pytest.mark.parametrize("text", ["{", "5"])
def test_rebuild_refuses_a_broken_description(graphs: Bundle, tmp_path: Path, text: str) -> None:
    """What is no engine.json is told before plans are built for minutes."""
    folder, name = shutil.copytree(graphs.folder, tmp_path / "bundle"), "engines/trtrtx-fp16/engine.json"
    (folder / name).write_text(text)
    files = {**graphs.manifest.files, name: describe_file(folder, name)}
    with pytest.raises(RefusedError, match=r"engine\.json does not describe an engine"):
        rebuild_bundle(Bundle(folder, replace(graphs.manifest, files=files)), ("trtrtx-fp16",), tmp_path / "a", OPTIONS)
    assert not list((tmp_path / "a").rglob("*.plan"))


def test_a_copy_that_is_not_the_parents_file_is_refused(graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes between its check and its copy never gets into the new manifest."""
    monkeypatch.setattr("clipq.export.rebuild.require_builder", lambda *_args, **_more: None)
    monkeypatch.setattr("clipq.export.rebuild.shutil.copyfile", lambda _source, part: Path(part).write_bytes(b"other"))
    with pytest.raises(RefusedError, match="changed while it was copied"):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "a", OPTIONS)
    assert not list((tmp_path / "a").rglob("*.onnx"))


@rtx
def test_rebuild_refuses_a_graph_with_another_hash(graphs: Bundle, tmp_path: Path) -> None:
    """Nothing is built from a graph that the manifest does not name."""
    files = {**graphs.manifest.files}
    files["towers/image.fp16.onnx"] = replace(files["towers/image.fp16.onnx"], sha256="0" * 64)
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        rebuild_bundle(Bundle(graphs.folder, replace(graphs.manifest, files=files)), ("trtrtx-fp16",), tmp_path / "c", OPTIONS)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_without_a_device_the_export_says_so_at_once(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 and one line at once; nothing is written."""
    monkeypatch.setattr("clipq.engines.tensorrt.device._LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(MissingRuntimeError, match=r"trt-int8 cannot be built here.*--graphs-only.*--rebuild") as caught:
        export_bundle(replace(recipe, engines=("trt-int8",)), tmp_path / "out")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graphs": {"image": "towers/image.fp32.onnx", "text": "towers/text.fp32.onnx"}}, "wrong graph for the image tower"),
        ({"graphs": {"image": "towers/image.int8-fp16.onnx"}}, "wrong graph for the text tower"),
        ({"graphs": {"image": "/etc/passwd", "text": "towers/text.fp32.onnx"}}, "found /etc/passwd"),
        ({"quantized": (), "graphs": {t: f"towers/{t}.fp32.onnx" for t in ("image", "text")}}, "no tower of trtrtx-int8"),
        ({"precision": "fp16"}, "expected tensorrt-rtx, cuda, int8"),
        ({"runtime": "nothing"}, "expected tensorrt-rtx, cuda, int8"),
    ],
)
def test_a_manifest_cannot_make_an_engine_something_else(graphs: Bundle, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The id decides what an engine is; a plan named INT8 is never built from the FP32 graph."""
    engines = {**graphs.manifest.engines, "trtrtx-int8": replace(graphs.engine("trtrtx-int8"), **changes)}
    with pytest.raises(RefusedError, match=message):
        rebuild_bundle(Bundle(graphs.folder, replace(graphs.manifest, engines=engines)), ("trtrtx-int8",), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@rtx
def test_rebuild_builds_what_it_can(
    graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --engines, engines whose runtime is not here are left out aloud."""
    monkeypatch.setattr("clipq.engines.tensorrt.device._LIBRARY", "libcuda-that-is-not-there.so.1")
    made = rebuild_bundle(graphs, (), tmp_path / "here", OPTIONS)
    assert set(made.manifest.engines) == {"torch-fp32", "trtrtx-fp16", "trtrtx-int8"}
    said = capsys.readouterr().err
    assert "leaving out trt-fp16: trt-fp16 cannot be built here: no NVIDIA driver" in said
    with pytest.raises(MissingRuntimeError, match="trt-int8 cannot be built here"):
        rebuild_bundle(graphs, ("trt-int8", "trtrtx-int8"), tmp_path / "other", OPTIONS)


@rtx
@pytest.mark.parametrize(
    "options", [BuildOptions(batch=(1, 4, 8), compute_capabilities=("7.0",)), BuildOptions(batch=(1, 4, 8), compatibility=("version",))]
)
def test_options_are_checked_before_anything_is_copied(graphs: Bundle, tmp_path: Path, options: BuildOptions) -> None:
    """A corrected command finds no rubble."""
    with pytest.raises(UsageError):
        rebuild_bundle(graphs, ("trtrtx-fp16",), tmp_path / "here", options)
    assert not (tmp_path / "here").exists()
