"""What clipq doctor finds here, and what it would find on a machine with a GPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from toy_plans import ADA

from clipq.cli import doctor
from clipq.cli.main import main
from clipq.errors import MissingRuntimeError

NAMES = [
    "torch",
    "open_clip",
    "onnxruntime",
    "report",
    "zstd",
    "cryptography",
    "cuda",
    "cuda binding",
    "ort-cuda",
    "ort-trt",
    "tensorrt",
    "tensorrt-rtx",
]


def _no_device() -> Any:
    raise MissingRuntimeError("no NVIDIA driver", fix="Install the driver.")


def _findings(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, Any]]:
    assert main(["doctor", "--json", "-"]) == code
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_everything_is_listed_without_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a driver nothing of the GPU is usable, each line says which engines it is for, and nothing crashes."""
    monkeypatch.setattr(doctor, "require_device", _no_device)
    found = _findings(capsys)
    assert list(found) == NAMES
    assert found["onnxruntime"]["usable"]
    for name in ("cuda", "ort-cuda", "ort-trt", "tensorrt", "tensorrt-rtx"):
        assert not found[name]["usable"]
    assert "Install the driver." in found["cuda"]["found"]
    assert "trtrtx-*" in found["tensorrt-rtx"]["found"]
    assert "clipq[gpu]" in found["ort-cuda"]["fix"]


def test_device_library_and_binding_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a device the facts stand in one line, and what is installed beside it is usable."""
    monkeypatch.setattr(doctor, "require_device", lambda: ADA)
    monkeypatch.setattr(doctor, "load_api", lambda runtime: SimpleNamespace(title=f"{runtime} 10.3"))
    monkeypatch.setattr(doctor, "installed", lambda _name: True)
    monkeypatch.setattr(doctor, "require_provider", lambda _name: None)
    found = _findings(capsys)
    assert found["cuda"]["found"] == "NVIDIA L4, compute capability 8.9, 25.8 GB, driver 580.82.07, CUDA 13.0"
    assert found["cuda binding"]["found"].endswith("; pycuda is here too")
    assert found["ort-trt"]["found"] == "TensorrtExecutionProvider"
    assert found["tensorrt"]["found"] == "tensorrt 10.3"
    assert all(found[name]["usable"] for name in NAMES)


def test_missing_binding_and_provider_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A device alone is not enough: what is missing beside it has its own line."""
    monkeypatch.setattr(doctor, "require_device", lambda: ADA)
    monkeypatch.setattr(doctor, "installed", lambda _name: False)

    def missing(provider: str) -> None:
        raise MissingRuntimeError(f"{provider} cannot be loaded", found="libcublasLt.so.12")

    monkeypatch.setattr(doctor, "require_provider", missing)
    found = _findings(capsys)
    assert "pip install cuda-python" in found["cuda binding"]["fix"]
    assert "libcublasLt.so.12" in found["ort-cuda"]["found"]


def test_nothing_to_run_with_ends_with_4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """When no runtime at all is usable, the exit code says so."""
    monkeypatch.setattr(doctor, "CHECKS", (lambda: doctor.Finding("torch", False, "not installed"),))
    assert main(["doctor"]) == 4
    assert "none of torch, onnxruntime, tensorrt, tensorrt-rtx" in capsys.readouterr().err
