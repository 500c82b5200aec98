"""The engines by id: what each is made of, and the class that runs it, loaded only when it is opened."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from clipq.artifact import Bundle, EngineEntry
from clipq.engines.base import Engine
from clipq.errors import RefusedError, unknown_name
from clipq.methods import METHODS, W8A8, all_engine_ids, method_of

_TORCH = "clipq.engines.torch.run:TorchEngine"
_ORT = "clipq.engines.onnxruntime.run:OrtEngine"
_TENSORRT = "clipq.engines.tensorrt.run:TensorrtEngine"
_CPU, _CUDA, _TRT_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PLANNED = ("tensorrt", "tensorrt-rtx")  # runtimes that run a plan built on the target, not the portable graph itself


@dataclass(frozen=True, slots=True)
class Kind:
    """What an engine id means.

    Attributes:
        loader: ``module:Class``; the class has ``from_bundle(bundle, engine_id, threads) -> Engine``.
        runtime: ``torch``, ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``.
        provider: What must compute: an ONNX Runtime provider, ``cpu`` for torch, ``cuda`` for a plan.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``: of the towers the recipe names; the others are FP32. Where only
            weights are quantized ``int8-weights`` or ``int4-weights``.
        graph: Kind of the portable graph of those towers, ``towers/<tower>.<graph>.onnx``; empty for torch.
        graph_tensorrt8: The graph that TensorRT 8 takes instead: it reads no opset above 17. Empty when it is the same one.
        simulated: The integers have fewer than 8 bits, and INT8 kernels compute with them: see ``clipq.methods``.
    """

    loader: str
    runtime: str
    provider: str
    precision: str
    graph: str
    graph_tensorrt8: str = ""
    simulated: bool = False

    @property
    def planned(self) -> bool:
        """Whether a plan is built from the graph on the target."""
        return self.runtime in PLANNED


def _plans(runtime: str) -> dict[str, Kind]:
    prefix = {"tensorrt": "trt", "tensorrt-rtx": "trtrtx"}[runtime]
    kinds = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8-fp16", "fp8": "fp8-fp16"}
    return {
        f"{prefix}-{precision}": Kind(_TENSORRT, runtime, "cuda", precision, graph, "int8" if precision == "int8" else "")
        for precision, graph in kinds.items()
    }


def _by_method() -> dict[str, Kind]:
    """Return the engines of the methods: all of them for ONNX Runtime on the CPU, those with kernels for both factors as plans."""
    kinds = {}
    for engine_id in all_engine_ids():
        found = method_of(engine_id)
        assert found is not None
        method, bits = found
        precision = f"int{bits.weights}-weights" if method.family == "weight-only" else "int8"
        kinds[engine_id] = Kind(_ORT, "onnxruntime", _CPU, precision, engine_id.removeprefix("ort-"), simulated=bits.simulated)
    for name, runtime in (("trt", "tensorrt"), ("trtrtx", "tensorrt-rtx")):
        for method in METHODS.values():
            if str(W8A8) in method.bits:
                graph = f"w8a8-{method.name}"
                kinds[f"{name}-{graph}"] = Kind(_TENSORRT, runtime, "cuda", "int8", f"{graph}-fp16", graph)
    return kinds


ENGINES: dict[str, Kind] = {
    "torch-fp32": Kind(_TORCH, "torch", "cpu", "fp32", ""),
    "ort-fp32": Kind(_ORT, "onnxruntime", _CPU, "fp32", "fp32"),
    "ort-int8-dynamic": Kind(_ORT, "onnxruntime", _CPU, "int8", "int8-dynamic"),
    "ort-int8-static": Kind(_ORT, "onnxruntime", _CPU, "int8", "int8"),
    "ort-cuda-fp32": Kind(_ORT, "onnxruntime", _CUDA, "fp32", "fp32"),
    "ort-cuda-fp16": Kind(_ORT, "onnxruntime", _CUDA, "fp16", "fp16"),
    "ort-trt-fp32": Kind(_ORT, "onnxruntime", _TRT_PROVIDER, "fp32", "fp32"),
    "ort-trt-fp16": Kind(_ORT, "onnxruntime", _TRT_PROVIDER, "fp16", "fp16"),
    "ort-trt-int8": Kind(_ORT, "onnxruntime", _TRT_PROVIDER, "int8", "int8-fp16"),
    **_plans("tensorrt"),
    **_plans("tensorrt-rtx"),
    **_by_method(),
}


def open_engine(
    bundle: Bundle, engine_id: str, threads: int | None = None, *, shares_cores: bool = False, uses_graphs: bool = False
) -> Engine:
    """Return an engine of a bundle, checked against the manifest but not yet loaded: use it in a ``with`` block.

    Args:
        bundle: Where the engine's files are.
        engine_id: ``<runtime>-<precision>[-<method>]``.
        threads: CPU threads of one inference; None leaves the choice to the runtime.
        shares_cores: Other threads of this process need the cores too, so the engine must not busy-wait.
        uses_graphs: Replay batches of one size as a CUDA graph, where a plan runs; the others do without.

    Raises:
        UsageError: The id is unknown to this tool or to the bundle.
        MissingRuntimeError: The runtime or its device is not here.
        RefusedError: A file is not what the manifest says, or the engine is not what its id says.
    """
    checked_entry(bundle, engine_id)
    module, name = ENGINES[engine_id].loader.split(":")
    engine: Engine = getattr(importlib.import_module(module), name).from_bundle(bundle, engine_id, threads)
    engine.shares_cores, engine.uses_graphs = shares_cores, uses_graphs
    return engine


def checked_entry(bundle: Bundle, engine_id: str) -> EngineEntry:
    """Return an engine's entry of the manifest: its id decides what it is, and a manifest that says otherwise is refused.

    Raises:
        UsageError: The id is unknown to this tool or to the bundle.
        RefusedError: Runtime, provider, precision, graphs, or whether it is simulated, are not those of the id.
    """
    if engine_id not in ENGINES:
        raise unknown_name("engine", engine_id, ENGINES)
    entry, kind = bundle.engine(engine_id), ENGINES[engine_id]
    found, expected = ((one.runtime, one.provider, one.precision, *(["simulated"] if one.simulated else [])) for one in (entry, kind))
    if found != expected:
        raise RefusedError(
            f"the manifest of {bundle.folder} says of {engine_id} what its name does not",
            found=", ".join(map(str, found)),
            expected=", ".join(expected),
            fix="Export the bundle again.",
        )
    if kind.planned:
        _check_graphs(bundle, engine_id, entry, kind)
    return entry


def _check_graphs(bundle: Bundle, engine_id: str, entry: EngineEntry, kind: Kind) -> None:
    """Check that plans come from the graphs of their precision: one of its kind, none of another, and one for each tower."""
    for tower in ("image", "text"):
        own, plain = f"towers/{tower}.{kind.graph}.onnx", f"towers/{tower}.fp32.onnx"
        allowed = [own] if tower in entry.quantized else [own, plain]
        if entry.graphs.get(tower) not in allowed:
            raise RefusedError(
                f"the manifest of {bundle.folder} names a wrong graph for the {tower} tower of {engine_id}",
                found=entry.graphs.get(tower),
                expected=" or ".join(dict.fromkeys(allowed)),
                fix="Export the bundle again.",
            )
    if not any(name.endswith(f".{kind.graph}.onnx") for name in entry.graphs.values()):
        raise RefusedError(f"no tower of {engine_id} in {bundle.folder} is {kind.precision}", fix="Export the bundle again.")
