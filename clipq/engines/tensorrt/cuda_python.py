"""CUDA through cuda-python 12 or 13: the runtime API, whose primary context TensorRT shares."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from clipq.engines.tensorrt.cuda import Buffer, Direction, Graph, OutOfDeviceMemoryError
from clipq.errors import EngineError


class CudaPython:
    """One stream of device 0; see ``Cuda``."""

    def __init__(self, *, spinning: bool) -> None:
        self._cudart = importlib.import_module("cuda.bindings.runtime")
        self.name = f"cuda-python {metadata.version('cuda-bindings')}"
        # Not blocking: work that anyone puts on the default stream must not stand between two of our calls.
        self._stream = self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking)
        self.stream = int(self._stream)
        self._start, self._end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        patience = self._cudart.cudaEventDefault if spinning else self._cudart.cudaEventBlockingSync
        self._done = self._call("cudaEventCreateWithFlags", self._cudart.cudaEventDisableTiming | patience)

    def allocate(self, size_bytes: int, *, host: bool) -> Buffer:
        """Return a buffer on the device, with its page-locked twin when ``host`` is set; see ``Cuda``."""
        address = int(self._call("cudaMalloc", size_bytes))
        if not host:
            return Buffer(address, np.empty(0, np.uint8), size_bytes, lambda: self._call("cudaFree", address))
        try:
            pinned = int(self._call("cudaHostAlloc", size_bytes, self._cudart.cudaHostAllocDefault))
        except EngineError:
            self._call("cudaFree", address)
            raise
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(pinned))

        def free() -> None:
            self._call("cudaFreeHost", pinned)
            self._call("cudaFree", address)

        return Buffer(address, array, size_bytes, free)

    def copy(self, buffer: Buffer, size_bytes: int, direction: Direction) -> None:
        """Start copying the first bytes of a buffer; see ``Cuda``."""
        kinds = self._cudart.cudaMemcpyKind
        host = buffer.host.ctypes.data
        if direction == "to device":
            self._call("cudaMemcpyAsync", buffer.address, host, size_bytes, kinds.cudaMemcpyHostToDevice, self._stream)
        else:
            self._call("cudaMemcpyAsync", host, buffer.address, size_bytes, kinds.cudaMemcpyDeviceToHost, self._stream)

    def wait(self) -> None:
        """Return when everything on the stream is done."""
        self._call("cudaEventRecord", self._done, self._stream)
        self._call("cudaEventSynchronize", self._done)

    def seconds(self, work: Callable[[], None]) -> float:
        """Return how long the device needed for ``work``, in seconds; see ``Cuda``."""
        self._call("cudaEventRecord", self._start, self._stream)
        work()
        self._call("cudaEventRecord", self._end, self._stream)
        self._call("cudaEventSynchronize", self._end)
        return float(self._call("cudaEventElapsedTime", self._start, self._end)) / 1000

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record ``work`` as a CUDA graph; see ``Cuda``."""
        # Thread local: what other threads of this process do with CUDA meanwhile neither breaks nor enters the recording.
        self._call("cudaStreamBeginCapture", self._stream, self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:  # its reason counts, not that the recording is of no use now
            with contextlib.suppress(EngineError):
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self._stream))
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        launchable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return Graph(
            launch=lambda: self._call("cudaGraphLaunch", launchable, self._stream),
            free=lambda: self._call("cudaGraphExecDestroy", launchable),
        )

    def close(self) -> None:
        """Release events and the stream."""
        for event in (self._start, self._end, self._done):
            self._call("cudaEventDestroy", event)
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime API and return its one result, or None."""
        status, *results = getattr(self._cudart, function)(*arguments)
        if status != self._cudart.cudaError_t.cudaSuccess:
            failure = OutOfDeviceMemoryError if status == self._cudart.cudaError_t.cudaErrorMemoryAllocation else EngineError
            raise failure(f"CUDA failed in {function}", found=f"{status.name} ({int(status)})", fix="See clipq doctor and nvidia-smi.")
        return results[0] if results else None
