"""One plan in device memory: its context, its buffers, one inference at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.engines.base import Float32, TowerSpec
from clipq.engines.tensorrt.adapter import Api
from clipq.engines.tensorrt.context import create_context, scratch_bytes, set_scratch
from clipq.engines.tensorrt.cuda import Buffer, Cuda, Graph, OutOfDeviceMemoryError
from clipq.engines.tensorrt.log import Line, last_failure
from clipq.engines.tensorrt.trust import CheckedPlan
from clipq.errors import ClipqError, EngineError, MissingRuntimeError, RefusedError

_TYPES = {"FLOAT": "float32", "INT32": "int32"}


class Plan:
    """A loaded plan of one tower; not for several threads at once.

    Buffers grow to the largest batch that was run. The first dimension of input and output is the batch.

    Attributes:
        batch: Smallest, usual and largest batch of its profile.
        uses_graphs: Replay batches of one size as a CUDA graph instead of enqueueing kernel by kernel.
    """

    def __init__(self, api: Api, cuda: Cuda, checked: CheckedPlan, fix: str) -> None:
        """Load a plan that ``check_plan`` let pass.

        Args:
            api: The library.
            cuda: Where buffers and the stream come from.
            checked: The plan.
            fix: What the reader does when it cannot be used.

        Raises:
            EngineError: TensorRT cannot load it.
            OutOfDeviceMemoryError: Its weights do not fit.
            MissingRuntimeError: TensorRT-RTX says that it cannot run here.
            RefusedError: The file changed after it was checked.
        """
        self.uses_graphs = False
        self._api, self._cuda, self._path, self._fix = api, cuda, checked.path, fix
        self._runtime, self._engine = _deserialise(api, checked, fix)
        self._context = self._said("gives no execution context", create_context, api, self._engine)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name).name for name in names}
        self._inputs = [name for name in names if modes[name] == "INPUT"]
        self._outputs = [name for name in names if modes[name] == "OUTPUT"]
        smallest, usual, largest = self._engine.get_tensor_profile_shape(self._inputs[0], 0)
        self.batch = (int(smallest[0]), int(usual[0]), int(largest[0]))
        self._buffers: dict[str, Buffer] = {}
        self._graph: Graph | None = None  # of the batch that is ready
        self._ready = 0  # batch whose shapes and addresses are set

    def check_signature(self, input_name: str, output_name: str, spec: TowerSpec) -> None:
        """Check names, types and shapes of the inputs and outputs.

        Raises:
            RefusedError: They are not those of the tower.
        """
        found = [self._describe(name) for name in self._inputs], [self._describe(name) for name in self._outputs]
        expected = [(input_name, spec.input_dtype, *spec.input_shape)], [(output_name, "float32", spec.embed_dim)]
        if found != expected:
            raise RefusedError(f"{self._path} is another tower's plan", found=found, expected=expected, fix=self._fix)

    def run(self, batch: npt.NDArray[Any], embed_dim: int) -> Float32:
        """Return the embeddings of a batch within the profile, float32 ``(n, embed_dim)``.

        Raises:
            OutOfDeviceMemoryError: A smaller batch may still fit.
            EngineError: TensorRT or CUDA failed.
        """
        output = self._prepare(batch, embed_dim)
        self._launch()
        size = len(batch) * embed_dim * 4
        self._cuda.copy(output, size, "to host")
        self._cuda.wait()
        return output.host[:size].view(np.float32).reshape(len(batch), embed_dim).copy()

    def device_seconds(self, batch: npt.NDArray[Any], embed_dim: int, calls: int) -> list[float]:
        """Return how long the device computes, per call, input and output staying there.

        Raises:
            EngineError: TensorRT or CUDA failed, or memory ran out: half a batch would be another measurement.
        """
        self._prepare(batch, embed_dim)
        self._launch()  # what a first run does once is not counted
        return [self._cuda.seconds(self._launch) for _ in range(calls)]

    def inspect(self, embed_dim: int) -> str:
        """Return what TensorRT's inspector says of the layers at the usual batch, as JSON text.

        Raises:
            EngineError: TensorRT or CUDA failed.
        """
        self._set_batch(self.batch[1], embed_dim)
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context  # without shapes it cannot tell types
        return str(inspector.get_engine_information(self._api.library.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the device memory: the graph before its buffers, the context before its engine."""
        self._cuda.wait()
        self._drop_graph()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        del self._context, self._engine, self._runtime

    def _prepare(self, batch: npt.NDArray[Any], embed_dim: int) -> Buffer:
        """Set the shapes, start copying the batch to the device, and return the output's buffer."""
        self._set_batch(len(batch), embed_dim)
        target = self._buffers["input"]
        np.copyto(target.host[: batch.nbytes].view(batch.dtype).reshape(batch.shape), batch)
        self._cuda.copy(target, batch.nbytes, "to device")
        return self._buffers["output"]

    def _set_batch(self, n: int, embed_dim: int) -> None:
        if n == self._ready:
            return
        self._ready = 0
        self._drop_graph()  # it holds addresses, and what TensorRT keeps in its context for the shape
        shape = (n, *tuple(self._engine.get_tensor_shape(self._inputs[0]))[1:])
        self._said(f"refuses the shape {shape}", self._context.set_input_shape, self._inputs[0], shape)
        scratch = self._buffer("scratch", scratch_bytes(self._engine, self._context), host=False)
        set_scratch(self._context, scratch.address, scratch.size_bytes)
        sizes = {self._inputs[0]: ("input", int(np.prod(shape)) * 4), self._outputs[0]: ("output", n * embed_dim * 4)}
        for name, (role, size) in sizes.items():
            buffer = self._buffer(role, size, host=True)
            self._said(f"refuses memory for {name}", self._context.set_tensor_address, name, buffer.address)
        self._ready = n

    def _buffer(self, role: str, size_bytes: int, *, host: bool) -> Buffer:
        """Return a buffer of at least this size."""
        buffer = self._buffers.get(role)
        if buffer is None or buffer.size_bytes < size_bytes:
            if buffer is not None:
                del self._buffers[role]
                buffer.free()
            buffer = self._buffers[role] = self._cuda.allocate(max(size_bytes, 1), host=host)
        return buffer

    def _launch(self) -> None:
        if not self.uses_graphs:
            self._enqueue()
            return
        if self._graph is None:
            self._enqueue()  # TensorRT does its work for new shapes outside the recording
            self._cuda.wait()
            self._graph = self._cuda.capture(self._enqueue)
        self._graph.launch()

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
            self._graph = None

    def _enqueue(self) -> None:
        self._said("failed in an inference", self._context.execute_async_v3, self._cuda.stream)

    def _said(self, failure: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of TensorRT gives; None or False become an error with what TensorRT said."""
        with self._api.log.listen() as lines:
            result = function(*arguments)
        if result is None or result is False:
            raise _failure(f"{self._api.title} {failure} of {self._path}", lines, self._fix)
        return result

    def _describe(self, name: str) -> tuple[Any, ...]:
        kind = self._engine.get_tensor_dtype(name).name
        return (name, _TYPES.get(kind, kind), *tuple(self._engine.get_tensor_shape(name))[1:])


def _deserialise(api: Api, checked: CheckedPlan, fix: str) -> tuple[Any, Any]:
    path, data = checked.path, checked.read()
    with api.log.listen() as lines:
        try:
            runtime = api.library.Runtime(api.logger)
        except TypeError as error:  # what the bindings make of a null pointer
            raise _failure(f"{api.title} does not start", lines, "See that the driver is new enough for it.") from error
        if runtime.engine_host_code_allowed:  # the library's default is off; nothing here ever switches it on
            raise RefusedError(f"{api.title} would run host code of plans", expected="engine_host_code_allowed off")
        if api.runtime == "tensorrt-rtx":
            _check_validity(api, runtime, data, path, fix)
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise _failure(f"{api.title} cannot load {path}", lines, fix)
    return runtime, engine


def _check_validity(api: Api, runtime: Any, data: bytes, path: Path, fix: str) -> None:
    """Ask TensorRT-RTX whether a plan runs here, before it is loaded; it tells from the plan's head."""
    validity, reasons = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity == api.library.EngineValidity.INVALID:
        members = api.library.EngineInvalidityDiagnostics.__members__
        names = [name.lower().replace("_", " ") for name, bit in members.items() if int(reasons) & int(bit)]
        raise MissingRuntimeError(f"{path} cannot run here", found=", ".join(names) or f"no reason from {api.title}", fix=fix)


def _failure(what: str, lines: list[Line], fix: str) -> ClipqError:
    reason = last_failure(lines)
    out_of_memory = any("out of memory" in line.text.lower() or "outofmemory" in line.text.lower() for line in lines)
    return (OutOfDeviceMemoryError if out_of_memory else EngineError)(what, found=reason, fix=fix)
