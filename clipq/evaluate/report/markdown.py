"""report.md: the compact tables of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown tables."""
    return f"# clipq report: {report['provenance']['model']['id']}\n"
