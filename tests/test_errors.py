"""The error tree: exit codes, one line each, and the helpers that suggest a way out."""

from __future__ import annotations

import pytest

from clipq import errors
from clipq.cli.main import _guard
from clipq.errors import (
    ClipqError,
    ExportError,
    GateFailedError,
    MissingRuntimeError,
    RefusedError,
    UsageError,
    missing_extra,
    unknown_name,
)

CODES = {ClipqError: 1, UsageError: 2, GateFailedError: 3, MissingRuntimeError: 4, RefusedError: 5, ExportError: 1}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_exit_codes_are_the_published_ones(kind: type[ClipqError], code: int) -> None:
    """A script may rely on the exit code of each kind."""
    assert kind.exit_code == code


def test_every_error_stands_in_the_drawn_tree() -> None:
    """The drawing in the docstring names each class with its code."""
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ClipqError)]
    drawn = dict(line.split("── ")[-1].split()[:2] for line in errors.__doc__.splitlines() if "Error" in line)
    assert drawn == {kind.__name__: str(kind.exit_code) for kind in kinds}


def test_a_message_names_four_things_on_one_line() -> None:
    """What happened, what was found, what was expected, what to do; line breaks inside are gone."""
    error = ClipqError("the disk\nis full", found="0 bytes", expected="1 GB", fix="Delete\n something.")
    assert str(error) == "the disk is full; found 0 bytes; expected 1 GB. Delete something."


def test_a_message_steers_no_terminal() -> None:
    """Names may come from somebody else's file: what cannot be printed is shown as such."""
    assert (
        str(ClipqError("bad name a\x1b[2Jb", found="\ud800")) == "bad name a\N{REPLACEMENT CHARACTER}[2Jb; found \N{REPLACEMENT CHARACTER}"
    )


def test_falsy_facts_are_still_said() -> None:
    """Zero and the empty list are facts, only None is none."""
    assert str(ClipqError("wrong count", found=0, expected=[])) == "wrong count; found 0; expected []"


def test_unknown_name_suggests_the_nearest() -> None:
    """A typing slip gets the name that was meant; nonsense gets the list only."""
    assert "Did you mean 'ort-fp32'?" in str(unknown_name("engine", "ort-fp23", ["ort-fp32", "torch-fp32"]))
    assert "Did you mean" not in str(unknown_name("engine", "zzz", ["ort-fp32"]))


def test_missing_extra_names_the_command() -> None:
    """The reader can paste the fix."""
    assert "pip install 'clipq[export]'" in str(missing_extra("torch", "export"))


def test_the_guard_turns_errors_into_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """A user sees one line and no traceback."""

    def refuse() -> int:
        raise RefusedError("no", fix="Stop.")

    assert _guard(refuse) == 5
    assert capsys.readouterr().err == "clipq: no. Stop.\n"


def test_the_guard_says_that_progress_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt ends with 130 and tells how to go on."""

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert _guard(interrupt) == 130
    assert "--resume" in capsys.readouterr().err
