"""Everything that is measured on a GPU, unattended and within a time limit: a record in benchmarks/results/ and the tables of a page.

    python benchmarks/gpu --minutes 10 --shared ../shared

Each part runs in a process of its own; what fails, does not fit into the time or cannot run here is a line in the record, and the
record is written after every part. `--resume` goes on where an earlier run in the same --work folder stopped. TensorRT may live in
another Python (`--python-tensorrt`). Without a GPU the run ends with exit code 4; `--rehearse` first runs all that needs none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(1, str(ROOT))  # a Python that has TensorRT needs no installed clipq

from page import write_page  # noqa: E402 - after the path
from run import Runner, call, tidy  # noqa: E402
from schedule import FP8, ORT_ENGINES, PLANS, TORCH_ENGINES, Part, Setting, rehearsal, whole_plan  # noqa: E402
from targets import targets  # noqa: E402

from clipq.engines.tensorrt.device import require_device  # noqa: E402
from clipq.errors import ClipqError, MissingRuntimeError  # noqa: E402
from clipq.files import write_json  # noqa: E402
from clipq.machine import now, record  # noqa: E402
from clipq.progress import note  # noqa: E402

BENCHMARK = "gpu"


def main() -> int:
    """Run a part in this process, or plan and run all."""
    if sys.argv[1:2] == ["part"]:
        return run_part(*sys.argv[2:5])
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the parts end with us
    try:
        return run_all(args)
    except ClipqError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def run_part(worker: str, arguments: str, output: str) -> int:
    """Run one worker; its result is JSON at ``output``, its failure one line and an exit code. ``-`` is stdin and stdout."""
    module, function = worker.split(":")
    text = sys.stdin.read() if arguments == "-" else Path(arguments).read_text()
    try:
        result = getattr(importlib.import_module(module), function)(json.loads(text))
    except ClipqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if output == "-":
        print(json.dumps(result))
    else:
        write_json(Path(output), result)
    return 0


def run_all(args: argparse.Namespace) -> int:
    """Plan, run, record, and print the targets."""
    if args.from_record:
        write_page(args.page, json.loads(args.from_record.read_text()), args.from_record.name)
        return 0
    deadline = time.monotonic() + 60 * args.minutes
    pythons = {"torch": sys.executable, "tensorrt": args.python_tensorrt or sys.executable}
    device, reason = _device()
    if not (device or args.rehearse or args.dry_run):
        raise MissingRuntimeError("nothing can be measured", found=reason, fix="Rehearse what needs no GPU with --rehearse.")
    found = {python: call("facts:facts", {}, python, 120) for python in dict.fromkeys(pythons.values())}
    hosts = {name: found[python] for name, python in pythons.items()}
    setting = _setting(args, hosts, device, hope=args.dry_run)
    parts = rehearsal(setting) if args.rehearse and not device else whole_plan(setting)
    if args.dry_run:
        print("" if device else "no CUDA device here: the plan for a host with one and with every runtime")
        print(_plan_text(parts, setting, args.minutes))
        return 0
    head = {"device": device, "minutes": args.minutes, "pythons": hosts, "engines_left_out": dict(setting.left_out)}
    kept = args.work / "record.json"
    known = json.loads(kept.read_text())["parts"] if args.resume and kept.is_file() else {}
    result, page = args.work / "rehearsal.json", args.work / "rehearsal.md"
    if device:
        result, page = args.results / f"{_slug(device['name'])}-{now()[:10]}.json", args.page

    def changed(outcomes: dict[str, Any]) -> None:
        made = json.loads(tidy(json.dumps(record(BENCHMARK, {**head, "parts": outcomes, "targets": targets(outcomes)}))))
        write_json(kept, made)
        write_json(result, made)
        write_page(page, made, result.name)

    changed(known)
    outcomes = Runner(parts=parts, pythons=pythons, work=args.work, deadline=deadline, changed=changed, known=known).run()
    for found in targets(outcomes):
        print(f"{found['outcome']}: {found['target']}, {found['model']}: {found['why']}")
    note(f"{sum(part['status'] == 'done' for part in outcomes.values())} of {len(outcomes)} parts done; {result} and {page}")
    if not device:
        raise MissingRuntimeError("this was a rehearsal, nothing was measured", found=reason)
    return 0


def _setting(args: argparse.Namespace, hosts: dict[str, Any], device: dict[str, Any] | None, *, hope: bool) -> Setting:
    missing = {name: host.get("missing", {"python": host.get("failed", "")}) for name, host in hosts.items()}
    left_out: dict[str, str] = {}
    for engines, host, wants in (
        (TORCH_ENGINES, "torch", ("python", "device", "torch", "open_clip")),
        (ORT_ENGINES, "torch", ("python", "device", "onnxruntime-cuda")),
        ((*PLANS, FP8), "tensorrt", ("python", "device", "tensorrt", "cuda binding")),
    ):
        reason = next((missing[host][name] for name in wants if name in missing[host]), "")
        left_out.update(dict.fromkeys(engines, reason) if reason and (device or not hope) else {})
    fp8 = _fp8_reason(device, hosts["tensorrt"].get("tensorrt", ""))
    if fp8 and FP8 not in left_out:
        left_out[FP8] = fp8
    shared = args.shared if args.shared and (args.shared / "models").is_dir() else None
    return Setting(args.work, args.python_tensorrt is not None, not fp8, shared, args.seconds, left_out)


def _fp8_reason(device: dict[str, Any] | None, version: str) -> str:
    """Return why FP8 cannot run here: it takes TensorRT 10 and compute capability 8.9."""
    if not version or int(version.split(".", maxsplit=1)[0]) < 10:
        return f"FP8 takes TensorRT 10 or newer, here is {version or 'none'}"
    if device is None or tuple(map(int, device["sm"].split("."))) < (8, 9):
        return f"FP8 takes compute capability 8.9 or newer, here is {device['sm'] if device else 'no device'}"
    return ""


def _device() -> tuple[dict[str, Any] | None, str]:
    """Return the device, or why there is none."""
    try:
        return require_device().to_json(), ""
    except MissingRuntimeError as error:
        return None, str(error).split("; ", maxsplit=1)[0]


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def _plan_text(parts: list[Part], setting: Setting, minutes: float) -> str:
    lines = [f"{'about':>7}  {'Python':<9} part"]
    lines += [f"{part.estimate_s:>5.0f} s  {part.interpreter:<9} {part.name}" for part in parts]
    lines.append(
        f"{sum(part.estimate_s for part in parts):>5.0f} s  one after another; limit {60 * minutes:.0f} s, exports and builds overlap"
    )
    return "\n".join([*lines, *(f"left out: {name}: {reason}" for name, reason in setting.left_out.items())])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="nothing runs longer (default: 10)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one engine in one latency scenario (default: 0.5)")
    parser.add_argument("--shared", type=Path, help="folder with models/ and data/ of the photographs; without it no reliability")
    parser.add_argument("--work", type=Path, default=Path("out/gpu"), help="folder for bundles, plans, reports (default: out/gpu)")
    parser.add_argument("--python-tensorrt", metavar="PYTHON", help="the Python that has TensorRT, where it is not this one")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the record")
    parser.add_argument("--page", type=Path, default=Path("docs/results/gpu.md"), help="page whose tables are replaced")
    parser.add_argument("--resume", action="store_true", help="keep the parts that an earlier run has done")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: run what needs none into --work, then end with 4")
    parser.add_argument("--from-record", metavar="FILE", type=Path, help="run nothing: rewrite the page's tables from a record")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
