"""Static calibration on ViT-B/32: peak memory at 512 images over that at 64, and time over a plain FP32 pass, per method.

Each figure comes from a process of its own: its peak resident memory, and its seconds from reading the graph to the written
file (plain pass: from opening the session to the last embedding). Plain passes and methods take turns, so a slow minute hits both.

python benchmarks/quantize_memory.py --output benchmarks/results/quantize_memory.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.files import write_json
from clipq.machine import record, usable_cores
from clipq.recipe import CALIBRATION_METHODS

PLAIN = "plain fp32 pass"
COUNTS = (64, 512)
BATCH = 32
TARGET = {"memory_ratio": 1.1, "time_ratio": 1.5}


def batches(images: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield random pixels, made on demand."""
    for seed in range(images // BATCH):
        yield np.random.default_rng(seed).standard_normal((BATCH, 3, 224, 224), np.float32)


def work(graph: Path, what: str, images: int) -> None:
    """Do one measurement in this process and print it as JSON."""
    start = time.perf_counter()
    if what == PLAIN:
        from clipq.export.quantize.graph import open_on_cpu

        session = open_on_cpu(graph)
        for batch in batches(images):
            session.run(None, {"pixels": batch})
    else:
        from clipq.export.quantize.static import quantize_static

        quantize_static(graph, graph.with_name(f"{what}.onnx"), batches(images), what)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def in_process(graph: Path, what: str, images: int) -> dict[str, float]:
    """Return seconds and peak bytes of one measurement in a fresh process."""
    command = [sys.executable, __file__, "--work", str(graph), what, str(images)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    values: dict[str, float] = json.loads(answer.splitlines()[-1])
    return values


def run(counts: tuple[int, ...]) -> dict[str, Any]:
    """Return, per method, every measurement and the two ratios of the issue."""
    from clipq.engines.torch.checkpoint import load_checkpoint
    from clipq.export.onnx import export_tower

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "fp32.onnx"
        export_tower(load_checkpoint("ViT-B-32:random"), "image", graph)
        results = {}
        for method in CALIBRATION_METHODS:
            plain = {images: in_process(graph, PLAIN, images) for images in counts}
            made = {images: in_process(graph, method, images) for images in counts}
            few, many = counts
            results[method] = {
                "plain": plain,
                "calibration": made,
                "memory_ratio": made[many]["peak_bytes"] / made[few]["peak_bytes"],
                "time_ratio": {images: made[images]["seconds"] / plain[images]["seconds"] for images in counts},
            }
            print(method, json.dumps({key: results[method][key] for key in ("memory_ratio", "time_ratio")}), flush=True)
    return results


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs=2, default=COUNTS, metavar=("FEW", "MANY"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(Path(arguments.work[0]), arguments.work[1], int(arguments.work[2]))
        return
    results = run(tuple(arguments.images))
    if arguments.output:
        write_json(
            arguments.output, record("quantize_memory", {"threads": usable_cores(), "batch": BATCH, "target": TARGET, "results": results})
        )


if __name__ == "__main__":
    main()
