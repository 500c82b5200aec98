"""clipq demo: the whole road on the embedded model and data, without a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipq.cli.options import add_json, add_limit, add_output, add_quiet, add_seed, write_json_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", metavar="MODEL", default="demo:under", help="demo:under (underconfident, the default) or demo:over (overconfident)"
    )
    add_output(parser, "folder for the bundle and the report (default: out/demo)", required=False, default=Path("out/demo"))
    add_limit(parser)
    add_seed(parser)
    add_json(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    """Export, quantize and judge; what an earlier demo in the same folder finished is used again."""
    from clipq.cli.evaluate import summary
    from clipq.evaluate.report.write import require_report_libraries
    from clipq.evaluate.suite import EvalOptions, evaluate_bundle
    from clipq.evaluate.suites.read import read_suite
    from clipq.evaluate.suites.resolve import resolve
    from clipq.export.pipeline import export_bundle
    from clipq.files import locked
    from clipq.recipe import Recipe

    require_report_libraries()
    suite = resolve(read_suite("demo"), None)
    with locked(args.output):
        bundle = export_bundle(Recipe(model=args.model, seed=args.seed, patch_tokens=True), args.output / "bundle", resume=True)
        options = EvalOptions(**suite.options, suite=suite.record, limit=args.limit, seed=args.seed, resume=True)
        report = evaluate_bundle(bundle, options, args.output)
    if args.json:
        write_json_option(args.json, report)
    if args.json != "-":
        print(summary(report, args.output))
    return 0
