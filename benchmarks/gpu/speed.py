"""Latency of all engines in turns, our inference beside a bare loop on the same plan, and the suite beside the engine alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from enqueue import BareLoop, trtexec_p50_s
from figures import ratio, with_intervals
from opened import open_each, open_replayed

from clipq.artifact import Bundle
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Engine
from clipq.engines.table import ENGINES
from clipq.errors import ClipqError
from clipq.evaluate.datasets import EvalSet, load_sets
from clipq.evaluate.embed import Work, embed_images, plan_work
from clipq.evaluate.latency import CALLS_PER_TURN, DeviceTimed, interleaved, measure_batch
from clipq.evaluate.store import Store
from clipq.files import write_json
from clipq.machine import usable_cores

HEAT_S = 0.5  # of work before the first scenario: an idle GPU runs at a fraction of its clock
ORT_CLOCK = "time.perf_counter, synchronised"
ORT_INCLUDES = "one run with bound inputs and outputs that stay on the device; what the processor does to launch it counts"


def latency(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``bench``: engine -> scenario -> percentiles with intervals; raw samples go to a file of their own.

    ``image-b<n>`` is float32 pixels in the host's memory to float32 embeddings there, copies included, by the wall clock.
    ``image-b<n>-device`` leaves both on the device: by events on the stream, for ``ort-cuda-*`` by the wall clock.
    """
    groups = [(Bundle.open(Path(folder)), names) for folder, names in arguments["groups"] if (Path(folder) / "manifest.json").exists()]
    bench: dict[str, dict[str, Any]] = {}
    with open_each(groups, cache=Path(arguments["compiled"])) as (engines, failed):
        for engine in engines.values():
            _keep_on_device(engine)
        for size in arguments["batch_sizes"]:
            pixels = _pixels(engines, size)
            usable = {name: engine for name, engine in engines.items() if _heat(name, engine, pixels, failed)}
            for name, scenarios in measure_batch(usable, pixels, arguments["seconds"]).items():
                bench.setdefault(name, {}).update(_say_clock(name, scenarios))
    absent = {name: "no bundle" for folder, names in arguments["groups"] if not (Path(folder) / "manifest.json").exists() for name in names}
    ratios = {f"image-b{size}-device": _ratio(bench, f"image-b{size}-device") for size in arguments["batch_sizes"]}
    write_json(Path(arguments["samples"]), {e: {s: v["samples_s"] for s, v in found.items()} for e, found in bench.items()})
    return {
        "bench": {e: {s: with_intervals(v, CALLS_PER_TURN) for s, v in found.items()} for e, found in bench.items()},
        "int8_over_fp16": {name: value for name, value in ratios.items() if value},
        "failed": {**absent, **failed},
    }


def bare_loop(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return, per engine and batch, the medians of our inference, plain and replayed as a CUDA graph, and of a bare enqueue loop.

    All are of the same plan, taken in turns.
    """
    bundle = Bundle.open(Path(arguments["bundle"]))
    found: dict[str, Any] = {}
    with open_each([(bundle, arguments["engines"])]) as (engines, failed):
        for name, engine in engines.items():
            plan = bundle.file(bundle.engine(name).towers["image"])
            with BareLoop(plan, ENGINES[name].runtime) as bare, open_replayed(bundle, name) as replayed:
                for size in arguments["batch_sizes"]:
                    both = {"ours": engine, "bare": bare, **({"replayed": replayed} if replayed else {})}
                    found.setdefault(name, {})[str(size)] = _beside(both, _pixels(engines, size), arguments["seconds"])
            for size in arguments["batch_sizes"]:
                found[name][str(size)]["trtexec"] = trtexec_p50_s(plan, size, engine.towers["image"].input_shape)
    return {"loops": found, "failed": failed}


def throughput(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return images per second of the suite's embedding pass, of the engine alone and of decoding alone, measured in one run."""
    bundle = Bundle.open(Path(arguments["bundle"]))
    work = plan_work(usable_cores(), arguments["batch_size"])
    images = list(load_sets(bundle, tuple(arguments["data"]), (), limit=None, seed=0)[0].values())
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    count = sum(len(one.index) for one in images)
    found: dict[str, Any] = {}
    with open_each([(bundle, arguments["engines"])], sharing=work.threads) as (engines, failed):
        decoding = count / _decoding_s(images, preprocess, arguments["batch_size"])
        for name, engine in engines.items():
            pixels = _pixels(engines, arguments["batch_size"])
            alone = max(_images_per_s(engine, pixels, streams) for streams in (1, 2, work.streams))
            found[name] = {"suite_images_per_s": count / _embedding_s(engine, images, preprocess, work), "engine_images_per_s": alone}
    return {"images": count, "batch": arguments["batch_size"], "decoding_images_per_s": decoding, "engines": found, "failed": failed}


def _embedding_s(engine: Engine, images: Sequence[EvalSet], preprocess: Preprocess, work: Work) -> float:
    """Return the seconds of the suite's own embedding pass over all images, stores included."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        for number, one in enumerate(images):
            embed_images({engine.id: engine}, {engine.id: Store(Path(folder), {"set": number})}, one, preprocess, work)
        return time.perf_counter() - start


def _decoding_s(images: Sequence[EvalSet], preprocess: Preprocess, batch_size: int) -> float:
    """Return the seconds that reading, decoding and preprocessing take on all cores when no engine runs."""
    start, workers = time.perf_counter(), usable_cores()
    for one in images:
        for _batch in batches(one.source, one.index, preprocess, batch_size=batch_size, workers=workers, start=0, skipped_before=0):
            pass
    return time.perf_counter() - start


def _images_per_s(engine: Engine, pixels: npt.NDArray[np.float32], streams: int, seconds: float = 1.0) -> float:
    def loop(_stream: int) -> int:
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            engine.run("image", pixels)
            calls += 1
        return calls

    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        calls = sum(pool.map(loop, range(streams)))
    return calls * len(pixels) / (time.perf_counter() - start)


def _pixels(engines: Mapping[str, Engine], size: int) -> npt.NDArray[np.float32]:
    shape = next(iter(engines.values())).towers["image"].input_shape if engines else (3, 1, 1)
    return np.random.default_rng(size).standard_normal((size, *shape), dtype=np.float32)


def _heat(name: str, engine: Engine, pixels: npt.NDArray[np.float32], failed: dict[str, str]) -> bool:
    """Run an engine on a batch for a while; return whether it can, and note the reason where it cannot."""
    start = time.perf_counter()
    try:
        while True:
            engine.run("image", pixels)
            if time.perf_counter() - start > HEAT_S:
                return True
    except (ClipqError, RuntimeError) as error:
        failed[f"{name} at batch {len(pixels)}"] = " ".join(str(error).split())[:400]
        return False


def _keep_on_device(engine: Engine) -> None:
    if engine.id.startswith("ort-cuda-"):
        engine.device_seconds = partial(_bound_seconds, engine)  # type: ignore[attr-defined]


def _bound_seconds(engine: Any, tower: str, batch: npt.NDArray[Any], calls: int) -> list[float]:
    """Return the seconds of each run with input and output bound to the device."""
    import onnxruntime as ort

    session = engine._sessions[tower]  # noqa: SLF001 - the benchmark measures this very session
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        seconds.append(time.perf_counter() - start)
    return seconds


def _say_clock(name: str, scenarios: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if not name.startswith("ort-cuda-"):
        return dict(scenarios)
    said = {"clock": ORT_CLOCK, "includes": ORT_INCLUDES}
    return {scenario: {**values, **said} if scenario.endswith("-device") else values for scenario, values in scenarios.items()}


def _ratio(bench: Mapping[str, Mapping[str, Any]], scenario: str) -> dict[str, Any] | None:
    fp16, int8 = (bench.get(name, {}).get(scenario) for name in ("trt-fp16", "trt-int8"))
    return ratio(fp16["samples_s"], int8["samples_s"], CALLS_PER_TURN) if fp16 and int8 else None


def _beside(contestants: Mapping[str, DeviceTimed], pixels: npt.NDArray[np.float32], seconds: float) -> dict[str, Any]:
    """Return the median of each, and how much longer ours takes than the bare loop."""
    for one in contestants.values():
        one.device_seconds("image", pixels, 50)
    samples = interleaved(contestants, lambda one, calls: one.device_seconds("image", pixels, calls), seconds)
    medians = {f"{name}_p50_s": float(np.median(values)) for name, values in samples.items()}
    over = _inverse(ratio(samples["bare"], samples["ours"], CALLS_PER_TURN))
    return {**medians, "ours_over_bare": over, "bare_images_per_s": contestants["bare"].images_per_s(pixels, seconds)}  # type: ignore[attr-defined]


def _inverse(found: Mapping[str, Any]) -> dict[str, Any]:
    low, high = found["ci95"]
    return {**found, "value": 1 / found["value"], "ci95": [1 / high, 1 / low]}
