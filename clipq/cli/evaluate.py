"""clipq eval: the reliability suite on every engine of a bundle, compared with a baseline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.cli.corruptions import add_corruptions, corruptions_asked
from clipq.cli.gates import add_gates, end_on_failure, gates_asked, write_for_ci
from clipq.cli.neglabel import add_neglabel, neglabel_asked
from clipq.cli.options import (
    add_json,
    add_limit,
    add_output,
    add_quiet,
    add_resume,
    add_seed,
    add_trust,
    comma_list,
    write_json_option,
)
from clipq.cli.robustness import add_robustness, robustness_asked
from clipq.cli.suite_options import add_resamples, add_suite, apply_suite
from clipq.files import locked, reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that clipq-export made")
    parser.add_argument("--data", metavar="DATA,...", type=comma_list, default=(), help="data sets to classify, e.g. wds:PATH:test")
    parser.add_argument("--ood", metavar="DATA,...", type=comma_list, default=(), help="data sets of other things, to be told from --data")
    for distance in ("near", "far"):
        what = f"the same, data that is {distance}; the report has the mean over these sets too"
        parser.add_argument(f"--ood-{distance}", metavar="DATA,...", type=comma_list, default=(), help=what)
    retrieval = "images with captions, to be found by each other: wds:PATH, captions:FILE.csv@ROOT or synthetic:scenes-captions"
    parser.add_argument("--retrieval", metavar="DATA,...", type=comma_list, default=(), help=retrieval)
    classes = (
        "classify --data by this classifier of the bundle, whose class names theirs must be among; needs no tokenizer and no text tower"
    )
    parser.add_argument("--classifier", metavar="NAME", default="", help=classes)
    add_output(parser, "folder for report.json, report.md, report.html and samples.parquet")
    parser.add_argument("--engines", metavar="ENGINE,...", type=comma_list, default=(), help="which engines (default: all that run here)")
    parser.add_argument("--baseline", metavar="ENGINE", default="torch-fp32", help="compare with this engine (default: torch-fp32)")
    add_gates(parser)
    add_trust(parser)
    fallback = "evaluate, and mark, an engine that does not run in the precision it is named after, instead of ending with an error"
    parser.add_argument("--allow-fallback", action="store_true", help=fallback)
    add_neglabel(parser)
    add_robustness(parser)
    add_corruptions(parser)
    tune = "fit one logit scale per engine on this labelled data set, and judge each engine with it too, as ENGINE+scale"
    parser.add_argument("--tune-scale", metavar="DATA", help=tune)
    save = "write every engine's OOD thresholds, which keep 95 %% of --data, into the bundle as engines/ENGINE/thresholds.json"
    parser.add_argument("--save-thresholds", action="store_true", help=save)
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="images of one inference (default: 32)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: one per usable core)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--no-bench", action="store_true", help="measure no latency")
    speed.add_argument("--bench-seconds", metavar="S", type=float, default=2.0, help="time per engine and latency scenario (default: 2)")
    add_limit(parser)
    add_seed(parser)
    add_resamples(parser)
    add_resume(parser)
    add_json(parser)
    add_quiet(parser)
    add_suite(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the verdict, and end with 3 when a gate fails that was asked for."""
    from clipq.evaluate.suite import EvalOptions, evaluate_bundle
    from clipq.evaluate.thresholds import require_writable, save_thresholds

    suite = apply_suite(args)
    options = EvalOptions(
        data=args.data,
        ood=args.ood,
        retrieval=args.retrieval,
        ood_near=args.ood_near,
        ood_far=args.ood_far,
        engines=args.engines,
        baseline=args.baseline,
        limit=args.limit,
        seed=args.seed,
        resume=args.resume,
        batch_size=args.batch_size,
        threads=args.threads,
        bench_seconds=0.0 if args.no_bench else args.bench_seconds,
        resamples=args.resamples,
        rules=tuple(args.fail_on),
        presets=tuple(args.gates),
        allow_fallback=args.allow_fallback,
        suite=suite,
        neglabel=neglabel_asked(args),
        tune_scale=args.tune_scale,
        **robustness_asked(args),
        noise=corruptions_asked(args),
        classifier=args.classifier,
    )
    bundle = Bundle.open(args.bundle, trust_plans=args.trust_engine)
    if args.save_thresholds:
        require_writable(args.bundle)
    with reading(args.bundle), locked(args.output):
        report = evaluate_bundle(bundle, options, args.output)
    if args.save_thresholds:
        save_thresholds(args.bundle, report)
    if args.json:
        write_json_option(args.json, report)
    write_for_ci(args, report)
    if args.json != "-":
        print(summary(report, args.output))
    if gates_asked(args):
        end_on_failure(report["gates"], require_proof=args.require_proof)
    return 0


def summary(report: dict[str, Any], folder: Path) -> str:
    """Return the verdict of every engine and where the report is."""
    lines = []
    for engine_id, verdict in report["verdict"].items():
        dominated = f", dominated by {verdict['dominated_by']} here" if verdict["dominated_by"] else ""
        lines.append(f"{engine_id}: {verdict['outcome']}{dominated}")
        lines += [f"  {why}" for why in verdict["why"]]
    if not lines:
        lines.append(f"only {report['baseline']} was evaluated, so there is nothing to compare")
    page = next((path for path in (folder / "report.html", folder / "report.md") if path.exists()), folder / "report.json")
    return "\n".join([*lines, f"Report: {page}"])
