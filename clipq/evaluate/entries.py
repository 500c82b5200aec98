"""Estimates as the measurements of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from clipq.evaluate.statistics.bootstrap import Estimate


def measurements(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return METRIC -> measurement as JSON; what is not a finite number becomes None."""
    return {name: {key: _plain(value) for key, value in asdict(estimate).items()} for name, estimate in estimates.items()}


def _plain(value: str | float | tuple[float, float] | None) -> Any:
    if isinstance(value, tuple):
        return [_plain(end) for end in value]
    return value if value is None or isinstance(value, str) or np.isfinite(value) else None
