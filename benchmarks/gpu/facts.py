"""What one Python can do on this host: versions, and of each runtime the reason why it cannot run here."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from clipq.engines.tensorrt.device import require_device
from clipq.errors import ClipqError
from clipq.machine import describe_machine, library_versions

_QUERY = "name,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit,persistence_mode"


def facts(_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the interpreter's machine and versions, the device, and ``missing``: runtime to the reason why it cannot run here."""
    missing = {name: reason for name, check in _CHECKS.items() if (reason := _reason(check))}
    return {
        "machine": describe_machine(),
        "versions": library_versions(),
        "missing": missing,
        "tensorrt": _version("tensorrt"),
        "device": None if "device" in missing else require_device().to_json(),
        "nvidia_smi": nvidia_smi(),
    }


def nvidia_smi() -> dict[str, str]:
    """Return clocks, temperature and power as the driver's tool tells them; empty where there is none. Nothing is changed."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    run = subprocess.run([program, f"--query-gpu={_QUERY}", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    values = run.stdout.strip().splitlines()
    return dict(zip(_QUERY.split(","), values[0].split(", "), strict=False)) if run.returncode == 0 and values else {}


def _reason(check: Any) -> str:
    try:
        check()
    except (ClipqError, ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return ""


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _torch() -> None:
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device")


def _open_clip() -> None:
    from clipq.engines.torch.compat import import_open_clip

    import_open_clip()


def _onnxruntime() -> None:
    providers = importlib.import_module("onnxruntime").get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        raise RuntimeError(f"onnxruntime {metadata_of_onnxruntime()} was built without CUDA: only {', '.join(providers)}")


def metadata_of_onnxruntime() -> str:
    """Return the version of whichever build of ONNX Runtime is installed."""
    return _version("onnxruntime-gpu") or _version("onnxruntime")


def _tensorrt() -> None:
    if not _version("tensorrt"):
        raise RuntimeError("tensorrt is not installed")
    require_device()  # without one, the library may crash the process
    importlib.import_module("tensorrt")


def _cuda_binding() -> None:
    from clipq.engines.tensorrt.cuda import BINDINGS, installed

    if not any(installed(library) for library in BINDINGS):
        raise RuntimeError(f"no CUDA binding for Python: {' or '.join(BINDINGS)}")


_CHECKS = {
    "device": require_device,
    "torch": _torch,
    "open_clip": _open_clip,
    "onnxruntime-cuda": _onnxruntime,
    "tensorrt": _tensorrt,
    "cuda binding": _cuda_binding,
}
