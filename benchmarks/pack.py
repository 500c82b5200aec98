"""Packs and unpacks bundles of random FP32 weights, each in a process of its own: memory must not grow with the size; time beside a copy.

python benchmarks/pack.py --mebibytes 64,1024 --output benchmarks/results/pack.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Manifest, ModelEntry, describe_file, write_manifest
from clipq.files import write_json
from clipq.machine import record
from clipq.pack.compression import load_zstd

WEIGHTS = "towers/image.fp32.onnx.data"
COMMAND = """
import json, resource, sys, time
from clipq.cli.main import main
start = time.perf_counter()
code = main([*sys.argv[1:], "--quiet", "--json", "/dev/null"])
used = resource.getrusage(resource.RUSAGE_SELF)
figures = {"wall_s": time.perf_counter() - start, "processor_s": used.ru_utime + used.ru_stime, "peak_rss_bytes": used.ru_maxrss * 1024}
print(json.dumps(figures))
sys.exit(code)
"""


def make_bundle(folder: Path, mebibytes: int) -> None:
    """Write a bundle with one file of normally distributed weights."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / WEIGHTS).open("wb") as stream:
        for _ in range(mebibytes):
            stream.write((0.02 * rng.standard_normal(1 << 18)).astype(np.float32).tobytes())
    model = ModelEntry("random:none", "0" * 64, 512, 100.0, None, 77)
    write_manifest(folder, Manifest(model, {WEIGHTS: describe_file(folder, WEIGHTS)}, {}, {}, "", {}, {}))


def measured(*arguments: str) -> dict[str, float]:
    """Run a command of clipq in a process of its own and return its times and its peak memory."""
    run = subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def copied(source: Path, target: Path) -> float:
    """Return the seconds that a copy down to the disk takes."""
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    return time.perf_counter() - start


def measure(work: Path, mebibytes: int) -> dict[str, Any]:
    """Return the figures of one size."""
    make_bundle(work / "bundle", mebibytes)
    pack = work / "a.clipq.tar.zst"
    figures: dict[str, Any] = {"content_mib": mebibytes, "copy_wall_s": copied(work / "bundle" / WEIGHTS, work / "copy")}
    figures["pack"] = measured("pack", str(work / "bundle"), "-o", str(pack))
    figures["unpack"] = measured("unpack", str(pack), "-o", str(work / "out"))
    return {**figures, "pack_mib": pack.stat().st_size / 2**20}


def main() -> None:
    """Measure every size and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=lambda text: [int(part) for part in text.split(",")], default=[64, 1024])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    sizes = []
    for mebibytes in args.mebibytes:
        with tempfile.TemporaryDirectory() as work:
            sizes.append(measure(Path(work), mebibytes))
    growth = {name: sizes[-1][name]["peak_rss_bytes"] / sizes[0][name]["peak_rss_bytes"] for name in ("pack", "unpack")}
    result = record("pack", {"zstd": load_zstd().zstd_version, "sizes": sizes, "peak_of_the_last_over_the_first": growth})
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
