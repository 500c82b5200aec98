"""Read a verification back, or a report in its place: engines, provenance and bench have one form in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipq.errors import ClipqError, UsageError
from clipq.evaluate.report.write import SCHEMA as REPORT
from clipq.evaluate.verify.schema import SCHEMA

_PARTS = {
    SCHEMA: ("provenance", "bundle", "preprocessing", "engines", "left_out", "bench", "problems"),
    REPORT: ("provenance", "engines", "bench"),
}


def is_verification(path: Path) -> bool:
    """Tell whether a file, or a folder's ``verify.json`` beside no report, is the record of a verification."""
    file = _file(path)
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and found.get("schema") == SCHEMA


def read_record(path: Path) -> dict[str, Any]:
    """Return a verification or a report.

    Raises:
        UsageError: There is no such file.
        ClipqError: It is neither, or incomplete.
    """
    file = _file(path)
    if not file.is_file():
        raise UsageError(
            f"no record at {path}", expected="a verify.json or report.json", fix="Make one with: clipq verify BUNDLE --json FILE"
        )
    try:
        record = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ClipqError(f"cannot read {file}", found=error, expected="a record of clipq verify or clipq eval") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema not in _PARTS:
        raise ClipqError(f"{file} is no record this clipq can read", found=f"schema {schema!r}", expected=" or ".join(_PARTS))
    missing = [part for part in _PARTS[schema] if part not in record]
    if missing:
        raise ClipqError(f"{file} is incomplete", found=f"no {', '.join(missing)}", fix="Make it again.")
    return dict(record)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    return next((path / name for name in ("report.json", "verify.json") if (path / name).is_file()), path / "verify.json")
