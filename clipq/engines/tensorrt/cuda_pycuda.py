"""CUDA through pycuda: the driver API in the primary context, which TensorRT shares."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np

from clipq.engines.tensorrt.cuda import Buffer, Direction, Graph, OutOfDeviceMemoryError
from clipq.errors import EngineError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: work on the default stream must not stand between two of our calls


class PyCuda:
    """One stream of device 0; see ``Cuda``. pycuda has no functions for CUDA graphs, so ``capture`` refuses.

    A context of the driver API is current per thread: every call makes it current and puts back what was there.
    """

    def __init__(self, *, spinning: bool) -> None:
        self._driver = importlib.import_module("pycuda.driver")
        self.name = f"pycuda {metadata.version('pycuda')}"
        self._driver.init()
        self._context: Any = self._driver.Device(0).retain_primary_context()
        with self._current():
            self._stream = self._driver.Stream(_NON_BLOCKING)
            self.stream = int(self._stream.handle)
            self._start, self._end = self._driver.Event(), self._driver.Event()
            flags = self._driver.event_flags
            self._done = self._driver.Event(flags.DISABLE_TIMING | (flags.DEFAULT if spinning else flags.BLOCKING_SYNC))

    def allocate(self, size_bytes: int, *, host: bool) -> Buffer:
        """Return a buffer on the device, with its page-locked twin when ``host`` is set; see ``Cuda``."""
        with self._current():
            memory: Any = self._driver.mem_alloc(size_bytes)
            pinned: Any = self._driver.pagelocked_empty(size_bytes, np.uint8) if host else np.empty(0, np.uint8)

        def free() -> None:
            with self._current():
                memory.free()
                if host:
                    pinned.base.free()

        return Buffer(int(memory), pinned, size_bytes, free)

    def copy(self, buffer: Buffer, size_bytes: int, direction: Direction) -> None:
        """Start copying the first bytes of a buffer; see ``Cuda``."""
        with self._current():
            if direction == "to device":
                self._driver.memcpy_htod_async(buffer.address, buffer.host[:size_bytes], self._stream)
            else:
                self._driver.memcpy_dtoh_async(buffer.host[:size_bytes], buffer.address, self._stream)

    def wait(self) -> None:
        """Return when everything on the stream is done."""
        with self._current():
            self._done.record(self._stream)
            self._done.synchronize()

    def seconds(self, work: Callable[[], None]) -> float:
        """Return how long the device needed for ``work``, in seconds; see ``Cuda``."""
        with self._current():
            self._start.record(self._stream)
            work()
            self._end.record(self._stream)
            self._end.synchronize()
            return float(self._start.time_till(self._end)) / 1000

    def capture(self, work: Callable[[], None]) -> Graph:
        """Refuse: pycuda cannot record CUDA graphs.

        Raises:
            EngineError: Always.
        """
        del work
        raise EngineError("pycuda cannot record CUDA graphs", fix="Run: pip install 'cuda-python>=12', or leave CUDA graphs off.")

    def close(self) -> None:
        """Release events, stream and context."""
        with self._current():
            del self._start, self._end, self._done, self._stream
        self._context = None  # the last reference releases the primary context

    @contextlib.contextmanager
    def _current(self) -> Iterator[Any]:
        """Make the context current in this thread; errors of the driver leave as ours."""
        self._context.push()
        try:
            yield
        except self._driver.MemoryError as error:
            raise OutOfDeviceMemoryError("CUDA is out of memory", found=error, fix="See nvidia-smi.") from error
        except self._driver.Error as error:
            raise EngineError("CUDA failed", found=error, fix="See clipq doctor and nvidia-smi.") from error
        finally:
            self._context.pop()
