"""Latency of every engine, interleaved in one process; load time and peak memory, each engine in a process of its own."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.engines.base import Engine, Tower
from clipq.engines.table import PLANNED, open_engine
from clipq.errors import EngineError, UsageError
from clipq.evaluate.provenance import describe_engine, describe_run, engine_bytes
from clipq.evaluate.selection import usable_engines
from clipq.machine import usable_cores
from clipq.progress import bar, note

BATCH_SIZES = (1, 32)
WARM_UP = 3
CALLS_PER_TURN = 4
CLOCK = "time.perf_counter"
INCLUDES = "one call of the image tower on float32 pixels in memory; no decoding, no preprocessing"
DEVICE_CLOCK = "events on the device"
DEVICE_INCLUDES = "the image tower's kernels, between events on its stream; pixels and embeddings stay on the device, nothing is copied"

Timed = TypeVar("Timed")


class DeviceTimed(Protocol):
    """What an engine offers besides ``run`` when its device keeps time."""

    def device_seconds(self, tower: Tower, batch: npt.NDArray[Any], calls: int) -> list[float]:
        """Return the seconds of each of ``calls`` inferences on the device, the batch being there already."""


def bench_bundle(  # noqa: PLR0913 - each is one choice of the caller
    bundle: Bundle,
    asked: tuple[str, ...],
    *,
    threads: int | None,
    seconds: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    uses_graphs: bool = False,
) -> dict[str, Any]:
    """Measure the engines of a bundle and return a record with the machine, the versions and ``bench`` as below.

    Args:
        bundle: Where the engines are.
        asked: Engine ids; empty means all whose runtime is installed.
        threads: CPU threads of one inference; None means one per usable core.
        seconds: As in ``bench``.
        batch_sizes: As in ``bench``.
        uses_graphs: As in ``bench``.

    Raises:
        UsageError: An engine is unknown, or a number is too small.
        MissingRuntimeError: A runtime that was asked for is not installed.
    """
    if not 0 < seconds < math.inf:
        raise UsageError("--bench-seconds is wrong", found=seconds, expected="a time above 0, e.g. 2")
    if threads is not None and threads < 1:
        raise UsageError("--threads is too small", found=threads, expected="at least 1")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError("--batch is wrong", found=",".join(map(str, batch_sizes)), expected="batch sizes of at least 1, e.g. 1,32")
    count = threads or usable_cores()
    engine_ids = usable_engines(bundle, asked)
    return {
        **describe_run(bundle),
        "threads": count,
        "engines": {engine_id: describe_engine(bundle, engine_id) for engine_id in engine_ids},
        "bench": bench(bundle, engine_ids, threads=count, seconds=seconds, batch_sizes=batch_sizes, uses_graphs=uses_graphs),
    }


def bench(  # noqa: PLR0913 - each is one choice of the caller
    bundle: Bundle,
    engine_ids: Sequence[str],
    *,
    threads: int,
    seconds: float,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    uses_graphs: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every engine's image tower and return ``{engine: {scenario: {...}}}``.

    The engines take turns, so that a drift of the machine meets all of them alike. Scenarios are ``image-b<n>`` for every batch size
    that the engine takes, ``image-b<n>-device`` where the engine's device keeps time, and ``artefact`` (size, load time, memory); times
    in seconds, sizes in bytes, raw samples kept.

    Args:
        bundle: Where the engines are.
        engine_ids: Which to measure.
        threads: CPU threads of one inference.
        seconds: Time for one engine in one scenario, uncounted calls included; at least one turn is made.
        batch_sizes: Images of one call.
        uses_graphs: Replay plans as CUDA graphs; their scenarios say so in ``cuda_graph``.
        seed: Seed of the pixels, which are standard normal noise.
    """
    results: dict[str, Any] = {engine_id: {} for engine_id in engine_ids}
    with contextlib.ExitStack() as stack, bar("Measuring latency", len(batch_sizes)) as advance:
        opened = {engine_id: open_engine(bundle, engine_id, threads, uses_graphs=uses_graphs) for engine_id in engine_ids}
        engines = {engine_id: stack.enter_context(engine) for engine_id, engine in opened.items()}
        for batch_size in batch_sizes:
            shape = next(iter(engines.values())).towers["image"].input_shape
            pixels = np.random.default_rng(seed).standard_normal((batch_size, *shape), dtype=np.float32)
            for engine_id, scenarios in measure_batch(_taking(engines, batch_size), pixels, seconds).items():
                how = {"threads": threads, **({"cuda_graph": uses_graphs} if bundle.engine(engine_id).runtime in PLANNED else {})}
                results[engine_id].update({name: {**values, **how} for name, values in scenarios.items()})
            advance(1)
    for engine_id in engine_ids:
        results[engine_id]["artefact"] = {"size_bytes": engine_bytes(bundle, engine_id), **footprint(bundle, engine_id, threads)}
    return results


def _taking(engines: Mapping[str, Engine], batch_size: int) -> dict[str, Engine]:
    """Return the engines that take a batch size; a line tells which do not."""
    for engine_id, engine in engines.items():
        if not engine.batches[0] <= batch_size <= engine.batches[1]:
            note(f"{engine_id} takes batches of {engine.batches[0]} to {engine.batches[1]}: not measured at {batch_size}")
    return {name: engine for name, engine in engines.items() if engine.batches[0] <= batch_size <= engine.batches[1]}


def measure_batch(engines: Mapping[str, Engine], pixels: npt.NDArray[np.float32], seconds: float) -> dict[str, dict[str, Any]]:
    """Return ``{engine: {scenario: summary}}`` of opened engines on one batch, by the wall clock and by the devices' own.

    Args:
        engines: By id.
        pixels: Float32 ``(n, 3, height, width)``.
        seconds: As in ``bench``.
    """
    n = len(pixels)
    results: dict[str, dict[str, Any]] = {}
    for engine_id, samples in interleaved(engines, _wall_seconds(pixels), seconds).items():
        results[engine_id] = {f"image-b{n}": summarise(samples, n)}
    timed: dict[str, DeviceTimed] = {engine_id: engine for engine_id, engine in engines.items() if _keeps_time(engine)}
    for engine_id, samples in interleaved(timed, _device_seconds(pixels), seconds).items():
        results[engine_id][f"image-b{n}-device"] = {**summarise(samples, n), "clock": DEVICE_CLOCK, "includes": DEVICE_INCLUDES}
    return results


def interleaved(timed: Mapping[str, Timed], measure: Callable[[Timed, int], list[float]], seconds: float) -> dict[str, list[float]]:
    """Return the seconds of every measured call by name, the same number for each.

    After warm-up they take turns. The first call of a turn is not counted: threads of the engine before it may still spin,
    and the caches are not yet its own.

    Args:
        timed: What takes turns.
        measure: Gives the seconds of each of a number of calls.
        seconds: Time for each, uncounted calls included; at least one turn is made.
    """
    for one in timed.values():
        measure(one, WARM_UP)
    samples: dict[str, list[float]] = {name: [] for name in timed}
    start = time.perf_counter()
    while not _enough(samples, time.perf_counter() - start, seconds):
        for name, one in timed.items():
            samples[name] += measure(one, 1 + CALLS_PER_TURN)[1:]
    return samples


def _keeps_time(engine: Engine) -> TypeGuard[DeviceTimed]:
    return hasattr(engine, "device_seconds")


def _wall_seconds(pixels: npt.NDArray[np.float32]) -> Callable[[Engine, int], list[float]]:
    return lambda engine, calls: [_seconds_of_call(engine, pixels) for _ in range(calls)]


def _device_seconds(pixels: npt.NDArray[np.float32]) -> Callable[[DeviceTimed, int], list[float]]:
    return lambda engine, calls: engine.device_seconds("image", pixels, calls)


def _enough(samples: Mapping[str, Sequence[float]], elapsed_s: float, seconds: float) -> bool:
    return all(samples.values()) and elapsed_s >= seconds * len(samples)


def _seconds_of_call(engine: Engine, pixels: npt.NDArray[np.float32]) -> float:
    start = time.perf_counter()
    engine.run("image", pixels)
    return time.perf_counter() - start


def summarise(samples_s: Sequence[float], batch_size: int) -> dict[str, Any]:
    """Return percentiles, throughput and the raw samples of one scenario.

    The 90th and 99th percentiles are given only when the slowest call lies above them with 95 % confidence: n >= log 0.05 / log q
    (Wilks 1941), that is 29 and 299 calls. Otherwise they are None and ``missing`` says why.

    >>> summary = summarise([0.5] * 20, batch_size=32)
    >>> summary["p50_s"], summary["p99_s"], summary["images_per_s"]
    (0.5, None, 64.0)
    """
    n = len(samples_s)
    needed = {q: math.ceil(math.log(0.05) / math.log(q / 100)) if q > 50 else 1 for q in (50, 90, 99)}
    values = {f"p{q}_s": float(np.percentile(samples_s, q)) if n >= needed[q] else None for q in needed}
    missing = {f"p{q}_s": f"needs {least} calls, has {n}" for q, least in needed.items() if n < least}
    return {
        **values,
        "missing": missing,
        "images_per_s": batch_size * n / sum(samples_s),
        "n": n,
        "batch": batch_size,
        "warmup": WARM_UP,
        "clock": CLOCK,
        "includes": INCLUDES,
        "samples_s": list(samples_s),
    }


def footprint(bundle: Bundle, engine_id: str, threads: int) -> dict[str, Any]:
    """Return load time and peak memory of one engine, measured in a fresh process.

    Raises:
        EngineError: The process failed.
    """
    command = [
        sys.executable,
        "-m",
        "clipq.evaluate.footprint",
        str(bundle.folder),
        engine_id,
        str(threads),
        *["--trust-engine"] * bundle.trust_plans,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module, no shell
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise EngineError(f"{engine_id} failed in a process of its own", found=lines[-1] if lines else f"exit code {done.returncode}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts
