"""``--shift`` and ``--spurious``: which data sets belong together, where their ids do not tell."""

from __future__ import annotations

import argparse
from typing import Any

from clipq.errors import UsageError

_HELP = {
    "shift": "compare accuracy on two labelled data sets, the second of which is shifted; both join --data. Not needed for imagenet: "
    "with its relatives, whose ids tell. May be given several times",
    "spurious": "the same for two groups: in the first a misleading cue goes with the class as usual, in the second it does not. Not "
    "needed for waterbirds: and counteranimal:",
}


def add_robustness(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--shift", metavar="ID=SHIFTED", action="append", default=[], help=_HELP["shift"])
    parser.add_argument("--spurious", metavar="COMMON=COUNTER", action="append", default=[], help=_HELP["spurious"])


def robustness_asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``EvalOptions`` that the options give.

    Raises:
        UsageError: A pair is no pair.
    """
    return {
        "shift": tuple(read_pair(text, "--shift") for text in args.shift),
        "spurious": tuple(read_pair(text, "--spurious") for text in args.spurious),
    }


def read_pair(text: str, option: str) -> tuple[str, str]:
    """Return both data ids of ``ID=OTHER``.

    Raises:
        UsageError: It is not two different ids with one ``=`` between them.
    """
    first, _, second = (part.strip() for part in text.partition("="))
    if not first or not second or "=" in second or first == second:
        raise UsageError(f"cannot read {option} {text!r}", expected="two data ids with = between them, e.g. imagefolder:/a=imagefolder:/b")
    return first, second
