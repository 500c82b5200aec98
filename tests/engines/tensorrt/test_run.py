"""What a TensorRT engine says when it cannot run, and the branches of running on stand-ins with the names of one version."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from toy_bundle import DIM, SIZE, make_toy_bundle, rewrite_manifest
from toy_plans import ADA, ENGINE, make_planned_bundle, planned

from clipq.artifact import Bundle
from clipq.cli.main import main
from clipq.engines.base import TowerSpec
from clipq.engines.table import open_engine
from clipq.engines.tensorrt import cuda as cuda_module
from clipq.engines.tensorrt import run as run_module
from clipq.engines.tensorrt.cuda import OutOfDeviceMemoryError
from clipq.engines.tensorrt.run import TensorrtEngine
from clipq.errors import EngineError, MissingRuntimeError, RefusedError
from clipq.evaluate import provenance
from clipq.evaluate.selection import left_out, usable_engines
from clipq.files import sha256_file

SPEC = TowerSpec("float32", (3, 2, 2), 4)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with real plans of TensorRT-RTX; nobody changes it."""
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    make_planned_bundle(folder)
    return folder


def _no_device() -> None:
    raise MissingRuntimeError("no NVIDIA driver", fix="Install the driver.")


def _forbidden(*_arguments: Any) -> None:
    pytest.fail("the library was touched")


def test_no_driver_ends_before_the_library_is_touched(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device TensorRT, the binding and the plan are left alone: their runtimes crash there."""
    monkeypatch.setattr(run_module, "require_device", _no_device)
    monkeypatch.setattr(run_module, "load_api", _forbidden)
    monkeypatch.setattr(run_module, "check_plan", _forbidden)
    with pytest.raises(MissingRuntimeError, match="no NVIDIA driver"):
        open_engine(Bundle.open(built), ENGINE)


def test_plans_that_are_not_built_yet_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has only graphs says how its plans are made, with 4, whatever this machine has."""
    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    bundle = make_toy_bundle(tmp_path)
    bundle = rewrite_manifest(tmp_path, {**bundle.manifest.engines, "trt-fp32": planned("tensorrt")})
    with pytest.raises(MissingRuntimeError, match=rf"not built yet.*clipq-export --rebuild {tmp_path} -o NEW --engines trt-fp32"):
        open_engine(bundle, "trt-fp32")


def test_missing_tensorrt_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device but without the library, the line says what to install."""

    def missing(runtime: str) -> Any:
        raise MissingRuntimeError(f"{runtime} is not installed", fix="Run: pip install 'clipq[tensorrt]'")

    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    monkeypatch.setattr(run_module, "load_api", missing)
    bundle = make_toy_bundle(tmp_path)
    bundle = rewrite_manifest(
        tmp_path, {**bundle.manifest.engines, "trt-fp32": planned("tensorrt", towers={"image": "towers/image.fp32.onnx"})}
    )
    with pytest.raises(MissingRuntimeError, match=r"clipq\[tensorrt\]"):
        open_engine(bundle, "trt-fp32")


def test_missing_binding_is_told_before_plans_are_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With device and library but no CUDA binding, the line names both bindings."""
    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    monkeypatch.setattr(cuda_module, "installed", lambda _name: False)
    with pytest.raises(MissingRuntimeError, match="cuda-python or pycuda"):
        open_engine(Bundle.open(built), ENGINE)


def test_engine_that_cannot_run_is_left_out_or_ends_the_run(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default a line tells why an engine takes no part; asked for by name, it is exit code 4; a bad hash is never left out."""
    monkeypatch.setattr(run_module, "require_device", _no_device)
    bundle = Bundle.open(built)
    assert usable_engines(bundle, ()) == ["ort-fp32", "ort-int8-dynamic", "ort-int8-static"]
    assert f"leaving out {ENGINE}: no NVIDIA driver" in capsys.readouterr().err
    assert left_out(bundle, ()) == {ENGINE: "no NVIDIA driver. Install the driver."}
    assert left_out(bundle, ("ort-fp32",)) == {}, "who names engines knows what is missing"
    with pytest.raises(MissingRuntimeError):
        usable_engines(bundle, (ENGINE,))
    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    assert ENGINE in usable_engines(bundle, ())
    files = {**bundle.manifest.files}
    files[f"engines/{ENGINE}/image.plan"] = files["towers/image.fp32.onnx"]
    monkeypatch.setattr(bundle, "manifest", SimpleNamespace(**{**_fields(bundle.manifest), "files": files}))
    bundle._checked.clear()
    with pytest.raises(RefusedError, match="not the file the manifest names"):
        usable_engines(bundle, ())


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_command_ends_with_4_and_one_line(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bench command on an engine that cannot run here: one line on stderr, nothing on stdout."""
    monkeypatch.setattr(run_module, "require_device", _no_device)
    for options in ([], ["--trust-engine"]):
        assert main(["bench", str(built), "--engines", ENGINE, *options]) == 4
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", f"clipq: {ENGINE} cannot run: no NVIDIA driver. Install the driver.\n")


class SmallDevice:
    """A plan on a device that holds no more than ``fits`` samples at once; an embedding repeats its sample's first number."""

    batch = (1, 8, 64)

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.tried: list[int] = []

    def run(self, batch: npt.NDArray[Any], embed_dim: int) -> npt.NDArray[np.float32]:
        self.tried.append(len(batch))
        if len(batch) > self.fits:
            raise OutOfDeviceMemoryError("CUDA failed in cudaMalloc", found="cudaErrorMemoryAllocation (2)")
        return np.repeat(batch.reshape(len(batch), -1)[:, :1], embed_dim, axis=1)

    def device_seconds(self, batch: npt.NDArray[Any], _embed_dim: int, calls: int) -> list[float]:
        return [0.001 * len(batch)] * calls


def _engine(plan: Any) -> TensorrtEngine:
    engine = TensorrtEngine("trt-fp16", "tensorrt", {"image": SPEC}, {}, "clipq-export --rebuild DIR -o NEW --engines trt-fp16")
    engine._plans["image"] = plan
    engine.largest["image"] = plan.batch[2]
    return engine


def _pixels(n: int) -> npt.NDArray[np.float32]:
    pixels = np.zeros((n, *SPEC.input_shape), np.float32)
    pixels[:, 0, 0, 0] = np.arange(n)
    return pixels


@pytest.mark.parametrize(
    ("n", "fits", "tried"), [(8, 8, [8]), (8, 4, [8, 4, 4]), (7, 2, [7, 3, 1, 1, 1, 1, 1, 1, 1]), (40, 10, [40, 20, 10, 10, 10, 10])]
)
def test_batch_that_does_not_fit_is_halved_aloud(n: int, fits: int, tried: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    """The rows come back whole and in order, each halving is said, and the next batch starts at what fitted."""
    plan = SmallDevice(fits)
    engine = _engine(plan)
    assert engine.run("image", _pixels(n))[:, 0].tolist() == list(range(n))
    assert plan.tried == tried
    said = capsys.readouterr().err.splitlines()
    assert len(said) == sum(size > fits for size in tried)
    assert all("out of device memory at a batch of" in line for line in said)
    plan.tried.clear()
    engine.run("image", _pixels(n))
    assert max(plan.tried) <= fits


def test_no_piece_is_below_the_smallest_batch_of_the_plan() -> None:
    """What is left of a batch may be less than the plan takes: the last piece then begins earlier, and no row comes twice."""
    plan = SmallDevice(4)
    plan.batch = (3, 8, 64)
    engine = _engine(plan)
    assert engine.run("image", _pixels(9))[:, 0].tolist() == list(range(9))
    assert plan.tried == [9, 4, 4, 3]


def test_no_batch_at_all_that_fits_is_an_error() -> None:
    """When not even the profile's smallest batch fits, the line says so and names a plan that would be smaller."""
    with pytest.raises(EngineError, match=r"out of device memory at a batch of 1, and its plan takes none below 1.*--batch 1,1,1"):
        _engine(SmallDevice(0)).run("image", _pixels(8))


@pytest.mark.parametrize("n", [1, 65])
def test_batch_outside_the_profile_names_it_and_the_command(n: int) -> None:
    """The line tells the profile and the rebuild that would widen it; a timing does not answer another batch either."""
    plan = SmallDevice(64)
    plan.batch = (2, 8, 64)
    engine = _engine(plan)
    wanted = rf"batch of {n} .*expected 2 to 64.*--engines trt-fp16 --batch {min(n, 2)},8,{max(n, 64)}"
    with pytest.raises(EngineError, match=wanted):
        engine.run("image", _pixels(n))
    with pytest.raises(EngineError, match=wanted):
        engine.device_seconds("image", _pixels(n), 3)
    assert plan.tried == []


def test_threads_take_turns() -> None:
    """Several threads may run at once; the plan sees one batch at a time."""

    class Single(SmallDevice):
        inside = 0

        def run(self, batch: npt.NDArray[Any], embed_dim: int) -> npt.NDArray[np.float32]:
            self.inside += 1
            assert self.inside == 1
            result = super().run(batch, embed_dim)
            self.inside -= 1
            return result

    engine = _engine(Single(64))
    sums: list[float] = []
    threads = [threading.Thread(target=lambda: sums.append(float(engine.run("image", _pixels(16)).sum()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [sum(range(16)) * SPEC.embed_dim] * 8


def test_toy_towers_are_the_manifests(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With device, library and plans here, the engine is made with its towers' shapes and no plan is loaded yet."""
    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    engine = open_engine(Bundle.open(built), ENGINE)
    assert isinstance(engine, TensorrtEngine)
    assert engine.towers["image"] == TowerSpec("float32", (3, SIZE, SIZE), DIM)
    assert engine._plans == {}


def test_description_without_plans_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine.json that says nothing of the plans beside it is no ground to load them."""
    monkeypatch.setattr(run_module, "require_device", lambda: ADA)
    folder = shutil.copytree(built, tmp_path / "bundle")
    (folder / f"engines/{ENGINE}/engine.json").write_text("{}")
    bundle = rewrite_manifest(folder, Bundle.open(folder).manifest.engines)
    with pytest.raises(RefusedError, match="does not describe its plans"):
        open_engine(bundle, ENGINE)


def test_gpu_stands_in_the_record_where_one_may_have_computed(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its facts are in the provenance of a bundle with engines for it; a bundle for the CPU does not even ask."""
    monkeypatch.setattr(provenance, "require_device", lambda: ADA)
    assert provenance.describe_run(Bundle.open(built))["device"]["gpu"] == ADA.to_json()
    monkeypatch.setattr(provenance, "require_device", _no_device)
    assert "gpu" not in provenance.describe_run(Bundle.open(built))["device"]
    monkeypatch.setattr(provenance, "require_device", _forbidden)
    assert "gpu" not in provenance.describe_run(make_toy_bundle(tmp_path))["device"]


def test_trusted_plan_is_reported_by_its_own_hash(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What --trust-engine let in is what the report names and what embeddings are stored under, not what the manifest had."""
    monkeypatch.setattr(provenance, "require_device", lambda: ADA)
    folder = shutil.copytree(built, tmp_path / "bundle")
    name = f"engines/{ENGINE}/image.plan"
    before = Bundle.open(folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b"more")
    trusted = Bundle.open(folder, trust_plans=True)
    assert provenance.engine_files(trusted, ENGINE)[name] == sha256_file(folder / name) != before.manifest.files[name].sha256
    assert provenance.engine_bytes(trusted, ENGINE) == (provenance.engine_bytes(before, ENGINE) or 0) + 4
    facts = provenance.tower_facts(trusted, ENGINE, "image")
    assert facts["weights"] != provenance.tower_facts(before, ENGINE, "image")["weights"]
    assert facts["device"] == ADA.name
    assert "device" not in provenance.tower_facts(trusted, "ort-fp32", "image")
