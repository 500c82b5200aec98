"""Write a report: report.json first, then the renderings and samples that the libraries here can write, each file whole or absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.errors import missing_extra
from clipq.files import write_json, write_text
from clipq.progress import note

SCHEMA = "clipq.report/1"
_WRITES: Mapping[str, str] = {"jinja2": "report.html", "pyarrow": "samples.parquet"}


def require_report_libraries() -> None:
    """Check, before any work, that what a report is written with is installed.

    Raises:
        MissingRuntimeError: jinja2 or pyarrow is missing; the line names the extra.
    """
    missing = [library for library in _WRITES if not _installed(library)]
    if missing:
        raise missing_extra(", ".join(missing), "report")


def tell_missing_libraries() -> None:
    """Say, before any work, which files a report will lack because their libraries are not installed, as on a device."""
    for library, file in _WRITES.items():
        if not _installed(library):
            note(f"{file} will not be written: {missing_extra(library, 'report')}")


def write_report(report: dict[str, Any], samples: Mapping[str, npt.NDArray[Any]], folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and, where jinja2 and pyarrow are installed, ``report.html`` and ``samples.parquet``.

    Args:
        report: As ``report.schema.json`` beside this file says.
        samples: The columns of ``clipq.evaluate.report.samples.COLUMNS``, one row per engine and image; OOD images have a row
            for every ID data set whose class texts scored them.
        folder: Made where it is missing.

    Raises:
        ClipqError: The disk is full or the folder cannot be written.
    """
    from clipq.evaluate.report.markdown import render_markdown
    from clipq.evaluate.report.samples import write_samples

    write_json(folder / "report.json", report)
    table = _installed("pyarrow")
    if table:
        write_samples(samples, folder / "samples.parquet")
    else:
        (folder / "samples.parquet").unlink(missing_ok=True)  # of an earlier report
    write_text(folder / "report.md", render_markdown(report))
    if _installed("jinja2"):
        from clipq.evaluate.report.html import render_html

        write_text(folder / "report.html", render_html(report, samples, table=table))


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None
