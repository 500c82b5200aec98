"""Every error this tool raises on purpose, one tree, each with its exit code.

ClipqError                 1   something went wrong; the line says what to do
├── UsageError             2   the command or its arguments are wrong
│   └── MissingDataError   2   nothing stands where a data id points; a suite leaves such a set out
├── DataError              1   images, labels or class names are unusable
├── ExportError            1   a graph could not be made, or does not match PyTorch
├── EngineError            1   an engine did not do what it promised (shape, dtype, provider, NaN)
├── BusyError              1   another run holds this folder
├── GateFailedError        3   a quality gate failed
├── MissingRuntimeError    4   a runtime or device is not here; the line names the extra to install
└── RefusedError           5   a hash, path or link is not what the manifest says
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class ClipqError(Exception):
    """Base of all: one line that says what happened, what was found, what was expected and what to do.

    Args:
        what: What happened, naming the file or argument.
        found: What was there.
        expected: What should have been there.
        fix: What the reader does now, as an imperative.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, fix: str | None = None) -> None:
        parts = [what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        line = "; ".join(parts)
        text = " ".join(f"{line}. {fix}".split()) if fix else " ".join(line.split())
        super().__init__("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text))  # a name may be anybody's


class UsageError(ClipqError):
    """The command or its arguments are wrong."""

    exit_code = 2


class MissingDataError(UsageError):
    """Nothing stands where a data id points."""


class DataError(ClipqError):
    """Images, labels or class names are unusable."""


class ExportError(ClipqError):
    """A graph could not be made, or does not match PyTorch."""


class EngineError(ClipqError):
    """An engine did not do what it promised."""


class BusyError(ClipqError):
    """Another run holds this folder."""


class GateFailedError(ClipqError):
    """A quality gate failed."""

    exit_code = 3


class MissingRuntimeError(ClipqError):
    """A runtime or device is not here."""

    exit_code = 4


class RefusedError(ClipqError):
    """A hash, path or link is not what the manifest says."""

    exit_code = 5


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name nobody knows, suggesting the nearest one.

    >>> str(unknown_name("engine", "ort-fp23", ["ort-fp32", "torch-fp32"]))
    "unknown engine 'ort-fp23'; expected one of ort-fp32, torch-fp32. Did you mean 'ort-fp32'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return UsageError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(names)}", fix=f"Did you mean {near[0]!r}?" if near else None)


def missing_extra(what: str, extra: str) -> MissingRuntimeError:
    """Return the error for a library that an extra would bring.

    >>> str(missing_extra("onnxruntime", "cpu"))
    "onnxruntime is not installed. Run: pip install 'clipq[cpu]'"
    """
    return MissingRuntimeError(f"{what} is not installed", fix=f"Run: pip install 'clipq[{extra}]'")
