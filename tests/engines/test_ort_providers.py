"""ONNX Runtime's GPU providers: what is missing is told before a session, and nothing silently computes elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from toy_bundle import make_toy_bundle, rewrite_manifest
from toy_plans import ADA

from clipq.artifact import Bundle
from clipq.engines.onnxruntime import providers, run
from clipq.engines.onnxruntime.providers import CPU, CUDA, TENSORRT, require_provider, session_providers
from clipq.engines.table import open_engine
from clipq.errors import EngineError, MissingRuntimeError
from clipq.evaluate.selection import usable_engines

GPU = {"onnxruntime-gpu": "1.31.1"}
CPU_BUILD = {"onnxruntime": "1.32.0"}
# Options as the provider libraries of onnxruntime-gpu 1.31.1 name them.
KNOWN = {
    CUDA: {"use_tf32"},
    TENSORRT: {
        "trt_fp16_enable",
        "trt_int8_enable",
        "trt_engine_cache_enable",
        "trt_timing_cache_enable",
        "trt_profile_min_shapes",
        "trt_profile_opt_shapes",
        "trt_profile_max_shapes",
    },
}


def _gpu_bundle(folder: Path, provider: str = CUDA) -> Bundle:
    bundle = make_toy_bundle(folder)
    cpu = bundle.manifest.engines["ort-fp32"]
    return rewrite_manifest(folder, {"ort-fp32": cpu, "ort-cuda-fp32": replace(cpu, provider=provider)})


def _machine(monkeypatch: pytest.MonkeyPatch, builds: dict[str, str], available: Sequence[str]) -> None:
    """Pretend a device, installed builds, and what the module says it has."""

    def version(name: str) -> str:
        if name not in builds:
            raise metadata.PackageNotFoundError(name)
        return builds[name]

    monkeypatch.setattr(providers, "require_device", lambda: ADA)
    monkeypatch.setattr(providers, "metadata", SimpleNamespace(version=version, PackageNotFoundError=metadata.PackageNotFoundError))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, CPU])


def test_no_driver_ends_before_onnxruntime_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider of the GPU needs a device first: exit code 4."""

    def fail() -> Any:
        raise MissingRuntimeError("no NVIDIA driver", fix="Install the driver.")

    monkeypatch.setattr(providers, "require_device", fail)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("a session was made"))
    with pytest.raises(MissingRuntimeError, match="no NVIDIA driver") as caught:
        open_engine(_gpu_bundle(tmp_path), "ort-cuda-fp32")
    assert caught.value.exit_code == 4
    assert usable_engines(Bundle.open(tmp_path), ()) == ["ort-fp32"]


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_cpu_build_names_the_extra_and_what_must_go_first(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build without the provider is named, and that it must be uninstalled before the other is installed."""
    _machine(monkeypatch, CPU_BUILD, [])
    wanted = rf"no {provider}; found onnxruntime 1\.32\.0\. Run: pip uninstall -y onnxruntime .*pip install 'clipq\[gpu\]'"
    with pytest.raises(MissingRuntimeError, match=wanted):
        require_provider(provider)


def test_two_builds_at_once_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both names stand in the error when the provider is gone, and in a note when it happens to work."""
    _machine(monkeypatch, {**CPU_BUILD, **GPU}, [])
    with pytest.raises(MissingRuntimeError, match=r"found onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.31\.1"):
        require_provider(CUDA)
    _machine(monkeypatch, {**CPU_BUILD, **GPU}, [CUDA])
    monkeypatch.setattr(providers, "_require_libraries", lambda *_: None)
    require_provider(CUDA)
    assert "two builds of ONNX Runtime share one module" in capsys.readouterr().err


@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_missing_libraries_are_named(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the loader cannot find is in the line; ONNX Runtime itself would only log it and compute on the CPU."""
    _machine(monkeypatch, GPU, [TENSORRT, CUDA])
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingRuntimeError, match=rf"{provider} of onnxruntime .* cannot be loaded; found .*cannot open shared object"):
        require_provider(provider)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_fallback_to_another_provider_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that claims a provider and then computes elsewhere gives no result."""
    monkeypatch.setattr(run, "require_provider", lambda _provider: None)
    with (
        pytest.raises(EngineError, match=r"fell back to another provider; found .*CPUExecutionProvider.*expected .*CUDAExecutionProvider"),
        open_engine(_gpu_bundle(tmp_path), "ort-cuda-fp32"),
    ):
        pass


def test_options_are_known_and_keep_fp32_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is off, TensorRT keeps no engine on disk, the profile is the plan's; without switches for FP16 and INT8 the graph decides."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    profile = ("pixels", (1, 32, 128), (3, 224, 224))
    assert session_providers(CPU, profile) == [(CPU, {})]
    assert session_providers(CUDA, profile) == [(CUDA, {"use_tf32": "0"})]
    given = dict(session_providers(TENSORRT, profile))
    assert list(given) == [TENSORRT, CUDA]
    assert all(set(options) <= KNOWN[name] for name, options in given.items())
    options = given[TENSORRT]
    assert {name: value for name, value in options.items() if name.endswith("_enable")} == dict.fromkeys(
        ("trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_timing_cache_enable"), "0"
    )
    assert options["trt_profile_opt_shapes"] == "pixels:32x3x224x224"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_every_tower_gets_its_own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tower's input is named with its shape, and a session is made without ONNX Runtime's own fallback."""
    bundle = make_toy_bundle(tmp_path)
    entry = replace(bundle.manifest.engines["ort-fp32"], provider=TENSORRT)
    monkeypatch.setattr(run, "require_provider", lambda _provider: None)
    given: dict[str, Any] = {}

    def session(path: str, _options: Any, **kept: Any) -> Any:
        given[Path(path).name] = kept
        raise RuntimeError("enough seen")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    engine = open_engine(rewrite_manifest(tmp_path, {"ort-trt-fp32": entry}), "ort-trt-fp32")
    for tower in ("image", "text"):
        with pytest.raises(EngineError, match="enough seen"):
            engine._session(tower, spinning=False)  # type: ignore[attr-defined]
    assert {name: dict(kept["providers"])[TENSORRT]["trt_profile_max_shapes"] for name, kept in given.items()} == {
        "image.fp32.onnx": "pixels:128x3x16x16",
        "text.fp32.onnx": "tokens:128x16",
    }
    assert all(kept["enable_fallback"] == 0 for kept in given.values())
