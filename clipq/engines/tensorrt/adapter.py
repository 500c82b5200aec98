"""TensorRT 8.6, 10, 11 and TensorRT-RTX behind one face: what differs between them is decided here and nowhere else."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clipq.engines.tensorrt.log import Log, make_logger
from clipq.errors import MissingRuntimeError, UsageError, missing_extra, unknown_name

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
# The second of RTX are the wheels that a meta package would bring: the libraries' must be imported first.
_MODULES = {"tensorrt": (("tensorrt",),), "tensorrt-rtx": (("tensorrt_rtx",), ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"))}
_OLDEST = (8, 6)
# Compute capabilities that have the type in hardware. [TensorRT support matrix]
_OLDEST_SM = {"bf16": (8, 0), "fp8": (8, 9)}
_PORTABLE_FROM = "8.0"  # the oldest that TensorRT-RTX builds for by default [its developer guide, CPU-only AOT]


@dataclass(frozen=True, slots=True)
class Api:
    """A loaded library.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        library: The module with TensorRT's names.
        log: What the library says, while somebody listens.
        logger: The one logger of this library in this process; every ``Builder`` and ``Runtime`` takes it.
    """

    runtime: str
    library: Any
    log: Log = field(repr=False)
    logger: Any = field(repr=False)

    @property
    def version(self) -> str:
        """The library's version, e.g. ``10.3.0``."""
        return str(self.library.__version__)

    @property
    def title(self) -> str:
        """The library's name and version, for a reader."""
        return f"{TITLES[self.runtime]} {self.version}"

    @property
    def strongly_typed(self) -> bool:
        """Whether tensors keep the types that the graph gives them; 8.6 chooses types itself within what flags allow."""
        return hasattr(self.library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def needs_device(self) -> bool:
        """Whether building takes a GPU: TensorRT times kernels on it, TensorRT-RTX chooses them when a plan is loaded."""
        return self.runtime == "tensorrt"

    @property
    def has_timing_cache(self) -> bool:
        """Whether timings are kept from build to build; in TensorRT-RTX the calls do nothing."""
        return self.runtime == "tensorrt"

    @property
    def has_progress(self) -> bool:
        """Whether a build tells how far it is and can be stopped; 8.6 does neither."""
        return hasattr(self.library, "IProgressMonitor")

    def create_network(self, builder: Any) -> Any:
        """Return an empty network, strongly typed where that exists, with the batch as a dimension of its own."""
        flags = self.library.NetworkDefinitionCreationFlag
        return builder.create_network(1 << int(flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH))

    def check_precision(self, precision: str) -> None:
        """Check that this library knows a precision at all.

        Raises:
            MissingRuntimeError: TensorRT 8.6 has no BF16 and no FP8 that a graph could ask for.
        """
        if precision in _OLDEST_SM and not self.strongly_typed:
            raise MissingRuntimeError(
                f"{self.title} builds no {precision} engine",
                expected="TensorRT 10 or newer",
                fix="Use trt-fp16 or trt-int8 on this device.",
            )

    def set_types(self, config: Any, network: Any, precision: str) -> None:
        """Make the plan compute in the types of the graph; needed only where the network is not strongly typed."""
        if not self.strongly_typed:
            from clipq.engines.tensorrt.weak_types import set_weak_types

            set_weak_types(self.library, config, network, precision)

    def set_tactics(self, config: Any) -> None:
        """Leave out kernels of other libraries (cuBLAS, cuDNN) where they are on by default, in 8.6.

        TensorRT 10 has them off for good: its own kernels are what later versions run, and a device needs no further library.
        """
        if not self.strongly_typed:
            sources = self.library.TacticSource
            config.set_tactic_sources(1 << int(sources.EDGE_MASK_CONVOLUTIONS) | 1 << int(sources.JIT_CONVOLUTIONS))

    def set_compatibility(self, config: Any, names: Sequence[str]) -> None:
        """Let other versions (``version``) or other GPUs (``hardware``) load the plan.

        A version-compatible plan is made without the runtime that it could carry inside: that would be host code in a data file.

        Raises:
            UsageError: TensorRT-RTX has neither.
        """
        self.check_compatibility(names)
        flags = self.library.BuilderFlag
        if "version" in names:
            config.set_flag(flags.VERSION_COMPATIBLE)
            config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
        if "hardware" in names:
            config.hardware_compatibility_level = self.library.HardwareCompatibilityLevel.AMPERE_PLUS

    def check_compatibility(self, names: Sequence[str]) -> None:
        """Check that the library has these compatibilities.

        Raises:
            UsageError: TensorRT-RTX has neither.
        """
        if names and self.runtime == "tensorrt-rtx":
            raise UsageError(
                f"{TITLES[self.runtime]} has no {' and no '.join(names)} compatibility to switch on",
                expected="none: its plans run on every GPU from compute capability 8.0, on this version only",
                fix="Drop the option for trtrtx engines.",
            )

    def targets(self, precision: str, asked: Sequence[str]) -> tuple[str, ...]:
        """Return the compute capabilities to name to the builder; none leaves it its default.

        By default TensorRT builds for the GPU that is here, always; TensorRT-RTX for every one from 8.0 on, not for 7.5. It says nothing
        when a plan's types exist on newer ones only, so these are named then.

        Args:
            precision: Of the plan.
            asked: What the user named, e.g. ``8.9``.

        Raises:
            UsageError: TensorRT-RTX does not know one of them, or it has not that precision.
        """
        if self.runtime != "tensorrt-rtx":
            return ()
        known = _capabilities(self.library)
        for sm in asked:
            if sm not in known:
                raise unknown_name(f"compute capability of {TITLES[self.runtime]}", sm, known)
            if not check_sm(precision, sm):
                raise UsageError(f"GPUs of compute capability {sm} have no {precision}", fix="Leave it out, or build fp16 or int8 for it.")
        if asked or check_sm(precision, _PORTABLE_FROM):
            return tuple(asked)
        return tuple(sm for sm in known if check_sm(precision, sm))

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """Name the GPUs that ``targets`` returned."""
        if not targets:
            return
        known = _capabilities(self.library)
        config.num_compute_capabilities = len(targets)
        for index, sm in enumerate(targets):
            config.set_compute_capability(known[sm], index)


def check_sm(precision: str, sm: str) -> bool:
    """Return whether a GPU of compute capability ``sm`` (e.g. ``8.7``) has a precision in hardware.

    >>> check_sm("fp8", "8.7"), check_sm("fp8", "8.9"), check_sm("bf16", "12.0"), check_sm("int8", "7.5")
    (False, True, True, True)
    """
    major, minor = sm.split(".")
    return (int(major), int(minor)) >= _OLDEST_SM.get(precision, (0, 0))


@functools.cache
def load_api(runtime: str) -> Api:
    """Load a library; the only place that imports it. For ``tensorrt`` ask ``require_device`` first: its objects crash without a driver.

    Args:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        UsageError: There is no such runtime.
        MissingRuntimeError: The library is not installed, cannot be loaded, or is older than 8.6.
    """
    if runtime not in _MODULES:
        raise unknown_name("runtime", runtime, _MODULES)
    library = _import(runtime)
    if runtime == "tensorrt" and tuple(int(part) for part in library.__version__.split(".")[:2]) < _OLDEST:
        raise MissingRuntimeError("TensorRT is too old", found=library.__version__, expected="8.6 or newer")
    log = Log()
    return Api(runtime, library, log, make_logger(library, log))


def _import(runtime: str) -> Any:
    for names in _MODULES[runtime]:
        if all(importlib.util.find_spec(name) for name in names):
            try:
                return [importlib.import_module(name) for name in names][-1]
            except (ImportError, OSError) as error:  # the bindings are here, a library that they link is not
                raise _broken(runtime, error) from error
    raise missing_extra(TITLES[runtime], runtime)


def _broken(runtime: str, error: Exception) -> MissingRuntimeError:
    fix = f"Install its libraries too: pip install 'clipq[{runtime}]'"
    return MissingRuntimeError(f"{TITLES[runtime]} cannot be loaded", found=str(error).splitlines()[0], fix=fix)


def _capabilities(library: Any) -> dict[str, Any]:
    """Return ``8.9`` -> ``ComputeCapability.SM89`` and so on, oldest first."""
    members = {(int(name[2:-1]), int(name[-1])): value for name, value in library.ComputeCapability.__members__.items() if name[:2] == "SM"}
    return {f"{major}.{minor}": members[major, minor] for major, minor in sorted(members)}
