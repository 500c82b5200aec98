"""Options of the noise axis: corrupted copies of every data set."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from clipq.cli.options import comma_list
from clipq.errors import UsageError

if TYPE_CHECKING:
    from clipq.evaluate.robustness.noise_options import NoiseOptions

_SEVERITIES = ("1", "2", "3", "4", "5")


def add_corruptions(parser: argparse.ArgumentParser) -> None:
    """Add ``--corruptions`` and what goes with it."""
    what = (
        "also measure the errors on corrupted copies of the --data sets, but of none that is itself shifted or altered: names such as "
        "fog, 15 for those of ImageNet-C, 19 or all with the four extra ones. The copies are made here, they are not ImageNet-C's files"
    )
    parser.add_argument("--corruptions", metavar="NAME,...|15|19|all", type=comma_list, default=(), help=what)
    severities = "severities of --corruptions, 1 to 5 (default: 1,2,3,4,5)"
    parser.add_argument("--severities", metavar="S,...", type=comma_list, default=_SEVERITIES, help=severities)
    reference = (
        "what the errors of mCE are divided by: baseline (default), those of --baseline on the same pictures; alexnet, AlexNet's published "
        "ones on ImageNet-C, comparable at most for 224-pixel ImageNet"
    )
    parser.add_argument("--mce-reference", metavar="REFERENCE", default="baseline", help=reference)


def corruptions_asked(args: argparse.Namespace) -> NoiseOptions | None:
    """Return which corruptions are to be measured, or None where none was asked for.

    Raises:
        UsageError: A name, severity or reference is unknown, or there are options of corruptions that nobody asked for.
    """
    from clipq.evaluate.robustness.noise_options import NoiseOptions, read_corruptions, read_severities

    if not args.corruptions:
        if args.severities != _SEVERITIES or args.mce_reference != "baseline":
            raise UsageError("--severities and --mce-reference are about corruptions, and there are none", fix="Add --corruptions 15.")
        return None
    return NoiseOptions(read_corruptions(args.corruptions), read_severities(args.severities), args.mce_reference)
