"""report.html: one self-contained page that a stranger understands."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt


def render_html(report: Mapping[str, Any], samples: Mapping[str, npt.NDArray[Any]]) -> str:  # noqa: ARG001
    """Return the report as one HTML page."""
    return f"<!doctype html><title>{html.escape(report['provenance']['model']['id'])}</title>"
