"""Packs and unpacks bundles of random FP32 weights, each in a process of its own: memory must not grow with the size.

python benchmarks/pack.py --mebibytes 64,1024 --output benchmarks/results/pack.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Manifest, ModelEntry, describe_file, write_manifest
from clipq.files import write_json
from clipq.machine import record
from clipq.pack.compression import load_zstd

WEIGHTS = "towers/image.fp32.onnx.data"
COMMAND = """
import json, resource, sys
from clipq.cli.main import main
code = main([*sys.argv[1:], "--quiet", "--json", "/dev/null"])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss remembers the parent's
print(json.dumps({"processor_s": used.ru_utime + used.ru_stime, "peak_rss_bytes": int(peak) * 1024}))
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
    """Run a command of clipq in a process of its own and return its processor time and its peak memory."""
    run = subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measure(work: Path, mebibytes: int) -> dict[str, Any]:
    """Return the figures of one size."""
    make_bundle(work / "bundle", mebibytes)
    pack = work / "a.clipq.tar.zst"
    packing = measured("pack", str(work / "bundle"), "-o", str(pack))
    unpacking = measured("unpack", str(pack), "-o", str(work / "out"))
    return {"content_mib": mebibytes, "pack_mib": pack.stat().st_size / 2**20, "pack": packing, "unpack": unpacking}


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
