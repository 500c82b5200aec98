"""Which plans are let through, with plans of the real TensorRT-RTX builder and heads of TensorRT's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_bundle import make_toy_bundle, rewrite_manifest
from toy_plans import ADA, ENGINE, make_planned_bundle, planned

from clipq.artifact import Bundle
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.device import DeviceFacts, require_device
from clipq.engines.tensorrt.trust import CheckedPlan, check_plan, read_plan_facts, read_plan_version
from clipq.errors import MissingRuntimeError, RefusedError
from clipq.files import write_json

IMAGE = f"engines/{ENGINE}/image.plan"
ORIN = DeviceFacts("Orin", "8.7", "540.3.0", "12.2", 8 << 30)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with plans; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    make_planned_bundle(folder)
    return folder


def _copy(built: Path, folder: Path) -> Path:
    return shutil.copytree(built, folder / "bundle")


def _facts(folder: Path, **changes: Any) -> dict[str, Any]:
    import json

    return {**json.loads((folder / f"engines/{ENGINE}/engine.json").read_text())["plans"]["image"], **changes}


def _check(folder: Path, facts: dict[str, Any], *, trust: bool = False, version: str = "", device: DeviceFacts = ADA) -> CheckedPlan:
    return check_plan(Bundle.open(folder, trust_plans=trust), ENGINE, IMAGE, facts, (version or load_api("tensorrt-rtx").version, device))


def test_plan_of_the_builder_is_let_through(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real plan with its own hash, for this version and a GPU it serves, passes without a word; its head names its version."""
    plan = _check(built, _facts(built))
    assert plan == CheckedPlan(built / IMAGE, Bundle.open(built).manifest.files[IMAGE].sha256)
    assert plan.read() == (built / IMAGE).read_bytes()
    assert read_plan_version(plan.path, "tensorrt-rtx", "") == load_api("tensorrt-rtx").version
    assert capsys.readouterr().err == ""


def test_truncated_plan_is_refused(built: Path, tmp_path: Path) -> None:
    """Cut short, it has not the manifest's hash; with trust, its head still tells that bytes are missing."""
    folder = _copy(built, tmp_path)
    data = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(data[: len(data) // 2])
    with pytest.raises(RefusedError, match="not the file the manifest names"):
        _check(folder, _facts(folder))
    with pytest.raises(RefusedError, match=rf"is not whole; found {len(data) // 2} bytes; expected {len(data)}") as caught:
        _check(folder, _facts(folder), trust=True)
    assert caught.value.exit_code == 5
    (folder / IMAGE).write_bytes(data[:20])
    with pytest.raises(RefusedError, match="a whole head"):
        _check(folder, _facts(folder), trust=True)


def test_foreign_file_is_refused(built: Path, tmp_path: Path) -> None:
    """A file that is no plan, or a plan of the sibling runtime, is not handed to the library, trusted or not."""
    folder = _copy(built, tmp_path)
    for foreign in ((folder / "towers/image.fp32.onnx").read_bytes(), b"ftrt" + bytes(60)):
        (folder / IMAGE).write_bytes(foreign)
        with pytest.raises(RefusedError, match=rf"no TensorRT-RTX plan.*--rebuild {folder} -o NEW --engines {ENGINE}"):
            _check(folder, _facts(folder), trust=True)


def test_plan_with_another_hash_needs_trust(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --trust-engine a changed plan is refused with 5; with it, it passes and a line says so."""
    folder = _copy(built, tmp_path)
    shutil.copy(folder / f"engines/{ENGINE}/text.plan", folder / IMAGE)
    with pytest.raises(RefusedError, match="not the file the manifest names") as caught:
        _check(folder, _facts(folder))
    assert caught.value.exit_code == 5
    _check(folder, _facts(folder, device=None, compute_capabilities=["7.5"]), trust=True)  # what is said of another file does not count
    assert "loaded because of --trust-engine" in capsys.readouterr().err


@pytest.mark.parametrize("trust", [False, True])
def test_plan_that_changes_after_its_check_is_not_loaded(built: Path, tmp_path: Path, *, trust: bool) -> None:
    """The bytes that are handed over are those that were checked, also where another hash than the manifest's is trusted."""
    folder = _copy(built, tmp_path)
    plan = _check(folder, _facts(folder), trust=trust)
    shutil.copy(folder / f"engines/{ENGINE}/text.plan", folder / IMAGE)
    with pytest.raises(RefusedError, match=r"image\.plan changed after it was checked"):
        plan.read()


@pytest.mark.parametrize("text", ["{", "5", '{"plans": 5}', '{"plans": {"image": 5}}'])
def test_broken_description_is_refused(built: Path, tmp_path: Path, text: str) -> None:
    """Whatever stands in engine.json, the reader gets a line."""
    folder = _copy(built, tmp_path)
    (folder / f"engines/{ENGINE}/engine.json").write_text(text)
    bundle = rewrite_manifest(folder, Bundle.open(folder).manifest.engines)
    with pytest.raises(RefusedError, match="does not describe its plans"):
        read_plan_facts(bundle, ENGINE)


@pytest.mark.parametrize("change", [{"version": 5}, {"compute_capabilities": [8.9]}])
def test_facts_of_another_type_are_no_crash(built: Path, change: dict[str, Any]) -> None:
    """Numbers where texts are expected are read as what they look like."""
    if "version" in change:
        with pytest.raises(MissingRuntimeError, match="expected TensorRT-RTX 5"):
            _check(built, _facts(built, **change))
    else:
        assert _check(built, _facts(built, **change)).path == built / IMAGE


def test_plan_of_another_version_names_both_and_the_command(built: Path) -> None:
    """TensorRT-RTX reads plans of its own version only; the line tells both versions and how to build anew, with 4."""
    with pytest.raises(
        MissingRuntimeError, match=rf"found TensorRT-RTX 1\.6\.0; expected TensorRT-RTX 1\.7.*clipq-export --rebuild {built}"
    ) as caught:
        _check(built, _facts(built), version="1.6.0")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("capabilities", "sm", "runs"), [([], "8.9", True), ([], "7.5", False), (["7.5"], "7.5", True), (["8.6"], "8.9", False)]
)
def test_plan_of_rtx_runs_on_the_gpus_it_was_built_for(built: Path, capabilities: list[str], sm: str, *, runs: bool) -> None:
    """By default from 8.0 on; with named compute capabilities on these."""
    facts = _facts(built, compute_capabilities=capabilities)
    device = replace(ADA, sm=sm)
    if runs:
        _check(built, facts, device=device)
        return
    with pytest.raises(MissingRuntimeError, match=rf"found NVIDIA L4, compute capability {sm}; expected compute capability 8"):
        _check(built, facts, device=device)


def test_engine_json_without_the_facts_is_refused(built: Path) -> None:
    """A description that does not say what a plan was built for is no ground to load it."""
    facts = _facts(built)
    del facts["compatibility"]
    with pytest.raises(RefusedError, match="does not describe its plans"):
        _check(built, facts)


def _tensorrt_plan(folder: Path, head: bytes = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30])) -> Bundle:
    """Write a bundle whose plan has only the head of a TensorRT plan: as much as is looked at before TensorRT."""
    bundle = make_toy_bundle(folder)
    home = folder / "engines" / "trt-fp16"
    home.mkdir(parents=True)
    (home / "image.plan").write_bytes(head)
    write_json(home / "engine.json", {})
    return rewrite_manifest(
        folder, {**bundle.manifest.engines, "trt-fp16": planned("tensorrt", towers={"image": "engines/trt-fp16/image.plan"})}
    )


@pytest.mark.parametrize(
    ("built_with", "here", "compatibility", "runs"),
    [
        ("10.3.0.30", "10.3.0.30", [], True),
        ("10.3.0", "10.3.0.30", [], True),
        ("8.6.2", "8.6.1", [], False),
        ("10.3.0.30", "10.4.0.26", [], False),
        ("10.3.0.30", "10.3.0.30", ["version"], True),
        ("10.3.0.30", "10.4.0.26", ["version"], False),
        ("10.4.0.26", "10.3.0.30", ["version"], False),
        ("10.3.0.30", "10.4.0.26", ["hardware"], False),
    ],
)
def test_version_rule(built_with: str, here: str, compatibility: list[str], tmp_path: Path, *, runs: bool) -> None:
    """The very same version: a version-compatible plan carries no runtime, and in another version it needs the lean one of its own."""
    facts = {"runtime": "tensorrt", "version": built_with, "device": ORIN.to_json(), "compatibility": compatibility}
    lean = "lean runtime" if compatibility == ["version"] else ""
    _decide(tmp_path, facts, here, ORIN, None if runs else f"needs the TensorRT that built it.*{lean}")


@pytest.mark.parametrize(
    ("device", "compatibility", "message"),
    [
        (ORIN, [], None),
        (ADA, [], "found NVIDIA L4, compute capability 8.9; expected compute capability 8.7, as Orin"),
        (ADA, ["hardware"], None),
        (replace(ADA, sm="7.5"), ["hardware"], "expected compute capability 8.0 or later"),
        (ADA, ["version"], "needs another GPU"),
    ],
)
def test_gpu_rule(device: DeviceFacts, compatibility: list[str], message: str | None, tmp_path: Path) -> None:
    """The compute capability it was built on, or Ampere and later when the plan is hardware-compatible."""
    facts = {"runtime": "tensorrt", "version": "10.3.0.30", "device": ORIN.to_json(), "compatibility": compatibility}
    _decide(tmp_path, facts, "10.3.0.30", device, message)


def _decide(folder: Path, facts: dict[str, Any], here: str, device: DeviceFacts, message: str | None) -> None:
    bundle = _tensorrt_plan(folder / "bundle")
    if message is None:
        check_plan(bundle, "trt-fp16", "engines/trt-fp16/image.plan", facts, (here, device))
        return
    with pytest.raises(MissingRuntimeError, match=message):
        check_plan(bundle, "trt-fp16", "engines/trt-fp16/image.plan", facts, (here, device))


def test_another_model_of_gpu_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same compute capability is enough to run, but kernels were chosen on another GPU."""
    facts = {"runtime": "tensorrt", "version": "10.3.0.30", "device": ORIN.to_json(), "compatibility": []}
    _decide(tmp_path, facts, "10.3.0.30", replace(ORIN, name="Orin Nano"), None)
    assert "was built on Orin and runs on Orin Nano" in capsys.readouterr().err


def test_head_of_an_unknown_layout_tells_no_version(tmp_path: Path) -> None:
    """Where the layout of the head is not the known one, the version comes from engine.json alone."""
    (tmp_path / "a.plan").write_bytes(b"ftrt\1" + bytes(30))
    assert read_plan_version(tmp_path / "a.plan", "tensorrt", "") == ""


def test_rtx_itself_refuses_without_a_device(built: Path) -> None:
    """The real runtime, in a process of its own, says that a whole plan cannot run without a GPU: one line, no crash."""
    try:
        require_device()
    except MissingRuntimeError:
        code = """
import sys
from pathlib import Path
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.plan import Plan
from clipq.engines.tensorrt.trust import CheckedPlan
from clipq.errors import ClipqError
from clipq.files import sha256_file
path = Path(sys.argv[1])
try:
    Plan(load_api("tensorrt-rtx"), None, CheckedPlan(path, sha256_file(path)), "Rebuild.")
except ClipqError as error:
    print(type(error).__name__, error)
"""
        done = subprocess.run([sys.executable, "-c", code, str(built / IMAGE)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"MissingRuntimeError {built / IMAGE} cannot run here; found ")
        assert done.stdout.endswith("Rebuild.\n")
    else:
        pytest.skip("there is a device")
