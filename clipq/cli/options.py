"""Options that several commands share, so that a name means the same everywhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from clipq.errors import GateFailedError
from clipq.files import write_json


def comma_list(text: str) -> tuple[str, ...]:
    """Split ``a,b,c`` and drop empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_output(parser: argparse.ArgumentParser, what: str, *, required: bool = True, default: Path | None = None) -> None:
    """Add ``-o/--output DIR``."""
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=required, default=default, help=what)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json [FILE|-]``."""
    parser.add_argument("--json", metavar="FILE", help="also write the result as JSON to FILE, or to stdout with -")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet``."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars and notes on stderr")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``."""
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of sampling and resampling (default: 0)")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add ``--limit``."""
    parser.add_argument("--limit", metavar="N", type=int, help="use at most N images of each data set, drawn at random by --seed")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add ``--resume``."""
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same folder")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-engine``."""
    help_text = "load TensorRT plans whose hash the manifest does not name; a plan is code that runs on this machine"
    parser.add_argument("--trust-engine", action="store_true", help=help_text)


def write_json_option(target: str, value: object) -> None:
    """Write a result where ``--json`` says: a file, or stdout for ``-``."""
    if target == "-":
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        write_json(Path(target), value)


def add_gates(parser: argparse.ArgumentParser) -> None:
    """Add ``--fail-on`` and ``--require-proof``."""
    help_text = "end with exit code 3 when this holds, e.g. 'acc1.delta_pp<-1.0'; may be given several times"
    parser.add_argument("--fail-on", metavar="RULE", action="append", default=[], help=help_text)
    proof = "end with exit code 3 as well where the sample is too small to show that a gate passes"
    parser.add_argument("--require-proof", action="store_true", help=proof)


def end_on_failure(gates: list[dict[str, Any]], *, require_proof: bool) -> None:
    """Raise when a gate failed, or with ``require_proof`` when one could not be shown to pass.

    Raises:
        GateFailedError: Names the first three.
    """
    bad = [gate for gate in gates if gate["outcome"] == "fail" or (require_proof and gate["outcome"] == "unproven")]
    if bad:
        shown = "; ".join(f"{gate['engine']}: {gate['why']} ({gate['rule']})" for gate in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise GateFailedError(f"{len(bad)} of {len(gates)} gates failed: {shown}{more}")
