"""ONNX Runtime's providers: whether one can really run here, and the options that make it compute what its engine says.

Asked for CUDA where a library is missing, ONNX Runtime logs a line and computes on the CPU. So the provider's own library is loaded
first, for the loader's word on what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.device import require_device
from clipq.errors import MissingRuntimeError, missing_extra
from clipq.progress import note

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
_BUILDS = ("onnxruntime", "onnxruntime-gpu")
_REPLACE = "Run: pip uninstall -y onnxruntime onnxruntime-gpu, then: pip install 'clipq[gpu]' (both builds are one module)."


def installed_builds() -> dict[str, str]:
    """Return the installed builds of ONNX Runtime with their versions; two of them overwrite each other's files."""
    found = {}
    for name in _BUILDS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def require_provider(provider: str) -> None:
    """Check that a provider can run here: device, build of ONNX Runtime, and the libraries that it links.

    Args:
        provider: As ONNX Runtime names it.

    Raises:
        MissingRuntimeError: Something is missing; the line says what, and how to get it.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise missing_extra("onnxruntime", "cpu" if provider == CPU else "gpu")
    if provider == CPU:
        return
    require_device()
    ort = importlib.import_module("onnxruntime")
    builds = " and ".join(f"{name} {version}" for name, version in installed_builds().items())
    if provider not in ort.get_available_providers():
        raise MissingRuntimeError(f"this build of ONNX Runtime has no {provider}", found=builds, fix=_REPLACE)
    if " and " in builds:
        note(f"two builds of ONNX Runtime share one module: {builds}. {_REPLACE}")
    _require_libraries(ort, provider)


def session_providers(provider: str, profile: tuple[str, Sequence[int], Sequence[int]]) -> list[tuple[str, dict[str, str]]]:
    """Return what a session is created with: the provider, those that may take single operators it has not, and their options.

    FP32 means FP32, so TF32 is off; TensorRT's provider has no option for that, so it is switched off in this process's environment.
    TensorRT's cache of engines is off: a file that nobody hashed would be loaded as code. So are its switches for FP16 and INT8: with all
    of them off the provider makes a strongly typed network, which computes in the types of the graph; with one on, TensorRT chooses.

    Args:
        provider: That of the engine.
        profile: Input name, smallest, usual and largest batch, and the shape of one sample; TensorRT builds for these.
    """
    if provider == CPU:
        return [(CPU, {})]
    cuda = (CUDA, {"use_tf32": "0"})
    if provider == CUDA:
        return [cuda]
    name, batches, shape = profile
    options = dict.fromkeys(("trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_timing_cache_enable"), "0")
    for which, batch in zip(("min", "opt", "max"), batches, strict=True):
        options[f"trt_profile_{which}_shapes"] = f"{name}:{'x'.join(map(str, (batch, *shape)))}"
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    return [(TENSORRT, options), cuda]


def _require_libraries(ort: Any, provider: str) -> None:
    folder = Path(ort.__file__).parent / "capi"
    # What pip installed lies where the loader does not look; these two know, and libraries that are loaded are found by name.
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with contextlib.redirect_stdout(io.StringIO()):  # says what is missing, as we do below
            ort.preload_dlls()
    if provider == TENSORRT:
        with contextlib.suppress(MissingRuntimeError):
            load_api("tensorrt")
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _LIBRARIES[provider]))
    except OSError as error:
        title = "CUDA and cuDNN" if provider == CUDA else "TensorRT 10, CUDA and cuDNN"
        raise MissingRuntimeError(
            f"{provider} of onnxruntime {ort.__version__} cannot be loaded",
            found=error,
            expected=f"{title} of the versions it was built for (CUDA {getattr(ort, 'cuda_version', '') or 'of its release notes'})",
            fix="Install them, or choose the onnxruntime-gpu that was built for the CUDA that is here; see clipq doctor.",
        ) from error
