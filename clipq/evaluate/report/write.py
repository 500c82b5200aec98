"""Write a report: report.json first, then the samples and the two renderings made from them, each file whole or absent."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.errors import missing_extra
from clipq.files import write_json, write_text

SCHEMA = "clipq.report/1"


def require_report_libraries() -> None:
    """Check, before any work, that what a report is written with is installed.

    Raises:
        MissingRuntimeError: jinja2 or pyarrow is missing; the line names the extra.
    """
    missing = [name for name in ("jinja2", "pyarrow") if importlib.util.find_spec(name) is None]
    if missing:
        raise missing_extra(", ".join(missing), "report")


def write_report(report: dict[str, Any], samples: Mapping[str, npt.NDArray[Any]], folder: Path) -> None:
    """Write ``report.json``, ``samples.parquet``, ``report.md`` and ``report.html`` into ``folder``.

    Args:
        report: As ``report.schema.json`` beside this file says.
        samples: The columns of ``clipq.evaluate.report.samples.COLUMNS``, one row per engine and image; OOD images have a row
            for every ID data set whose class texts scored them.
        folder: Made where it is missing.

    Raises:
        ClipqError: The disk is full or the folder cannot be written.
        MissingRuntimeError: A library of the ``report`` extra is missing.
    """
    require_report_libraries()
    from clipq.evaluate.report.html import render_html
    from clipq.evaluate.report.markdown import render_markdown
    from clipq.evaluate.report.samples import write_samples

    write_json(folder / "report.json", report)
    write_samples(samples, folder / "samples.parquet")
    write_text(folder / "report.md", render_markdown(report))
    write_text(folder / "report.html", render_html(report, samples))
