"""A loop that knows nothing of clipq: a plan, device buffers, events around each enqueue; what our inference is held against."""

from __future__ import annotations

import ctypes
import importlib
import math
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_BYTES = 4  # of one number: pixels and embeddings are float32


class BareLoop:
    """The image tower of one plan on a stream of its own, through the driver's C interface.

    Args:
        plan: Of a trusted bundle: its hash was checked.
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
    """

    def __init__(self, plan: Path, runtime: str) -> None:
        self._plan = plan
        self._trt: Any = importlib.import_module(_MODULES[runtime])
        self._cuda: Any = ctypes.CDLL("libcuda.so.1")

    def __enter__(self) -> Self:
        self._context_of_device()
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(self._plan.read_bytes())
        self._context = self._engine.create_execution_context()
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._stream = self._handle("cuStreamCreate", 1)  # not blocking
        self._events = [self._handle("cuEventCreate", 0) for _ in range(2)]
        self._buffers: dict[str, ctypes.c_uint64] = {}
        self._batch: npt.NDArray[Any] | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._free()
        for event in self._events:
            self._do("cuEventDestroy_v2", event)
        self._do("cuStreamDestroy_v2", self._stream)
        del self._context, self._engine, self._runtime

    def device_seconds(self, tower: str, batch: npt.NDArray[np.float32], calls: int) -> list[float]:
        """Return the seconds of each enqueue between two events, waiting after each."""
        del tower
        self._place(batch)
        start, end = self._events
        seconds, elapsed = [], ctypes.c_float(0)
        for _ in range(calls):
            self._do("cuEventRecord", start, self._stream)
            self._context.execute_async_v3(self._stream.value)
            self._do("cuEventRecord", end, self._stream)
            self._do("cuEventSynchronize", end)
            self._do("cuEventElapsedTime", ctypes.byref(elapsed), start, end)
            seconds.append(elapsed.value / 1000)
        return seconds

    def images_per_s(self, batch: npt.NDArray[np.float32], seconds: float) -> float:
        """Return the rate of enqueueing one after another without waiting between: the most this plan gives on one stream."""
        self._place(batch)
        calls = max(10, math.ceil(seconds / float(np.median(self.device_seconds("image", batch, 5)))))
        start = time.perf_counter()
        for _ in range(calls):
            self._context.execute_async_v3(self._stream.value)
        self._do("cuStreamSynchronize", self._stream)
        return calls * len(batch) / (time.perf_counter() - start)

    def _place(self, batch: npt.NDArray[np.float32]) -> None:
        """Copy a batch over and give the context its addresses, once per batch."""
        if batch is self._batch:
            return
        self._free()
        for name in self._names:
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                self._context.set_input_shape(name, batch.shape)
        for name in self._names:
            size = math.prod(self._context.get_tensor_shape(name)) * _BYTES
            self._buffers[name] = ctypes.c_uint64(0)
            self._do("cuMemAlloc_v2", ctypes.byref(self._buffers[name]), ctypes.c_size_t(size))
            self._context.set_tensor_address(name, self._buffers[name].value)
            if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                self._do("cuMemcpyHtoD_v2", self._buffers[name], ctypes.c_void_p(batch.ctypes.data), ctypes.c_size_t(size))
        self._batch = batch

    def _free(self) -> None:
        for address in self._buffers.values():
            self._do("cuMemFree_v2", address)
        self._buffers = {}

    def _context_of_device(self) -> None:
        """Make the device's primary context current: the one TensorRT uses."""
        context = ctypes.c_void_p()
        self._do("cuInit", 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._do("cuCtxSetCurrent", context)

    def _handle(self, function: str, flags: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._do(function, ctypes.byref(handle), flags)
        return handle

    def _do(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            raise RuntimeError(f"{function} failed with error {status}")


def trtexec_p50_s(plan: Path, batch: int, shape: Sequence[int]) -> dict[str, Any]:
    """Return the median GPU compute time that the vendor's tool measures on the same plan, or the reason why there is none."""
    program = shutil.which("trtexec")
    if program is None:
        return {"missing": "trtexec is not on the PATH"}
    command = [program, f"--loadEngine={plan}", f"--shapes=pixels:{'x'.join(map(str, (batch, *shape)))}", "--duration=2", "--useSpinWait"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return {"missing": "trtexec took more than a minute"}
    found = re.search(r"GPU Compute Time:.*?median = ([\d.]+) ms", run.stdout)
    if found is None:
        return {"missing": f"trtexec ended with {run.returncode}: {' '.join((run.stdout + run.stderr).split())[-200:]}"}
    return {"p50_s": float(found[1]) / 1000}
