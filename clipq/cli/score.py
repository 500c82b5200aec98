"""``clipq score``: the metrics of anyone's stored outputs, alone or paired against a baseline's."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipq.cli.options import add_json, add_output, add_quiet, add_seed
from clipq.errors import DataError, UsageError
from clipq.evaluate.metrics import ood, paired
from clipq.evaluate.metrics.arrays import Float64
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.metrics.probabilities import softmax
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.statistics.ood import ood_estimates
from clipq.evaluate.statistics.significance import minimum_detectable_loss
from clipq.evaluate.stored import Keys, Stored, read_stored
from clipq.files import sha256_file, write_json
from clipq.machine import describe_machine, library_versions, now
from clipq.progress import note

SCHEMA = "clipq.score/1"
SMALL_N = 10_000

EPILOG = """files:
  .npz  logits (n, classes) or probabilities (n, classes), and labels (n,); no pickled objects
  .csv  true_label,pred_label,confidence: gives the metrics that need no more than these

Definitions of the metrics stand in the docstrings of clipq/evaluate/metrics."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``clipq score``."""
    parser.epilog = EPILOG
    parser.add_argument("file", metavar="FILE", type=Path, help="stored outputs, .npz or .csv")
    parser.add_argument("--baseline", metavar="FILE", type=Path, help="outputs for the same samples to compare with, e.g. of FP32")
    parser.add_argument("--ood", metavar="FILE", type=Path, help="outputs for out-of-distribution samples; labels are not needed")
    parser.add_argument("--logits", metavar="NAME", default="logits", help="name of the logits in .npz files (default: logits)")
    parser.add_argument(
        "--probabilities", metavar="NAME", default="probabilities", help="name of the probabilities in .npz files (default: probabilities)"
    )
    parser.add_argument("--labels", metavar="NAME", default="labels", help="name of the labels in .npz files (default: labels)")
    add_output(parser, "folder for score.json", required=False)
    add_json(parser)
    add_seed(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Compute, print and write the metrics; return 0."""
    if args.seed < 0:
        raise UsageError("--seed is negative", found=args.seed, expected="0 or more")
    result = _score(args)
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


def _score(args: argparse.Namespace) -> dict[str, Any]:
    keys = Keys(args.logits, args.probabilities, args.labels)
    engine = read_stored(args.file, keys)
    outcomes = engine.outcomes()
    result: dict[str, Any] = {"schema": SCHEMA, "provenance": _provenance(args)}
    baseline = before = None
    if args.baseline:
        baseline = read_stored(args.baseline, keys)
        before = baseline.outcomes()
    estimates = classification_estimates(before, outcomes, seed=args.seed)
    result |= {name: _as_json(estimate) for name, estimate in estimates.items()}
    if baseline is not None and before is not None:
        result["paired"] = _paired(baseline, engine, before, outcomes)
    if args.ood:
        result["ood"] = _ood(engine, read_stored(args.ood, keys, labelled=False), args.seed)
    result["notes"] = _notes(outcomes, estimates, before)
    return result


def _provenance(args: argparse.Namespace) -> dict[str, Any]:
    files = {role: path for role, path in (("file", args.file), ("baseline", args.baseline), ("ood", args.ood)) if path}
    for path in files.values():
        if not path.is_file():
            raise UsageError(f"no file at {path}", expected="an .npz or .csv file")
    return {
        "files": {role: {"name": path.name, "sha256": sha256_file(path)} for role, path in files.items()},
        "resamples": RESAMPLES,
        "seed": args.seed,
        "created": now(),
        "machine": describe_machine(),
        "versions": library_versions(),
    }


def _as_json(estimate: Estimate) -> dict[str, Any]:
    """Return the fields of an estimate; a value that JSON cannot hold (an infinite NLL) becomes null."""
    fields: dict[str, Any] = {"value": estimate.value if math.isfinite(estimate.value) else None}
    fields |= {"ci95": list(estimate.ci95) if estimate.ci95 else None, "n": estimate.n}
    if estimate.delta is not None:
        interval = list(estimate.delta_ci95) if estimate.delta_ci95 else None
        fields |= {"delta": estimate.delta, "delta_ci95": interval, "p_value": estimate.p_value}
    return fields


def _paired(baseline: Stored, engine: Stored, before: Outcomes, after: Outcomes) -> dict[str, float]:
    flips = paired.flips(after.labels, before.predictions, after.predictions)
    values = {
        "disagreement": paired.disagreement(before.predictions, after.predictions),
        "flips": flips.flips,
        "flips_correct_to_wrong": flips.correct_to_wrong,
        "flips_wrong_to_correct": flips.wrong_to_correct,
    }
    if baseline.logits is not None and engine.logits is not None:
        values["js_divergence"] = paired.js_divergence(softmax(baseline.logits), softmax(engine.logits))
    elif baseline.probabilities is not None and engine.probabilities is not None:
        values["js_divergence"] = paired.js_divergence(baseline.probabilities, engine.probabilities)
    values["minimum_detectable_loss"] = minimum_detectable_loss(len(after), flips.flips)
    return values


def _ood(inside: Stored, outside: Stored, seed: int) -> dict[str, Any]:
    id_scores, ood_scores = _ood_scores(inside), _ood_scores(outside)
    shared = [name for name in id_scores if name in ood_scores]
    if len(shared) != len(id_scores) or len(shared) != len(ood_scores):
        raise DataError(
            "FILE and --ood hold different things",
            found=f"scores {', '.join(id_scores)} and {', '.join(ood_scores)}",
            expected="both logits, both probabilities or both .csv",
        )
    report: dict[str, Any] = {}
    for name in shared:
        estimates = ood_estimates(None, (id_scores[name], ood_scores[name]), seed=seed)
        report[name] = {metric: _as_json(estimate) for metric, estimate in estimates.items()}
    sizes = {"n_id": len(next(iter(id_scores.values()))), "n_ood": len(next(iter(ood_scores.values())))}
    return {**sizes, "scores": report}


def _ood_scores(stored: Stored) -> dict[str, Float64]:
    """Return SCORE key -> ood_score, as many as the file allows; MCM needs cosines, which no file holds."""
    if stored.logits is not None:
        functions = {"msp": ood.msp, "maxlogit": ood.maxlogit, "energy": ood.energy, "entropy": ood.entropy}
        return {name: function(stored.logits) for name, function in functions.items()}
    if stored.probabilities is not None:
        return {
            "msp": ood.msp_from_probabilities(stored.probabilities),
            "entropy": ood.entropy_from_probabilities(stored.probabilities),
        }
    assert stored.confidence is not None
    return {"msp": -stored.confidence}


def _notes(outcomes: Outcomes, estimates: Mapping[str, Estimate], before: Outcomes | None) -> list[str]:
    n, notes = len(outcomes), []
    by_chance = 0.9 / math.sqrt(n)  # 0.061, 0.029, 0.013, 0.004 at n = 200, 1,000, 5,000, 50,000
    if n < SMALL_N or estimates["ece15"].value < 2 * by_chance:
        notes.append(
            f"n = {n:,}: a perfectly calibrated model would show an ece15 of about {by_chance:.3f}; "
            "ECE is biased upward, and its interval too, so look at ece_debiased and at paired deltas."
        )
    if outcomes.nll is not None and not np.isfinite(outcomes.nll).all():
        zeros = int(np.count_nonzero(np.isinf(outcomes.nll)))
        notes.append(f"nll is infinite: {zeros:,} of {n:,} samples give their label a probability of exactly 0; nothing is clipped.")
    if outcomes.nll is None:
        notes.append("true_label, pred_label and confidence allow no acc5, nll, brier, ece_classwise and temperature.")
    if before is not None:
        loss = minimum_detectable_loss(n, float(np.mean(before.correct != outcomes.correct)))
        notes.append(f"the smallest accuracy difference that these samples would show (80 % power) is {loss:.4f}.")
    return notes


def _table(result: Mapping[str, Any]) -> str:
    rows = [(name, fields) for name, fields in result.items() if isinstance(fields, dict) and "value" in fields]
    for score, metrics in result.get("ood", {}).get("scores", {}).items():
        rows += [(f"{score} {metric}", fields) for metric, fields in metrics.items()]
    paired_columns = any("delta" in fields for _, fields in rows)
    lines = [_line("metric", "value", "95 % interval", "n", *(("delta", "95 % interval", "p") if paired_columns else ()))]
    lines += [_row(name, fields) for name, fields in rows]
    if "ood" in result:
        lines += ["", f"OOD metrics: {result['ood']['n_id']:,} ID and {result['ood']['n_ood']:,} OOD samples; AUPR depends on this ratio."]
    if "paired" in result:
        lines += ["", "against the baseline: " + ", ".join(f"{name} {value:.4f}" for name, value in result["paired"].items())]
    return "\n".join([*lines, *(f"note: {text}" for text in result["notes"])])


def _row(name: str, fields: Mapping[str, Any]) -> str:
    value = "infinite" if fields["value"] is None else f"{fields['value']:.4f}"
    cells = [name, value, _interval(fields["ci95"]), f"{fields['n']:,}"]
    if "delta" in fields:
        p_value = "-" if fields["p_value"] is None else f"{fields['p_value']:.4f}" if fields["p_value"] >= 1e-4 else "<0.0001"
        cells += [f"{fields['delta']:+.4f}", _interval(fields["delta_ci95"], sign="+"), p_value]
    return _line(*cells)


def _interval(bounds: list[float] | None, sign: str = "") -> str:
    return "-" if bounds is None else f"{bounds[0]:{sign}.4f} to {bounds[1]:{sign}.4f}"


def _line(name: str, *cells: str) -> str:
    widths = (9, 20, 8, 10, 20, 9)
    return f"{name:<24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
