"""`clipq eval` on photographs with a random ViT-B/32, FP32 and INT8, against the limit of the machine, measured in the same run.

limit = cores / (core-seconds per image of decoding and preprocessing + of each engine's bare loop on pixels in memory, same batch).
An engine's core-seconds are the lower of two ways to use all cores: one batch on all of them, or one batch on each.
Everything `clipq eval` does counts: start, hashing, embedding, scoring, report; only latency measurement is left out.

python benchmarks/eval_throughput.py -n 5000 --work out/throughput --output benchmarks/results/eval_throughput.json
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from clipq.artifact import Bundle
from clipq.calib_data.pipeline import decode
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.source import Source
from clipq.calib_data.table import open_source
from clipq.engines.table import open_engine
from clipq.files import write_json
from clipq.machine import record, usable_cores

SIZES = ((500, 375), (375, 500), (500, 333), (500, 500))  # of most photographs of ImageNet
CLASSES = 10
CLIPQ = str(Path(sys.executable).parent / "clipq")


def make_photographs(folder: Path, n: int) -> None:
    """Write ``n`` JPEGs with the size, the detail and so the cost of decoding of ImageNet's photographs (about 100 kB each)."""
    base = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    grain = Image.fromarray(np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)).filter(ImageFilter.GaussianBlur(1.0))
    for i in range(n):
        size, rng = SIZES[i % len(SIZES)], np.random.default_rng(i)
        left, top = rng.integers(0, 1024 - np.asarray(size))
        smooth = Image.fromarray(np.roll(base, i, axis=1)).resize(size, Image.Resampling.BICUBIC)
        image = Image.blend(smooth, grain.crop((left, top, left + size[0], top + size[1])), 0.4)
        path = folder / f"class {i % CLASSES}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)


def decode_core_s(source: Source, preprocess: Preprocess, n: int) -> float:
    """Return the seconds one core takes per image to read, decode, resize, crop and normalise."""
    positions = np.linspace(0, len(source) - 1, n).astype(int).tolist()
    start = time.perf_counter()
    for sample in source.read(positions):
        preprocess.normalise(preprocess.pixels_u8(decode(sample.data))[None])
    return (time.perf_counter() - start) / n


def engine_core_s(bundle: Bundle, engine_id: str, batch_size: int, seconds: float) -> dict[str, float]:
    """Return core-seconds per image of the bare engine loop: one batch on all cores, and one batch on each core."""
    cores = usable_cores()
    with open_engine(bundle, engine_id, cores) as engine:
        pixels = np.random.default_rng(0).standard_normal((batch_size, *engine.towers["image"].input_shape)).astype(np.float32)
        together = _calls_per_s(lambda: engine.run("image", pixels), 1, seconds)
    with open_engine(bundle, engine_id, 1) as engine:
        apart = _calls_per_s(lambda: engine.run("image", pixels), cores, seconds)
    return {"one_batch_on_all_cores": cores / (together * batch_size), "one_batch_on_each_core": cores / (apart * batch_size)}


def _calls_per_s(call: Callable[[], Any], streams: int, seconds: float) -> float:
    def loop(_stream: int) -> float:
        for _ in range(2):
            call()
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            call()
            calls += 1
        return calls / (time.perf_counter() - start)

    with ThreadPoolExecutor(streams) as pool:
        return sum(pool.map(loop, range(streams)))


def eval_seconds(bundle: Path, data: str, engines: list[str], batch_size: int, folder: Path) -> tuple[float, float]:
    """Return the wall time and the processor time of the whole command, in a process of its own, into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [CLIPQ, "eval", str(bundle), "--data", data, "--engines", ",".join(engines), "--baseline", engines[0]]
    start, used = time.perf_counter(), _children_cpu_s()
    subprocess.run(
        [*command, "--batch-size", str(batch_size), "--no-bench", "-q", "-o", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start, _children_cpu_s() - used


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepare(args: argparse.Namespace) -> tuple[Path, str]:
    """Make what is missing of photographs and bundle; return the bundle and the data id."""
    photographs, bundle = args.work / f"photographs-{args.images}", args.work / "bundle"
    if not args.data and not photographs.exists():
        make_photographs(photographs, args.images)
    data = args.data or f"imagefolder:{photographs}"
    if not (bundle / "manifest.json").exists():
        engines = ",".join(args.engines)
        export = [CLIPQ, "export", args.model, "-o", str(bundle), "--engines", engines, "--calib", "synthetic:scenes:calibration"]
        subprocess.run([*export, "--calib-n", "64", "--resume"], check=True)
    return bundle, data


def main() -> None:
    """Measure the three parts before and after the command, so that a drift of the machine shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--images", type=int, default=5000, help="photographs to draw (default: 5000)")
    parser.add_argument("--data", default="", help="use this data set instead of drawn photographs, e.g. wds:PATH:test")
    parser.add_argument("--model", default="ViT-B-32:random")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["ort-fp32", "ort-int8-static"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="time of each bare engine loop (default: 10)")
    parser.add_argument("--work", type=Path, default=Path("out/throughput"), help="folder for photographs, bundle and reports")
    parser.add_argument("--output", type=Path, help="also write the record here")
    args = parser.parse_args()
    folder, data = prepare(args)
    bundle, source = Bundle.open(folder), open_source(data)
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))

    def parts() -> dict[str, Any]:
        engines = {name: engine_core_s(bundle, name, args.batch_size, args.seconds) for name in args.engines}
        return {"decode_core_s": decode_core_s(source, preprocess, min(len(source), 1000)), "engine_core_s": engines}

    before = parts()
    wall_s, cpu_s = eval_seconds(folder, data, args.engines, args.batch_size, args.work / "report")
    rounds = [before, parts()]
    decoding = min(part["decode_core_s"] for part in rounds)
    engines = {name: min(min(part["engine_core_s"][name].values()) for part in rounds) for name in args.engines}
    limit = usable_cores() / (decoding + sum(engines.values()))
    figures = {
        "images": len(source),
        "batch_size": args.batch_size,
        "decode_core_s_per_image": decoding,
        "engine_core_s_per_image": engines,
        "limit_images_per_s": limit,
        "eval_wall_s": wall_s,
        "eval_cpu_s": cpu_s,
        "eval_images_per_s": len(source) / wall_s,
        "of_the_limit": len(source) / wall_s / limit,
        "wanted": 0.9,
        "rounds": rounds,
    }
    result = record("eval_throughput", figures)
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
