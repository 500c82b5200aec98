"""What computes a tower at each stage: PyTorch, the deployed engine, or a graph made for the stage, each opened only where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from clipq.artifact import Bundle
from clipq.attribution.pixels import Transform
from clipq.attribution.stages import PLAIN, Form, Plan
from clipq.engines.base import Engine, Float32, Tower
from clipq.engines.onnxruntime.providers import CPU
from clipq.engines.table import open_engine
from clipq.engines.torch.run import TorchEngine
from clipq.engines.towers import INPUT_NAMES, OUTPUT_NAME
from clipq.errors import EngineError
from clipq.evaluate.embed import Work
from clipq.evaluate.provenance import runtime_version, tower_facts
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.partial import simulated, without_activation_quantization, without_weight_quantization
from clipq.export.typed.half import to_half
from clipq.export.typed.rounded import write_rounded

Run = Callable[[npt.NDArray[Any]], Float32]
TORCH = "torch-fp32"


def form_facts(bundle: Bundle, plan: Plan, tower: Tower, form: Form) -> dict[str, Any]:
    """Return what decides the values of a tower at a stage; the same facts as ``clipq eval`` stores embeddings under, where it has them.

    Raises:
        MissingRuntimeError: A runtime is not installed.
        RefusedError: A graph is not what the manifest says.
    """
    if form in {"torch", "reference"}:
        own = {"pixels": "open_clip"} if form == "reference" else {}
        return {**tower_facts(bundle, TORCH, tower), **own}
    if form == "engine":
        return tower_facts(bundle, plan.engine_id, tower)
    name = PLAIN[tower] if form == "fp32" else plan.graphs[tower]
    facts = {"tower": tower, "weights": _hashes(bundle, name), "runtime": "onnxruntime", "version": runtime_version("onnxruntime")}
    made = {} if form == "fp32" else {"stage": form, "half": plan.half, "fp32": _hashes(bundle, plan.unquantized[tower])}
    return {**facts, "provider": CPU, **made}


class Towers:
    """Opens what computes each form of each tower; use it in a ``with`` block.

    Args:
        bundle: Where the graphs are.
        plan: The stages.
        work: Threads of one inference.
        scratch: For graphs made for a stage.
    """

    def __init__(self, bundle: Bundle, plan: Plan, work: Work, scratch: Path) -> None:
        self._bundle, self._plan, self._work, self._scratch = bundle, plan, work, scratch
        self._stack = ExitStack()
        self._engines: dict[str, Engine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def transform(self) -> Transform:
        """Return open_clip's own preprocessing."""
        engine = self._engine(TORCH)
        if not isinstance(engine, TorchEngine):
            raise EngineError(f"{TORCH} is not FP32 PyTorch", fix="Report this as a bug.")
        return engine.transform()

    def open(self, tower: Tower, form: Form) -> Run:
        """Return what computes a tower: inputs to raw embeddings, float32 ``(n, dim)``; several threads may call it at once.

        Raises:
            ExportError: The stage's graph cannot be made.
            EngineError: The runtime cannot load it.
        """
        if form in {"torch", "reference", "engine"}:
            engine = self._engine(self._plan.engine_id if form == "engine" else TORCH)
            return lambda batch: engine.run(tower, batch)
        rounded = form == "half" or (form == "quantized" and self._plan.rounds)
        options = {"optimised": not rounded, "quantized_kernels": form == "default", "exact_products": form != "default"}
        session = open_on_cpu(self._graph(tower, form), threads=self._work.threads, **options)
        return lambda batch: _checked(session.run([OUTPUT_NAME], {INPUT_NAMES[tower]: batch})[0], tower, form)

    def _engine(self, engine_id: str) -> Engine:
        if engine_id not in self._engines:
            opened = open_engine(self._bundle, engine_id, self._work.threads, shares_cores=True)
            self._engines[engine_id] = self._stack.enter_context(opened)
        return self._engines[engine_id]

    def _graph(self, tower: Tower, form: Form) -> Path:
        plain, source = (checked_graph(self._bundle, name) for name in (PLAIN[tower], self._plan.graphs[tower]))
        target = self._scratch / f"{tower}.{form}.onnx"
        if form in {"fp32", "default"}:
            return plain if form == "fp32" else source
        if form == "half":
            typed = target.with_suffix(".typed.onnx")
            to_half(plain, typed, self._plan.half)
            write_rounded(typed, target)
        elif form == "weights":
            without_activation_quantization(source, target)
        elif form == "activations":
            without_weight_quantization(source, target, checked_graph(self._bundle, self._plan.unquantized[tower]))
        elif self._plan.rounds:
            write_rounded(source, target)
        else:
            simulated(source, target)
        return target


def checked_graph(bundle: Bundle, name: str) -> Path:
    """Return a graph's path after checking it and the data beside it.

    Raises:
        RefusedError: A file is not what the manifest says.
    """
    for other in _names(bundle, name):
        bundle.file(other)
    return bundle.file(name)


def _hashes(bundle: Bundle, name: str) -> list[str]:
    checked_graph(bundle, name)
    return sorted(bundle.manifest.files[other].sha256 for other in _names(bundle, name))


def _names(bundle: Bundle, name: str) -> list[str]:
    return [other for other in bundle.manifest.files if other == name or other.startswith(f"{name}.data")]


def _checked(output: Float32, tower: Tower, form: Form) -> Float32:
    if not np.isfinite(output).all():
        found = f"{int((~np.isfinite(output).all(axis=1)).sum())} of {len(output)} embeddings"
        overflow = "Half precision cannot hold this model; --no-fp16 leaves the stage out of engines that do not compute in it."
        fix = overflow if form == "half" else "Export the bundle again."
        raise EngineError(f"NaN or infinity in the {tower} tower at the stage {form}", found=found, fix=fix)
    return output
