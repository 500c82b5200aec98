"""clipq verify: does a bundle do on this device what it did where it was exported; needs numpy, Pillow and one runtime."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.cli.options import add_json, add_output, add_quiet, add_trust, comma_list, write_json_option
from clipq.errors import GateFailedError
from clipq.files import locked, reading, write_json

_EPILOG = """what is checked:
  files      the manifest, and every file it names by SHA-256 (exit code 5 when one differs)
  engines    golden tensors through every engine that can run here, against FP32 PyTorch as recorded at export. The error may be twice
             what the export measured of the same graph, and what two FP32 runtimes may differ by beside it; beyond that the exit code
             is 3. Engines whose runtime is missing are listed; when none can run the exit code is 4.
  pictures   golden pictures decoded and preprocessed here, against open_clip's own pixels: identical, or by how much they differ
  latency    the image tower, engines interleaved"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.epilog = _EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that clipq-export made")
    add_output(parser, "also write verify.json into this folder", required=False)
    parser.add_argument("--engines", metavar="ENGINE,...", type=comma_list, default=(), help="which engines (default: all that run here)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: one per usable core)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--no-bench", action="store_true", help="measure no latency")
    speed.add_argument("--bench-seconds", metavar="S", type=float, default=1.0, help="time per engine for the latency (default: 1)")
    add_trust(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, print a table or JSON, and end with 3 when something is beyond its limits."""
    from clipq.evaluate.verify.verify import VerifyOptions, verify_bundle

    options = VerifyOptions(args.engines, args.threads, 0.0 if args.no_bench else args.bench_seconds)
    bundle = Bundle.open(args.bundle, trust_plans=args.trust_engine)
    with reading(args.bundle):
        record = verify_bundle(bundle, options)
    if args.output:
        with locked(args.output):
            write_json(args.output / "verify.json", record)
    if args.json:
        write_json_option(args.json, record)
    if args.json != "-":
        print(summary(record))
    if record["problems"]:
        more = f"; and {len(record['problems']) - 3} more" if len(record["problems"]) > 3 else ""
        raise GateFailedError(f"{args.bundle} does not do here what it did at export: {'; '.join(record['problems'][:3])}{more}")
    return 0


def summary(record: dict[str, Any]) -> str:
    """Return what was checked: the files, one line per engine, what cannot run here, and the preprocessing."""
    from clipq.evaluate.report.format import quantity

    files, model = record["bundle"], record["provenance"]["model"]["id"]
    size = quantity(files["size_bytes"], "bytes")
    lines = [f"{model}: {files['files']} files, {size}, each with the hash that its manifest names", ""]
    head = ("cosine", "lowest", "max. error", "top-1", "p50, batch 1")
    lines.append(f"{'engine':<18}" + "".join(f"{name:>14}" for name in head))
    for engine, entry in record["engines"].items():
        p50 = record["bench"].get(engine, {}).get("image-b1", {}).get("p50_s")
        lines.append(f"{engine:<18}{_cells(entry)}{quantity(p50, 'seconds') if p50 else '-':>14}")
    lines += [f"{engine:<18}left out: {why}" for engine, why in record["left_out"].items()]
    return "\n".join([*lines, "", _preprocessing(record["preprocessing"])])


def _cells(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"{'failed':>14}" + f"{'-':>14}" * 3
    image = entry["golden"]["towers"]["image"]
    texts = [f"{image['cosine_mean']:.6f}", f"{image['min_cosine']:.6f}", f"{image['max_abs_error']:.2g}"]
    return "".join(f"{text:>14}" for text in [*texts, f"{entry['golden']['top1_agreement']:.1%}"])


def _preprocessing(found: dict[str, Any] | None) -> str:
    if found is None:
        return "preprocessing: not compared, the bundle was exported without golden pictures"
    if found["identical"]:
        return f"preprocessing: the pixels of {found['pictures']} pictures are open_clip's, bit for bit"
    here, there = (", ".join(f"{name} {version}" for name, version in found[key].items()) for key in ("decoder", "decoder_at_export"))
    mean, largest = (f"{found[key]:.3g}" for key in ("mean_difference_levels", "max_difference_levels"))
    differing = f"preprocessing: {len(found['different'])} of {found['pictures']} pictures differ"
    return f"{differing}, by {mean} grey levels on average and {largest} at most ({here} here, {there} at export)"
