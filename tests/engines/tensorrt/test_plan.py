"""Loading and running a plan on stand-ins: a CUDA on host memory, and TensorRTs with the names of one version and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tensorrt_names import Recorder, stand_in

from clipq.engines.base import TowerSpec
from clipq.engines.tensorrt import run as run_module
from clipq.engines.tensorrt.adapter import Api
from clipq.engines.tensorrt.cuda import Buffer, Direction, Graph, OutOfDeviceMemoryError
from clipq.engines.tensorrt.log import Log, make_logger
from clipq.engines.tensorrt.plan import Plan
from clipq.engines.tensorrt.run import TensorrtEngine
from clipq.engines.tensorrt.trust import CheckedPlan
from clipq.errors import ClipqError, EngineError, MissingRuntimeError, RefusedError
from clipq.files import sha256_bytes

VERSIONS = ("8.6", "10.16", "11.4", "rtx-1.7")
SPEC = TowerSpec("float32", (3, 2, 2), 4)


def _forbidden(*_arguments: Any) -> None:
    pytest.fail("the plan was handed to the library")


class Machine:
    """CUDA on host memory: a buffer's device side is an array of its own, and the order of all calls is written down."""

    name, stream = "stand-in", 5

    def __init__(self) -> None:
        self.memory: dict[int, npt.NDArray[np.uint8]] = {}
        self.said: list[str] = []
        self.recording = False

    def allocate(self, size_bytes: int, *, host: bool) -> Buffer:
        address = 256 * (len(self.said) + 1)
        self.memory[address] = np.zeros(size_bytes, np.uint8)
        self.said.append(f"allocate {size_bytes}")
        return Buffer(address, np.zeros(size_bytes if host else 0, np.uint8), size_bytes, lambda: self.memory.pop(address) is None)

    def copy(self, buffer: Buffer, size_bytes: int, direction: Direction) -> None:
        device, host = self.memory[buffer.address], buffer.host
        (device if direction == "to device" else host)[:size_bytes] = (host if direction == "to device" else device)[:size_bytes]
        self.said.append(direction)

    def wait(self) -> None:
        self.said.append("wait")

    def seconds(self, work: Callable[[], None]) -> float:
        work()
        return 0.25

    def capture(self, work: Callable[[], None]) -> Graph:
        self.said.append("capture")
        self.recording = True
        work()
        self.recording = False
        return Graph(launch=lambda: self.said.append("launch"), free=lambda: self.said.append("free"))

    def close(self) -> None:
        self.said.append("close")


class Library:
    """A TensorRT of one version whose network doubles the first ``embed_dim`` numbers of a sample."""

    def __init__(self, version: str, machine: Machine, **engine: Any) -> None:
        self.version, self.machine = version, machine
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self.scratch: tuple[int, int] = (0, 0)
        self.works = True
        library = stand_in(version, Runtime=lambda _logger: self.runtime)
        log = Log()
        self.api = Api("tensorrt-rtx" if version.startswith("rtx") else "tensorrt", library, log, make_logger(library, log))
        self.context = self._context()
        self.engine = self._engine(**engine)
        self.runtime = self._runtime()

    def _context(self) -> Recorder:
        answers: dict[str, Any] = {"set_input_shape": self._shape, "set_tensor_address": self._address, "execute_async_v3": self._execute}
        if self.version != "8.6":
            answers |= {"update_device_memory_size_for_shapes": lambda: 100 * self.batch, "set_device_memory": self._scratch}
        return Recorder(self.version, "IExecutionContext", **answers)

    def _engine(self, *, inputs: tuple[str, ...] = ("pixels",), kind: str = "FLOAT") -> Recorder:
        tensors = {**dict.fromkeys(inputs, ("INPUT", kind, (-1, 3, 2, 2))), "embedding": ("OUTPUT", "FLOAT", (-1, 4))}
        answers: dict[str, Any] = {
            "num_io_tensors": len(tensors),
            "get_tensor_name": lambda index: list(tensors)[index],
            "get_tensor_mode": lambda name: SimpleNamespace(name=tensors[name][0]),
            "get_tensor_dtype": lambda name: SimpleNamespace(name=tensors[name][1]),
            "get_tensor_shape": lambda name: tensors[name][2],
            "get_tensor_profile_shape": lambda _name, _index: [(1, 3, 2, 2), (2, 3, 2, 2), (8, 3, 2, 2)],
            "create_engine_inspector": lambda: Recorder(self.version, "EngineInspector", get_engine_information=lambda _form: "{}"),
        }
        if self.version == "8.6":
            answers |= {"create_execution_context_without_device_memory": lambda: self.context, "device_memory_size": 4096}
        else:
            answers["create_execution_context"] = self._create
        if self.version.startswith("rtx"):
            answers["create_runtime_config"] = lambda: Recorder(self.version, "IRuntimeConfig")
        return Recorder(self.version, "ICudaEngine", **answers)

    def _runtime(self) -> Recorder:
        answers: dict[str, Any] = {"engine_host_code_allowed": False, "deserialize_cuda_engine": lambda _data: self.engine}
        if self.version.startswith("rtx"):
            answers |= {"engine_header_size": 64, "get_engine_validity": lambda _head: (self.api.library.EngineValidity.VALID, 0)}
        return Recorder(self.version, "Runtime", **answers)

    def _create(self, how: Any) -> Recorder:
        strategies = self.api.library.ExecutionContextAllocationStrategy
        if self.api.runtime == "tensorrt":
            assert how == strategies.USER_MANAGED
            return self.context
        assert how.calls == [("set_execution_context_allocation_strategy", strategies.USER_MANAGED)]
        lazy_or_eager = self.api.library.DynamicShapesKernelSpecializationStrategy
        assert how.values == {"dynamic_shapes_kernel_specialization_strategy": lazy_or_eager.EAGER}
        return self.context

    def _shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert (name, shape[1:]) == ("pixels", (3, 2, 2))
        self.batch = shape[0]
        return True

    def _address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def _scratch(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def _execute(self, stream: int) -> bool:
        assert stream == self.machine.stream
        if not self.works:
            self.api.log.take("ERROR", "Cask Error: out of memory in kernel")
            return False
        self.machine.said.append("recorded" if self.machine.recording else "execute")
        source = self.machine.memory[self.addresses["pixels"]].view(np.float32)[: self.batch * 12].reshape(self.batch, 12)
        target = self.machine.memory[self.addresses["embedding"]].view(np.float32)
        target[: self.batch * 4] = 2 * source[:, :4].ravel()
        return True


def _plan(tmp_path: Path, library: Library) -> Plan:
    (tmp_path / "image.plan").write_bytes(bytes(64))
    return Plan(library.api, library.machine, CheckedPlan(tmp_path / "image.plan", sha256_bytes(bytes(64))), "Rebuild.")


@pytest.mark.parametrize("version", VERSIONS)
def test_plan_runs_with_the_names_of_each_version(version: str, tmp_path: Path) -> None:
    """Batches of several sizes give their rows; scratch memory is what the version asks for, and everything is given back."""
    library = Library(version, Machine())
    plan = _plan(tmp_path, library)
    assert plan.batch == (1, 2, 8)
    plan.check_signature("pixels", "embedding", SPEC)
    for n in (2, 5, 3):
        pixels = np.random.default_rng(n).standard_normal((n, 3, 2, 2), dtype=np.float32)
        np.testing.assert_array_equal(plan.run(pixels, 4), 2 * pixels.reshape(n, 12)[:, :4])
    scratch = library.machine.memory[library.scratch[0] or library.context.values["device_memory"]]
    assert len(scratch) == (4096 if version == "8.6" else 500)
    assert plan.device_seconds(pixels, 4, 3) == [0.25] * 3
    assert plan.inspect(4) == "{}"
    plan.close()
    assert library.machine.memory == {}


def test_graph_is_recorded_once_per_run_of_one_batch_size(tmp_path: Path) -> None:
    """A batch size is run once, recorded, then replayed; another size releases the recording, whose shapes the context has no more."""
    library = Library("10.16", Machine())
    plan, said = _plan(tmp_path, library), library.machine.said
    plan.uses_graphs = True

    def steps(n: int) -> list[str]:
        said.clear()
        plan.run(np.zeros((n, 3, 2, 2), np.float32), 4)
        return [step for step in said if not step.startswith(("allocate", "to"))]

    first = ["execute", "wait", "capture", "recorded", "launch", "wait"]
    assert steps(4) == first
    assert steps(4) == ["launch", "wait"]
    assert steps(2) == ["free", *first]
    assert steps(4) == ["free", *first]
    said.clear()
    plan.close()
    assert said == ["wait", "free"]


def test_failed_inference_is_one_line_with_what_tensorrt_said(tmp_path: Path) -> None:
    """False from TensorRT becomes an error with its last message; a lack of memory is told apart, so that half may be tried."""
    library = Library("10.16", Machine())
    plan = _plan(tmp_path, library)
    library.works = False
    with pytest.raises(OutOfDeviceMemoryError, match=r"TensorRT 10\.16 failed in an inference.*found Cask Error: out of memory"):
        plan.run(np.zeros((2, 3, 2, 2), np.float32), 4)


@pytest.mark.parametrize("shape", [{"inputs": ("tokens",)}, {"inputs": ("pixels", "mask")}, {"kind": "HALF"}])
def test_plan_of_another_tower_is_refused(shape: dict[str, Any], tmp_path: Path) -> None:
    """Names, types and shapes must be those of the tower."""
    plan = _plan(tmp_path, Library("10.16", Machine(), **shape))
    with pytest.raises(RefusedError, match="another tower's plan"):
        plan.check_signature("pixels", "embedding", SPEC)


def test_plan_that_tensorrt_does_not_load_is_one_line(tmp_path: Path) -> None:
    """None from deserialising is an error with TensorRT's reason, not a crash in the next line."""
    library = Library("11.4", Machine())

    def refuse(_data: bytes) -> None:
        library.api.log.take("ERROR", "IRuntime::deserializeCudaEngine: plan.header.size == blobSize failed")

    library.runtime = Recorder("11.4", "Runtime", engine_host_code_allowed=False, deserialize_cuda_engine=refuse)
    with pytest.raises(EngineError, match=r"TensorRT 11\.4 cannot load .*found IRuntime.*blobSize failed\. Rebuild\."):
        _plan(tmp_path, library)


def test_library_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    """The bindings turn a null pointer into a TypeError; the reader gets what TensorRT said."""
    library = Library("8.6", Machine())

    def fail(_logger: Any) -> None:
        library.api.log.take("ERROR", "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library.api.library.Runtime = fail
    with pytest.raises(EngineError, match=r"TensorRT 8\.6 does not start; found CUDA initialization failure.*new enough"):
        _plan(tmp_path, library)


def test_rtx_says_why_a_plan_cannot_run(tmp_path: Path) -> None:
    """What TensorRT-RTX reads in a plan's head is told in words, before the plan is loaded."""
    library = Library("rtx-1.7", Machine())
    reasons = library.api.library.EngineInvalidityDiagnostics
    library.api.library.EngineInvalidityDiagnostics = SimpleNamespace(
        __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "CUDA_ERROR": 64}
    )
    assert {"VERSION_MISMATCH", "UNSUPPORTED_CC", "CUDA_ERROR"} <= set(reasons.__members__)
    invalid = library.api.library.EngineValidity.INVALID
    answers = {"engine_header_size": 64, "get_engine_validity": lambda head: (invalid, 3), "engine_host_code_allowed": False}
    library.runtime = Recorder("rtx-1.7", "Runtime", **answers, deserialize_cuda_engine=_forbidden)
    with pytest.raises(MissingRuntimeError, match="found version mismatch, unsupported cc"):
        _plan(tmp_path, library)


def test_host_code_is_never_allowed(tmp_path: Path) -> None:
    """A library that would run a plan's host code gets no plan."""
    library = Library("10.16", Machine())
    library.runtime = Recorder("10.16", "Runtime", engine_host_code_allowed=True, deserialize_cuda_engine=_forbidden)
    with pytest.raises(RefusedError, match="host code") as caught:
        _plan(tmp_path, library)
    assert isinstance(caught.value, ClipqError)


def test_opening_that_fails_gives_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second tower's plan is refused, the first one's memory and the stream are released."""
    machine = Machine()
    library = Library("10.16", machine)
    (tmp_path / "image.plan").write_bytes(bytes(64))
    monkeypatch.setattr(run_module, "open_cuda", lambda spinning: machine)
    monkeypatch.setattr(run_module, "load_api", lambda _runtime: library.api)
    towers = {"image": SPEC, "text": TowerSpec("int32", (5,), 4)}
    files = dict.fromkeys(("image", "text"), CheckedPlan(tmp_path / "image.plan", sha256_bytes(bytes(64))))
    engine = TensorrtEngine("trt-fp16", "tensorrt", towers, files, "rebuild")  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="another tower's plan"), engine:
        pass
    assert machine.said[-1] == "close"
    assert machine.memory == {}
