"""Builds one plan from one portable graph, on the target, and says everything about how it was made."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipq.engines.tensorrt.adapter import Api, check_sm, load_api
from clipq.engines.tensorrt.device import DeviceFacts, require_device
from clipq.engines.tensorrt.log import Line, as_text, last_failure
from clipq.engines.tensorrt.parse import check_types, drop_other_outputs, layers, parse
from clipq.engines.tensorrt.progress import Percent, interrupts, make_monitor
from clipq.engines.tensorrt.timing_cache import TimingCache, user_folder
from clipq.engines.towers import OUTPUT_NAME
from clipq.errors import EngineError, ExportError, MissingRuntimeError
from clipq.files import atomic_path, sha256_file, write_text
from clipq.progress import bar, note

Profile = dict[str, list[list[int]]]
_MEMORY = re.compile(r"out of memory|OutOfMemory|OUT_OF_MEMORY", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a plan is built.

    Attributes:
        batch: Smallest, usual and largest batch; kernels are chosen for the usual one.
        compatibility: ``version`` and ``hardware``: plans that other TensorRT versions, other GPUs can load.
        compute_capabilities: GPUs that TensorRT-RTX builds for, e.g. ``8.9``; empty for every one from 8.0 on that has the precision.
            TensorRT builds for the GPU that is here.
        timing_cache: Folder of TensorRT's timings; None is the user's cache folder. TensorRT-RTX has none.
    """

    batch: tuple[int, int, int]
    compatibility: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    timing_cache: Path | None = None


def build_plan(runtime: str, graph: Path, plan: Path, precision: str, options: BuildOptions) -> dict[str, Any]:
    """Build a plan and return the facts of how it was made, as JSON values; TensorRT's messages go into ``log_of(plan)``, always.

    Args:
        runtime: ``tensorrt`` (needs its GPU) or ``tensorrt-rtx`` (builds without one).
        graph: The ONNX graph, typed as ``precision`` says; weights beside it are found.
        plan: Written whole or not at all.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8``.
        options: How.

    Returns:
        ``runtime``, ``title``, ``version`` and ``precision``; ``device`` (None: built without one); ``compute_capabilities`` (named to the
        builder; empty: its default); ``compatibility``; ``flags`` (BuilderFlags that were set); ``strongly_typed``; ``profile`` (input to
        its smallest, usual and largest shape); ``layers`` and ``types`` (how many layers the network had, by type of their result);
        ``timing_cache`` (hashes loaded and kept; None: there is none); ``warnings`` (how many the log has); ``parse_seconds``,
        ``build_seconds``, ``size_bytes``, ``sha256``.

    Raises:
        MissingRuntimeError: No GPU, no library, or the precision is none of theirs.
        UsageError: An option that this library does not have.
        ExportError: The graph was refused (``GraphRefusedError`` names its nodes) or cannot be built.
        EngineError: The library does not start.
    """
    device = _device(needed=runtime == "tensorrt")
    api = load_api(runtime)
    api.check_precision(precision)
    options = replace(options, compute_capabilities=api.targets(precision, options.compute_capabilities))
    _check_device(precision, device, options.compute_capabilities)
    with api.log.listen() as lines:
        try:
            facts = _Build(api, graph, plan, precision, options, device, lines).run()
        finally:
            write_text(log_of(plan), as_text(lines))
    return {**facts, "warnings": sum(line.severity == "WARNING" for line in lines)}


def log_of(plan: Path) -> Path:
    """Return where the messages of a plan's build are written, also those of one that failed.

    >>> log_of(Path("engines/trt-int8/image.plan")).as_posix()
    'engines/trt-int8/image.build.log'
    """
    return plan.with_suffix(".build.log")


def _device(*, needed: bool) -> DeviceFacts | None:
    try:
        return require_device()
    except MissingRuntimeError:
        if needed:
            raise
        return None


def _check_device(precision: str, device: DeviceFacts | None, targets: Sequence[str]) -> None:
    """Check that the GPU that is here has the precision, unless the plan is for others."""
    if device is not None and not targets and not check_sm(precision, device.sm):
        raise MissingRuntimeError(
            f"{device.name} has no {precision}", found=f"compute capability {device.sm}", fix="Build fp16 or int8 on this device."
        )


@dataclass(frozen=True, slots=True)
class _Build:
    """One build: what it is made from, and what the library said so far."""

    api: Api
    graph: Path
    plan: Path
    precision: str
    options: BuildOptions
    device: DeviceFacts | None
    lines: Sequence[Line]

    def run(self) -> dict[str, Any]:
        """Parse, configure, build and write; return the facts."""
        builder = self._builder()
        start = time.perf_counter()
        network = parse(self.api, builder, self.graph, self.lines)
        parse_seconds = time.perf_counter() - start
        check_types(self.api, network, self.graph, self.precision)
        if left := drop_other_outputs(network, OUTPUT_NAME):
            note(f"{self.plan.name}: a plan gives embeddings only, so {', '.join(left)} of {self.graph.name} are left out")
        config, profile = self._configure(builder, network)
        facts = {**self._asked(config, profile), **_contents(network), "parse_seconds": parse_seconds}
        blob, made = self._compile(builder, network, config)
        del builder, network, config  # they hold copies of the weights
        with atomic_path(self.plan) as part, part.open("wb") as stream:
            stream.write(blob)
        return {**facts, **made, "size_bytes": int(blob.nbytes), "sha256": sha256_file(self.plan)}

    def _builder(self) -> Any:
        try:
            return self.api.library.Builder(self.api.logger)
        except TypeError as error:  # what the bindings make of a null pointer
            raise EngineError(
                f"{self.api.title} does not start", found=last_failure(self.lines), fix="See that the driver is new enough for it."
            ) from error

    def _configure(self, builder: Any, network: Any) -> tuple[Any, Profile]:
        library = self.api.library
        config = builder.create_builder_config()
        config.clear_flag(library.BuilderFlag.TF32)  # FP32 means FP32, also in what an INT8 plan leaves unquantized
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        self.api.set_types(config, network, self.precision)
        self.api.set_tactics(config)
        self.api.set_compatibility(config, self.options.compatibility)
        self.api.set_targets(config, self.options.compute_capabilities)
        profile = _profile(network, self.graph, self.options.batch)
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, *shapes)
        if config.add_optimization_profile(made) < 0:
            raise ExportError(f"{self.api.title} refused the batches of {self.graph}", found=last_failure(self.lines))
        return config, profile

    def _asked(self, config: Any, profile: Profile) -> dict[str, Any]:
        flags = self.api.library.BuilderFlag.__members__
        return {
            "runtime": self.api.runtime,
            "title": self.api.title,
            "version": self.api.version,
            "precision": self.precision,
            "device": self.device.to_json() if self.device else None,
            "compute_capabilities": list(self.options.compute_capabilities),
            "compatibility": list(self.options.compatibility),
            "flags": sorted(name for name, flag in flags.items() if config.get_flag(flag)),
            "strongly_typed": self.api.strongly_typed,
            "profile": profile,
        }

    def _compile(self, builder: Any, network: Any, config: Any) -> tuple[Any, dict[str, Any]]:
        """Return the plan, in the library's memory, and how it went."""
        cache = self._timing_cache()
        loaded = cache.load(config) if cache else ""
        start = time.perf_counter()
        blob = self._serialize(builder, network, config)
        seconds = time.perf_counter() - start
        if blob is None:
            found = last_failure(self.lines)
            fix = "Build with a smaller --batch." if _MEMORY.search(found) else f"See {log_of(self.plan).name}."
            raise ExportError(f"{self.api.title} could not build {self.graph}", found=found, fix=fix)
        hashes = {"loaded": loaded, "kept": cache.save(config, loaded)} if cache else None
        return blob, {"build_seconds": seconds, "timing_cache": hashes}

    def _serialize(self, builder: Any, network: Any, config: Any) -> Any:
        told = self.api.has_progress
        with bar(f"building {self.plan.name}", 100 if told else None, " %") as advance, interrupts(stoppable=told) as stopped:
            if told:
                config.progress_monitor = monitor = make_monitor(self.api.library, Percent(advance), stopped)  # noqa: F841 - kept alive
            return builder.build_serialized_network(network, config)

    def _timing_cache(self) -> TimingCache | None:
        if self.device is None or not self.api.has_timing_cache:
            return None
        return TimingCache(self.options.timing_cache or user_folder(), self.api.version, self.device)


def _profile(network: Any, graph: Path, batch: tuple[int, int, int]) -> Profile:
    """Return the shapes of every input at the smallest, usual and largest batch."""
    profile: Profile = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        free, *rest = tensor.shape
        if free != -1 or min(rest, default=1) < 1:
            raise ExportError(
                f"input {tensor.name} of {graph} has a wrong shape",
                found=[free, *rest],
                expected="the batch free (-1) and the rest fixed",
                fix="Export the graph again.",
            )
        profile[tensor.name] = [[size, *rest] for size in batch]
    return profile


def _contents(network: Any) -> dict[str, Any]:
    types = Counter(layer.get_output(0).dtype.name for layer in layers(network))
    return {"layers": network.num_layers, "types": dict(sorted(types.items()))}
