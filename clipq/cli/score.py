"""``clipq score``: the metrics of anyone's stored outputs, alone or paired against a baseline's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipq.cli.options import add_json, add_output, add_quiet, add_seed
from clipq.cli.suite_options import add_resamples
from clipq.errors import UsageError
from clipq.files import write_json
from clipq.progress import note

EPILOG = """files:
  .npz  logits (n, classes) or probabilities (n, classes), and labels (n,); no pickled objects
  .npy  a folder with logits.npy or probabilities.npy and labels.npy, or such a file by itself: labels of int8-logits.npy are in
        int8-labels.npy
  .csv  true_label,pred_label,confidence: gives the metrics that need no more than these

Logits of more than 256 MiB stay on disk and are read a few rows at a time, so memory does not grow with samples times classes;
an .npz that numpy.savez_compressed wrote is unpacked into the temporary folder for that.

Definitions of the metrics stand in the docstrings of clipq/evaluate/metrics."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``clipq score``."""
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="stored outputs: .npz, .csv, .npy or a folder of .npy files")
    parser.add_argument("--baseline", metavar="FILE", type=Path, help="outputs for the same samples to compare with, e.g. of FP32")
    parser.add_argument("--ood", metavar="FILE", type=Path, help="outputs for out-of-distribution samples; labels are not needed")
    before = "the baseline's outputs for the samples of --ood: differences of the OOD metrics"
    parser.add_argument("--baseline-ood", metavar="FILE", type=Path, help=before)
    shifted = "outputs on shifted images of the same classes, with labels: accuracy drop, relative loss, effective robustness"
    parser.add_argument("--shifted", metavar="FILE", type=Path, help=shifted)
    parser.add_argument("--baseline-shifted", metavar="FILE", type=Path, help="the baseline's outputs for the samples of --shifted")
    counter = "outputs on images where a misleading cue breaks (FILE: where it holds), with labels: relative spurious gap"
    parser.add_argument("--counter", metavar="FILE", type=Path, help=counter)
    parser.add_argument("--baseline-counter", metavar="FILE", type=Path, help="the baseline's outputs for the samples of --counter")
    parser.add_argument("--logits", metavar="NAME", default="logits", help="name of the logits in .npz files (default: logits)")
    parser.add_argument(
        "--probabilities", metavar="NAME", default="probabilities", help="name of the probabilities in .npz files (default: probabilities)"
    )
    parser.add_argument("--labels", metavar="NAME", default="labels", help="name of the labels in .npz files (default: labels)")
    add_output(parser, "folder for score.json", required=False)
    add_json(parser)
    add_resamples(parser)
    add_seed(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Compute, print and write the metrics; return 0."""
    if args.resamples < 1:
        raise UsageError("--resamples is too small", found=args.resamples, expected="1 or more")
    if args.seed < 0:
        raise UsageError("--seed is negative", found=args.seed, expected="0 or more")
    from clipq.evaluate.stored import Keys
    from clipq.evaluate.stored_robustness import OtherSets
    from clipq.evaluate.stored_score import score_files

    keys = Keys(args.logits, args.probabilities, args.labels)
    files: dict[str, Any] = {"baseline": args.baseline, "ood_file": args.ood, "baseline_ood": args.baseline_ood}
    others = OtherSets(args.shifted, args.baseline_shifted, args.counter, args.baseline_counter)
    result = score_files(args.file, keys, **files, others=others, resamples=args.resamples, seed=args.seed)
    if args.json == "-":
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(_table(result))
    targets = [Path(args.json)] if args.json not in {None, "-"} else []
    targets += [args.output / "score.json"] if args.output else []
    for target in targets:
        write_json(target, result)
        note(f"wrote {target}")
    return 0


def _table(result: Mapping[str, Any]) -> str:
    rows = [(name, fields) for name, fields in result.items() if isinstance(fields, dict) and "value" in fields]
    for score, metrics in result.get("ood", {}).get("scores", {}).items():
        rows += [(f"{score} {metric}", fields) for metric, fields in metrics.items()]
    rows += [(f"{axis}.{metric}", fields) for axis, metrics in result.get("robustness", {}).items() for metric, fields in metrics.items()]
    paired_columns = any(fields.get("delta") is not None or fields.get("p_value") is not None for _, fields in rows)
    lines = [_line("metric", "value", "95 % interval", "n", *(("delta", "95 % interval", "p") if paired_columns else ()))]
    lines += [_row(name, fields) for name, fields in rows]
    if "ood" in result:
        lines += ["", f"OOD metrics: {result['ood']['n_id']:,} ID and {result['ood']['n_ood']:,} OOD samples; AUPR depends on this ratio."]
    if "robustness" in result:
        compared = "relative_loss_*, effective_robustness and vuln_add compare with the baseline: their p is of the value being 0."
        lines += ["", f"robustness: FILE is the known set (the common group). {compared}"]
    if "paired" in result:
        lines += ["", "against the baseline: " + ", ".join(_agreement(*item) for item in result["paired"].items())]
    return "\n".join([*lines, *(f"note: {text}" for text in result["notes"])])


def _agreement(name: str, value: float | None) -> str:
    return f"{name} infinite" if value is None else f"{name} {value:.4f}"


def _row(name: str, fields: Mapping[str, Any]) -> str:
    value = f"{fields['value']:.4f}" if fields["value"] is not None else "-" if "." in name else "infinite"
    cells = [name, value, _interval(fields["ci95"]), f"{fields['n']:,}"]
    delta, p_value = fields.get("delta"), fields.get("p_value")
    if delta is not None or p_value is not None:
        p_text = "-" if p_value is None else f"{p_value:.4f}" if p_value >= 1e-4 else "<0.0001"
        cells += ["-" if delta is None else f"{delta:+.4f}", _interval(fields.get("delta_ci95"), sign="+"), p_text]
    return _line(*cells)


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    return "-" if bounds is None else f"{bounds[0]:{sign}.4f} to {bounds[1]:{sign}.4f}"


def _line(name: str, *cells: str) -> str:
    widths = (9, 20, 8, 10, 20, 9)
    return f"{name:<32}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
