"""Plans for the device at hand, one per graph and runtime, built from a bundle's portable graphs; needs neither torch nor onnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipq.artifact import PLAN_SUFFIX
from clipq.engines.table import ENGINES, Kind
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.build import BuildOptions, build_plan, log_of
from clipq.engines.tensorrt.device import require_device
from clipq.errors import ExportError, MissingRuntimeError
from clipq.export.stages import Facts, Stages


def require_builder(engine_id: str, options: BuildOptions, *, fix: str) -> None:
    """Check, before any work, that an engine's plans can be built here: the library, for TensorRT a device, and the options.

    Args:
        engine_id: A planned engine.
        options: How it is to be built.
        fix: What to do instead where it cannot be.

    Raises:
        MissingRuntimeError: It cannot be built here.
        UsageError: The library has no such option.
    """
    kind = ENGINES[engine_id]
    try:
        if kind.runtime == "tensorrt":
            require_device()
        api = load_api(kind.runtime)
        api.check_precision(kind.precision)
    except MissingRuntimeError as error:
        why = str(error).rstrip(".")
        raise MissingRuntimeError(f"{engine_id} cannot be built here: {why}", fix=fix) from error
    api.targets(kind.precision, options.compute_capabilities)
    api.check_compatibility(options.compatibility)


def target_device(engine_ids: Iterable[str]) -> dict[str, Any] | None:
    """Return the GPU that plans of these engines are built for where it counts, or None: what began on another one is not continued here.

    Raises:
        MissingRuntimeError: TensorRT would build, and there is no device.
    """
    return require_device().to_json() if any(ENGINES[engine_id].runtime == "tensorrt" for engine_id in engine_ids) else None


def plan_sources(kind: Kind, graphs: Mapping[str, str]) -> dict[str, str]:
    """Return tower -> the graph that the installed library builds from: TensorRT 8 takes the one of ``graph_tensorrt8``.

    Raises:
        MissingRuntimeError: The library is not installed.
    """
    if not kind.graph_tensorrt8 or load_api(kind.runtime).strongly_typed:
        return dict(graphs)
    new, old = f".{kind.graph}.onnx", f".{kind.graph_tensorrt8}.onnx"
    return {tower: f"{name.removesuffix(new)}{old}" if name.endswith(new) else name for tower, name in graphs.items()}


class PlanMaker:
    """Builds the plans of one bundle; engines that share a graph and a runtime share its plan.

    Args:
        folder: The bundle.
        stages: Records what is made.
        options: How to build.
    """

    def __init__(self, folder: Path, stages: Stages, options: BuildOptions) -> None:
        self._folder = folder
        self._stages = stages
        self._options = options
        self._made: dict[tuple[str, str], tuple[str, Facts]] = {}

    def make(self, engine_id: str, kind: Kind, graphs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Facts]]:
        """Build what is missing of an engine's plans.

        Args:
            engine_id: The engine; the first of those that share a plan keeps it in its folder.
            kind: What it is.
            graphs: Tower to the portable graph in the bundle.

        Returns:
            Tower to plan, and tower to what the builder said of it.

        Raises:
            MissingRuntimeError: The library or the device is not here.
            ExportError: The bundle lacks a graph, or the builder refuses it.
            UsageError: The library has no such option.
        """
        sources = plan_sources(kind, graphs)
        said = {tower: self._plan(engine_id, kind, tower, graph) for tower, graph in sources.items()}
        return {tower: name for tower, (name, _) in said.items()}, {tower: facts for tower, (_, facts) in said.items()}

    def _plan(self, engine_id: str, kind: Kind, tower: str, graph: str) -> tuple[str, Facts]:
        if graph not in self._stages.files:
            raise ExportError(f"the bundle has no {graph} to build from", fix="Export it again with this clipq.")
        key = (kind.runtime, graph)
        if key not in self._made:
            name = f"engines/{engine_id}/{tower}{PLAN_SUFFIX}"
            precision = "fp32" if graph == f"towers/{tower}.fp32.onnx" else kind.precision

            def build() -> dict[str, Any]:
                return build_plan(kind.runtime, self._folder / graph, self._folder / name, precision, self._options)

            self._made[key] = name, self._stages.run(name, [name, log_of(Path(name)).as_posix()], self._stages.files[graph].sha256, build)
        return self._made[key]
