"""Every name that is used of a CUDA binding exists there, in each version that may be installed."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import pytest

from clipq.engines.tensorrt import cuda_pycuda, cuda_python

# As cuda-python 12.9.0 and 13.4.4 have them, with the number of arguments they take.
RUNTIME_FUNCTIONS = {
    "cudaEventCreate": 0,
    "cudaEventCreateWithFlags": 1,
    "cudaEventDestroy": 1,
    "cudaEventElapsedTime": 2,
    "cudaEventRecord": 2,
    "cudaEventSynchronize": 1,
    "cudaFree": 1,
    "cudaFreeHost": 1,
    "cudaGraphDestroy": 1,
    "cudaGraphExecDestroy": 1,
    "cudaGraphInstantiate": 2,
    "cudaGraphLaunch": 2,
    "cudaHostAlloc": 2,
    "cudaMalloc": 1,
    "cudaMemcpyAsync": 5,
    "cudaStreamBeginCapture": 2,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamDestroy": 1,
    "cudaStreamEndCapture": 1,
}
RUNTIME_VALUES = {
    "cudaError_t": {"cudaSuccess", "cudaErrorMemoryAllocation"},
    "cudaMemcpyKind": {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"},
    "cudaStreamCaptureMode": {"cudaStreamCaptureModeThreadLocal"},
    "cudaEventBlockingSync": set(),
    "cudaEventDefault": set(),
    "cudaEventDisableTiming": set(),
    "cudaHostAllocDefault": set(),
    "cudaStreamNonBlocking": set(),
}
# As PyCUDA's wrapper defines them: wrap_cudadrv.cpp, and the package of Debian 12 (2022.2).
DRIVER_NAMES = {
    "init",
    "Device",
    "Stream",
    "Event",
    "event_flags",
    "mem_alloc",
    "pagelocked_empty",
    "memcpy_htod_async",
    "memcpy_dtoh_async",
    "MemoryError",
    "Error",
}


def _attributes_of(module: ModuleType, owner: str) -> set[str]:
    """Return every name taken from ``self.<owner>`` in a module's source."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Attribute) and node.value.attr == owner}


def _calls(module: ModuleType) -> dict[str, int]:
    """Return the functions that go through ``self._call``, with the number of arguments they are given."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_call":
            name, *arguments = node.args
            assert isinstance(name, ast.Constant)
            found[name.value] = len(arguments)
    return found


def test_names_of_the_runtime_api_are_those_that_were_checked() -> None:
    """What the code calls is exactly what was looked up in both major versions of cuda-python."""
    assert _calls(cuda_python) == RUNTIME_FUNCTIONS
    assert _attributes_of(cuda_python, "_cudart") == set(RUNTIME_VALUES)


def test_names_exist_in_the_installed_cuda_python() -> None:
    """The installed package has every name, and its functions take as many arguments as they get."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name, count in RUNTIME_FUNCTIONS.items():
        signature = (getattr(runtime, name).__doc__ or "").splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        assert len([part for part in inside.split(",") if part.strip()]) == count, signature
    for name, members in RUNTIME_VALUES.items():
        assert all(hasattr(getattr(runtime, name), member) for member in members), name


def test_names_of_pycuda_are_those_that_were_checked() -> None:
    """What the code takes from pycuda.driver is exactly what was looked up in its source."""
    assert _attributes_of(cuda_pycuda, "_driver") == DRIVER_NAMES
