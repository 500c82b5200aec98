"""Read a report back: report.json, and the samples beside it where they are."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.errors import ClipqError, UsageError
from clipq.evaluate.report.samples import read_samples
from clipq.evaluate.report.write import SCHEMA

_PARTS = ("baseline", "provenance", "engines", "datasets", "results", "ood", "paired", "bench")


@dataclass(frozen=True, slots=True, eq=False)
class StoredReport:
    """A report on disk.

    Attributes:
        path: Its report.json.
        report: The whole of it.
        samples: The samples table, or None where it is missing or pyarrow is not installed.
    """

    path: Path
    report: dict[str, Any]
    samples: dict[str, npt.NDArray[Any]] | None


def read_report(path: Path) -> StoredReport:
    """Read a report.json, or the one in a folder, with the samples.parquet beside it.

    Raises:
        UsageError: There is no report.
        ClipqError: It is not a clipq report, is incomplete, or is of another schema version.
    """
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"no report at {path}", expected="a report.json or a folder with one", fix="Make one with: clipq eval BUNDLE")
    try:
        report = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ClipqError(f"cannot read {file}", found=error, expected="a clipq report") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA:
        raise ClipqError(f"{file} is not a report this clipq can read", found=f"schema {schema!r}", expected=SCHEMA)
    missing = [part for part in _PARTS if part not in report]
    if missing:
        raise ClipqError(f"{file} is incomplete", found=f"no {', '.join(missing)}", fix="Run clipq eval again.")
    _rename_energy(report["ood"])
    table = file.parent / "samples.parquet"
    readable = table.is_file() and importlib.util.find_spec("pyarrow") is not None
    return StoredReport(file, report, read_samples(table) if readable else None)


def _rename_energy(ood: dict[str, Any]) -> None:
    """Give ``energy`` of reports from before there were two of them its name of today."""
    for scores in (scores for pairs in ood.values() for scores in pairs.values() if "energy" in scores):
        scores["energy_logit"] = scores.pop("energy")
