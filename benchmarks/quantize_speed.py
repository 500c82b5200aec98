"""INT8 on ViT-B/32 against PyTorch eager FP32: images per second at batch 1 and 32, engines interleaved, and centred cosine.

Random weights: the time does not depend on them, the cosine does. Seconds are medians over rounds in which every engine runs once.

python benchmarks/quantize_speed.py --output benchmarks/results/quantize_speed.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.onnx import export_tower
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.graph import open_on_cpu
from clipq.export.quantize.static import quantize_static
from clipq.files import write_json
from clipq.machine import record, usable_cores
from clipq.recipe import CALIBRATION_METHODS, CalibrationMethod

Array = npt.NDArray[np.float32]
Run = Callable[[Array], Array]
BATCHES = (1, 32)
TARGET = {"speedup_batch32": 3.0, "centred_cosine": 0.998}


def pixels(n: int, seed: int) -> Array:
    """Return random normalised pixels ``(n, 3, 224, 224)``."""
    return np.random.default_rng(seed).standard_normal((n, 3, 224, 224)).astype(np.float32)


def session(path: Path) -> Run:
    """Return a function that runs a graph on all cores."""
    opened = open_on_cpu(path)
    return lambda batch: np.asarray(opened.run(None, {"pixels": batch})[0])


def make_engines(folder: Path, calib_n: int) -> dict[str, Run]:
    """Export a random ViT-B/32 and return PyTorch, FP32, dynamic and one static engine per calibration method."""
    checkpoint = load_checkpoint("ViT-B-32:random")
    export_tower(checkpoint, "image", folder / "fp32.onnx")
    model = checkpoint.model.eval()

    def eager(batch: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(model.encode_image(torch.from_numpy(batch)).numpy())

    quantize_dynamic(folder / "fp32.onnx", folder / "dynamic.onnx")
    engines = {"torch-fp32": eager, "ort-fp32": session(folder / "fp32.onnx"), "ort-int8-dynamic": session(folder / "dynamic.onnx")}
    methods: list[CalibrationMethod] = ["minmax", "percentile", "entropy", "mse"]
    assert tuple(methods) == CALIBRATION_METHODS
    for method in methods:
        batches = (pixels(16, seed) for seed in range(calib_n // 16))
        quantize_static(folder / "fp32.onnx", folder / f"{method}.onnx", batches, method)
        engines[f"ort-int8-static {method}"] = session(folder / f"{method}.onnx")
    return engines


def measure(engines: dict[str, Run], batch: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every round of every engine; the order turns by one each round, the first round is not kept."""
    inputs = pixels(batch, 1000)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for index in range(rounds + 1):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.perf_counter()
            engines[name](inputs)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def centred_cosine(reference: Array, other: Array) -> float:
    """Return the mean cosine of embeddings after the mean of the reference is taken from both."""
    a, b = reference - reference.mean(axis=0), other - reference.mean(axis=0)
    return float(np.mean(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def run(calib_n: int, rounds: int) -> dict[str, Any]:
    """Return per engine its median seconds, its speed-up over PyTorch and its centred cosine on 64 unseen inputs."""
    torch.set_num_threads(usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        engines = make_engines(Path(folder), calib_n)
        unseen = pixels(64, 2000)
        reference = engines["torch-fp32"](unseen)
        results: dict[str, Any] = {name: {"centred_cosine": centred_cosine(reference, engine(unseen))} for name, engine in engines.items()}
        for batch in BATCHES:
            seconds = measure(engines, batch, rounds)
            base = float(np.median(seconds["torch-fp32"]))
            for name, values in seconds.items():
                median = float(np.median(values))
                results[name][f"batch{batch}"] = {"median_s": median, "speedup": base / median, "seconds": values}
    return results


def main() -> None:
    """Measure, print one line per engine and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calib-n", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = run(arguments.calib_n, arguments.rounds)
    for name, values in results.items():
        speeds = ", ".join(f"batch {batch}: {values[f'batch{batch}']['speedup']:.2f}x" for batch in BATCHES)
        print(f"{name:28s} centred cosine {values['centred_cosine']:.4f}, {speeds}")
    if arguments.output:
        write_json(arguments.output, record("quantize_speed", {"threads": usable_cores(), "target": TARGET, "results": results}))


if __name__ == "__main__":
    main()
