"""Both CUDA bindings on stand-ins: errors leave as ours, and what is taken is given back; the installed one without a driver."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections.abc import Callable
from enum import IntEnum
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clipq.engines.tensorrt import cuda
from clipq.engines.tensorrt.cuda import OutOfDeviceMemoryError, open_cuda, require_binding
from clipq.engines.tensorrt.cuda_pycuda import PyCuda
from clipq.engines.tensorrt.cuda_python import CudaPython
from clipq.engines.tensorrt.device import require_device
from clipq.errors import EngineError, MissingRuntimeError


class Status(IntEnum):
    """CUDA's results, as far as they are told apart."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35


def test_real_cuda_python_without_a_driver_is_one_line() -> None:
    """The runtime API says itself that there is no driver; nothing crashes."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    try:
        require_device()
    except MissingRuntimeError:
        with pytest.raises(EngineError, match=r"cudaStreamCreateWithFlags; found cudaErrorInsufficientDriver \(35\)"):
            CudaPython(spinning=False)
    else:
        pytest.skip("there is a device")


def _only(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    modules = {cuda.BINDINGS[name][0] for name in libraries}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if name in modules else None)


@pytest.mark.parametrize(
    ("here", "expected"), [(("pycuda",), "pycuda"), (("cuda-python",), "cuda-python"), (("pycuda", "cuda-python"),) * 2]
)
def test_installed_binding_is_used(here: tuple[str, ...], expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either binding will do; where both are, cuda-python is taken because it captures graphs."""
    _only(monkeypatch, *here)
    assert require_binding() == (expected if isinstance(expected, str) else "cuda-python")


def test_missing_binding_ends_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a binding the line names both."""
    _only(monkeypatch)
    with pytest.raises(MissingRuntimeError, match=r"expected cuda-python or pycuda.*pip install cuda-python") as caught:
        open_cuda(spinning=True)
    assert caught.value.exit_code == 4


class Runtime:
    """cuda.bindings.runtime on host memory: counts what is taken, fails where it is told to."""

    cudaError_t = Status
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    cudaEventBlockingSync, cudaEventDefault, cudaEventDisableTiming, cudaHostAllocDefault, cudaStreamNonBlocking = 1, 0, 2, 0, 1

    def __init__(self, fails: str = "", status: Status = Status.cudaErrorMemoryAllocation) -> None:
        self.fails, self.status = fails, status
        self.taken: dict[int, Any] = {}
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.said.append(name)
            if name == self.fails:
                return (self.status, None)
            return (Status.cudaSuccess, *self._result(name, arguments))

        return call

    def _result(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in {"cudaMalloc", "cudaHostAlloc"}:
            block = ctypes.create_string_buffer(arguments[0])
            self.taken[ctypes.addressof(block)] = block
            return (ctypes.addressof(block),)
        if name in {"cudaFree", "cudaFreeHost"}:
            del self.taken[arguments[0]]
        if name == "cudaMemcpyAsync":
            ctypes.memmove(*arguments[:3])
        if name == "cudaEventElapsedTime":
            return (2.5,)
        return (7,) if "Create" in name or name in {"cudaStreamEndCapture", "cudaGraphInstantiate"} else ()


def _cuda_python(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> CudaPython:
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: runtime if name == "cuda.bindings.runtime" else real(name))
    monkeypatch.setattr(metadata, "version", lambda _name: "13.0")
    return CudaPython(spinning=False)


def test_bytes_go_over_and_back_and_memory_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer's two sides hold what was copied, the page-locked side is the copy's end, and freeing leaves nothing."""
    runtime = Runtime()
    bound = _cuda_python(monkeypatch, runtime)
    buffer = bound.allocate(16, host=True)
    buffer.host[:] = np.arange(16)
    bound.copy(buffer, 8, "to device")
    buffer.host[:] = 0
    bound.copy(buffer, 16, "to host")
    bound.wait()
    assert buffer.host.tolist() == [*range(8), *[0] * 8]
    assert len(runtime.taken) == 2
    buffer.free()
    bound.close()
    assert runtime.taken == {}


def test_device_memory_that_is_out_is_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed allocation may be answered with a smaller one; other failures of CUDA may not."""
    with pytest.raises(OutOfDeviceMemoryError, match="cudaErrorMemoryAllocation"):
        _cuda_python(monkeypatch, Runtime("cudaMalloc")).allocate(16, host=True)
    with pytest.raises(EngineError) as caught:
        _cuda_python(monkeypatch, Runtime("cudaEventRecord", Status.cudaErrorInsufficientDriver)).wait()
    assert not isinstance(caught.value, OutOfDeviceMemoryError)


def test_failed_page_locked_memory_gives_the_device_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a buffer is never kept."""
    runtime = Runtime("cudaHostAlloc")
    with pytest.raises(OutOfDeviceMemoryError):
        _cuda_python(monkeypatch, runtime).allocate(16, host=True)
    assert runtime.taken == {}


def test_events_stand_around_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event is recorded before the work is enqueued, the second after, and milliseconds become seconds."""
    runtime = Runtime()
    bound = _cuda_python(monkeypatch, runtime)
    runtime.said.clear()
    assert bound.seconds(lambda: runtime.said.append("work")) == 0.0025
    assert runtime.said == ["cudaEventRecord", "work", "cudaEventRecord", "cudaEventSynchronize", "cudaEventElapsedTime"]


def test_recording_ends_even_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is never left recording; a whole recording is launched and released."""
    runtime = Runtime()
    bound = _cuda_python(monkeypatch, runtime)
    with pytest.raises(ZeroDivisionError):
        bound.capture(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert runtime.said[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    graph = bound.capture(lambda: None)
    graph.launch()
    assert runtime.said[-1] == "cudaGraphLaunch"
    graph.free()
    assert runtime.said[-1] == "cudaGraphExecDestroy"


def test_reason_of_a_failed_recording_is_that_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA then says only that the recording is invalid; what failed in it is what the reader needs."""
    bound = _cuda_python(monkeypatch, Runtime("cudaStreamEndCapture", Status.cudaErrorInsufficientDriver))
    with pytest.raises(ZeroDivisionError):
        bound.capture(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(EngineError, match="cudaStreamEndCapture"):
        bound.capture(lambda: None)


class Driver(ModuleType):
    """pycuda.driver as far as it is used: counts contexts that are current, and has too little memory for more than 64 bytes."""

    Error = type("Error", (Exception,), {})
    MemoryError = type("MemoryError", (Error,), {})
    event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.current = 0

    def init(self) -> None:
        return None

    def Device(self, _ordinal: int) -> Any:
        def step(change: int) -> None:
            self.current += change

        context = SimpleNamespace(push=lambda: step(1), pop=lambda: step(-1))
        return SimpleNamespace(retain_primary_context=lambda: context)

    def Stream(self, flags: int) -> Any:
        assert self.current == flags == 1
        return SimpleNamespace(handle=5)

    def Event(self, _flags: int = 0) -> Any:
        return SimpleNamespace(record=lambda _stream: None, synchronize=lambda: None, time_till=lambda _end: 4.0)

    def mem_alloc(self, size: int) -> Any:
        assert self.current == 1
        if size > 64:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return _Memory(0x100)

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        return np.empty(size, dtype).view(_Pinned)


class _Memory(int):
    def free(self) -> None:
        return None


class _Pinned(np.ndarray):
    base = SimpleNamespace(free=lambda: None)  # type: ignore[assignment]


def test_pycuda_is_current_only_inside_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call makes the context current and gives back what was there, also when it fails; its errors leave as ours."""
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(metadata, "version", lambda _name: "2024.1")
    bound = PyCuda(spinning=True)
    assert (bound.name, bound.stream) == ("pycuda 2024.1", 5)
    assert bound.allocate(64, host=False).address == 0x100
    with pytest.raises(OutOfDeviceMemoryError, match="out of memory"):
        bound.allocate(65, host=False)
    buffer = bound.allocate(8, host=True)
    assert buffer.host.nbytes == 8
    buffer.free()
    assert bound.seconds(lambda: None) == 0.004
    with pytest.raises(EngineError, match=r"pycuda cannot record CUDA graphs.*cuda-python"):
        bound.capture(lambda: None)
    bound.wait()
    bound.close()
    assert driver.current == 0
