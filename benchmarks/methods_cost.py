"""Time and peak memory of every quantization method on a ViT-B/32's image tower, random weights, each export in a process of its own.

The baseline is the same export without a method; a method's seconds are what it adds. Images are the embedded drawn ones. QAT trains
few steps and states steps per second from its own record. Run it alone on the machine:

    python benchmarks/methods_cost.py -o out/cost --output benchmarks/results/methods_cost.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clipq.files import write_json
from clipq.machine import record
from clipq.methods import METHODS

MODEL, CALIBRATION = "ViT-B-32:random", "synthetic:scenes:calibration"
MOST_BYTES, MOST_SECONDS = 6 << 30, 900


def export(folder: Path, words: list[str]) -> dict[str, float]:
    """Run one export and return its wall time and the peak memory of its process."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(Path(sys.executable).parent / "clipq-export"), MODEL, "-o", str(folder), "--engines", "ort-fp32", "--quiet", *words]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return {"seconds": time.perf_counter() - start, "peak_bytes": usage.ru_maxrss * 1024}


def measure(name: str, args: argparse.Namespace, plain: dict[str, float]) -> dict[str, Any]:
    """Return what one method costs, and whether it keeps within the limits."""
    method = METHODS[name]
    bits = "W4A32" if method.family == "weight-only" else "W8A8"
    words = ["--method", name, "--bits", bits]
    words += [] if method.family == "weight-only" else ["--calib", CALIBRATION, "--calib-n", str(args.calib_n)]
    words += args.qat if method.family == "qat" else []
    found: dict[str, Any] = export(args.folder, words)
    added = found["seconds"] - plain["seconds"]
    met = found["peak_bytes"] <= MOST_BYTES and (method.family == "qat" or added <= MOST_SECONDS)
    found |= {"method": name, "bits": bits, "added_seconds": added, "met": met}
    if method.family == "qat":
        kind = f"{bits.lower()}-{name}"
        said = json.loads((args.folder / "engines" / f"ort-{kind}" / "engine.json").read_text())
        found["seconds_per_step"] = said["graphs"][f"towers/image.{kind}.onnx"]["training"]["seconds_per_step"]
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--folder", type=Path, required=True, help="folder for the bundles, emptied each time")
    parser.add_argument("--calib-n", type=int, default=256)
    parser.add_argument("--method", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--qat", type=str.split, default=[], help="options of training for clipq-export, in one word")
    parser.add_argument("--output", type=Path, help="the record; rows of other methods stay")
    args = parser.parse_args()
    plain = export(args.folder, [])
    rows = [measure(name, args, plain) for name in args.method]
    old = json.loads(args.output.read_text()) if args.output and args.output.exists() else {"runs": [], "results": []}
    run = record(
        "methods_cost", {"model": MODEL, "calib_n": args.calib_n, "qat": args.qat, "without_method": plain, "methods": args.method}
    )
    kept = [row for row in old["results"] if row["method"] not in args.method]
    made = {"benchmark": "methods_cost", "runs": [*old["runs"], run], "results": kept + rows}
    print(json.dumps(made, indent=2))
    if args.output:
        write_json(args.output, made)


if __name__ == "__main__":
    main()
