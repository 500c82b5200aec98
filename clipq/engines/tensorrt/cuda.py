"""The five things a plan needs of CUDA beside TensorRT itself, behind one interface, so that either binding serves.

An inference fills a page-locked buffer, copies it over, runs, copies back and waits; a benchmark times the middle with device events;
a CUDA graph replays it with one launch. That is the whole use of CUDA here, hence five functions: ``allocate``, ``copy``, ``wait``,
``seconds`` and ``capture``. Contexts, streams and events stay inside the binding: one context, one stream per object.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from clipq.errors import EngineError, MissingRuntimeError

BINDINGS = {  # library -> the module that speaks it, in order of preference: cuda-python needs no compiler and captures graphs
    "cuda-python": ("cuda.bindings.runtime", "clipq.engines.tensorrt.cuda_python:CudaPython"),
    "pycuda": ("pycuda.driver", "clipq.engines.tensorrt.cuda_pycuda:PyCuda"),
}
Direction = Literal["to device", "to host"]


class OutOfDeviceMemoryError(EngineError):
    """The device has not enough free memory; a smaller batch may still fit."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory on the device, and page-locked memory of the same size on the host for copies that do not wait.

    Attributes:
        address: Of the device memory.
        host: The host memory as one-dimensional ``uint8``; empty where the buffer was asked for without it.
        size_bytes: Of the device memory.
        free: Releases both; to be called once.
    """

    address: int
    host: npt.NDArray[np.uint8]
    size_bytes: int
    free: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded CUDA graph.

    Attributes:
        launch: Enqueues the whole of it.
        free: Releases it; to be called once.
    """

    launch: Callable[[], None]
    free: Callable[[], None]


class Cuda(Protocol):
    """One stream of the first visible device; every call works in its order.

    Attributes:
        name: The binding with its version, e.g. ``cuda-python 13.4.4``.
        stream: Handle of the stream, for TensorRT to enqueue on.
    """

    name: str
    stream: int

    def allocate(self, size_bytes: int, *, host: bool) -> Buffer:
        """Return a buffer on the device, with its page-locked twin when ``host`` is set.

        Raises:
            OutOfDeviceMemoryError: It does not fit.
        """

    def copy(self, buffer: Buffer, size_bytes: int, direction: Direction) -> None:
        """Start copying the first bytes of a buffer between host and device; returns at once."""

    def wait(self) -> None:
        """Return when everything on the stream is done."""

    def seconds(self, work: Callable[[], None]) -> float:
        """Return how long the device needed for the ``work`` that the call enqueues, by events around it on the stream; waits for it."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues as a CUDA graph without running it, and return it.

        Raises:
            EngineError: The binding cannot, or the work cannot be recorded.
        """

    def close(self) -> None:
        """Release the stream and the context; buffers and graphs before it."""


def open_cuda(*, spinning: bool) -> Cuda:
    """Return the interface over the installed binding. Call ``require_device`` before.

    Args:
        spinning: Whether a thread that waits for the device may keep its core busy; that answers sooner, and slows other threads.

    Raises:
        MissingRuntimeError: Neither binding is installed.
        EngineError: The device gives no stream.
    """
    module, name = BINDINGS[require_binding()][1].split(":")
    cuda: Cuda = getattr(importlib.import_module(module), name)(spinning=spinning)
    return cuda


def require_binding() -> str:
    """Return the binding to use: the installed one, cuda-python where both are; nothing is loaded.

    Raises:
        MissingRuntimeError: Neither binding is installed.
    """
    for library in BINDINGS:
        if installed(library):
            return library
    raise MissingRuntimeError(
        "no CUDA binding for Python is installed",
        expected=" or ".join(BINDINGS),
        fix="Run: pip install cuda-python, of the major version of your CUDA (12 on JetPack 6), or install pycuda.",
    )


def installed(library: str) -> bool:
    """Return whether a binding of ``BINDINGS`` is installed; it is not loaded."""
    try:
        return importlib.util.find_spec(BINDINGS[library][0]) is not None
    except ModuleNotFoundError:  # the package around it is missing, or too old to have the module
        return False
