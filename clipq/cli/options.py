"""Options that several commands share, so that a name means the same everywhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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
