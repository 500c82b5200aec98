"""Options about gates that clipq eval and clipq compare share: which apply, what is written for CI, and exit code 3."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipq.cli.options import comma_list
from clipq.errors import GateFailedError
from clipq.files import write_bytes, write_text

_HELP = {
    "fail_on": "end with exit code 3 when this comparison holds, e.g. 'acc1.delta_pp<-1.0', or when this goal does not, e.g. "
    "'acc1:max-degradation=0.01' (also threshold, percent-max-degradation, min-improvement, percent-min-improvement, non-inferior); "
    "OOD metrics after near., far. or all. are means over those sets; may be given several times",
    "gates": "gates by name, beside those of --fail-on: default, mlperf-99, mlperf-99.9 (at least 99 %% or 99.9 %% of the baseline's "
    "accuracy, which must be FP32), non-inferior (the whole 95 %% interval of accuracy, ECE-15 and AUROC within one percent point); "
    "exit code 3 as well",
    "require_proof": "end with exit code 3 as well where the sample is too small to show that a gate passes",
    "junit": "also write the gates as JUnit XML for CI: one suite per engine; unproven gates are skipped, or failed with --require-proof",
    "summary": "also write the verdicts and worst differences as short Markdown, e.g. for a comment on a pull request",
}


def add_gates(parser: argparse.ArgumentParser) -> None:
    """Add ``--fail-on``, ``--gates``, ``--require-proof``, ``--junit`` and ``--summary``."""
    parser.add_argument("--fail-on", metavar="RULE", action="append", default=[], help=_HELP["fail_on"])
    parser.add_argument("--gates", metavar="NAME,...", type=comma_list, action="extend", default=[], help=_HELP["gates"])
    parser.add_argument("--require-proof", action="store_true", help=_HELP["require_proof"])
    parser.add_argument("--junit", metavar="FILE", type=_file, help=_HELP["junit"])
    parser.add_argument("--summary", metavar="FILE", type=_file, help=_HELP["summary"])


def _file(text: str) -> Path:
    """Return a path to write to; a folder is refused before any work."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; expected a file")
    return path


def gates_asked(args: argparse.Namespace) -> bool:
    """Tell whether a gate that fails ends the command with exit code 3."""
    return bool(args.fail_on or args.gates or args.require_proof)


def write_for_ci(args: argparse.Namespace, judged: Mapping[str, Any]) -> None:
    """Write what ``--junit`` and ``--summary`` ask for; ``judged`` is a report or a comparison with gates and verdict."""
    from clipq.evaluate.report.junit import render_junit
    from clipq.evaluate.report.summary import render_summary

    if args.junit:
        write_bytes(args.junit, render_junit(judged, require_proof=args.require_proof))
    if args.summary:
        write_text(args.summary, render_summary(judged))


def end_on_failure(gates: Sequence[Mapping[str, Any]], *, require_proof: bool) -> None:
    """Raise when a gate failed, or with ``require_proof`` when one could not be shown to pass.

    Raises:
        GateFailedError: Names the first three.
    """
    bad = [gate for gate in gates if gate["outcome"] == "fail" or (require_proof and gate["outcome"] == "unproven")]
    if bad:
        shown = "; ".join(f"{gate['engine']}: {gate['why']} ({gate['rule']})" for gate in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise GateFailedError(f"{len(bad)} of {len(gates)} gates failed: {shown}{more}")
