"""Options of NegLabel, the OOD score that needs words of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clipq.errors import UsageError

if TYPE_CHECKING:
    from clipq.evaluate.neglabel import NegLabelOptions


def add_neglabel(parser: argparse.ArgumentParser) -> None:
    """Add ``--neglabel`` and what goes with it."""
    what = "also score OOD data by NegLabel: every text tower embeds some 15,000 words of WordNet, once per bundle and folder"
    parser.add_argument("--neglabel", action="store_true", help=what)
    parser.add_argument(
        "--negative-words", metavar="FILE", type=Path, help="NegLabel with these words instead: nouns in UTF-8, one per line"
    )
    parser.add_argument(
        "--negative-share",
        metavar="P",
        type=float,
        default=0.15,
        help="share of the words, farthest from all classes, to take (default: 0.15)",
    )
    parser.add_argument(
        "--negative-groups", metavar="N", type=int, default=100, help="groups the negative words are cut into (default: 100)"
    )


def neglabel_asked(args: argparse.Namespace) -> NegLabelOptions | None:
    """Return how NegLabel is to be computed, or None where it was not asked for.

    Raises:
        UsageError: An option is out of range, or changes a NegLabel that nobody asked for.
    """
    from clipq.evaluate.neglabel import NegLabelOptions

    options = NegLabelOptions(words=args.negative_words, share=args.negative_share, groups=args.negative_groups)
    if not args.neglabel and options != NegLabelOptions():
        raise UsageError("options of NegLabel without NegLabel", found="--negative-...", fix="Add --neglabel.")
    return options if args.neglabel else None
