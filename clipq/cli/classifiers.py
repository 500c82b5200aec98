"""``--classifier NAME[=DATA]`` of clipq export: class texts embedded into the bundle, for devices without tokenizer and text tower."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clipq.errors import UsageError


def add_classifiers_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--classifier``."""
    help_text = (
        "also embed the class texts of DATA (default: of --calib) into classifiers/NAME, for clipq eval --classifier NAME on a device; "
        "repeatable, and with --resume for a finished bundle too"
    )
    parser.add_argument("--classifier", metavar="NAME[=DATA]", action="append", default=[], help=help_text)


def classifiers_asked(texts: Sequence[str], calibration: str) -> dict[str, str]:
    """Return name -> data id, checked before any work.

    Args:
        texts: ``NAME`` or ``NAME=DATA``.
        calibration: Data id that takes the place of a missing DATA; empty where there is none.

    Raises:
        UsageError: A name or a data id is wrong, a name comes twice, or there is no data to take.
        DataError: A data set has no class names.
    """
    if not texts:
        return {}
    from clipq.evaluate.classifier_making import check_classifiers

    asked: dict[str, str] = {}
    for text in texts:
        name, _, data = text.partition("=")
        if name in asked:
            raise UsageError(f"--classifier names {name} twice")
        asked[name] = data or calibration
        if not asked[name]:
            raise UsageError(f"--classifier {name} names no data", fix=f"Write {name}=DATA, or name calibration images with --calib.")
    check_classifiers(asked)
    return asked
