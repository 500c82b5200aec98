"""Weights alone in 8 or 4 bits, activations FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipq.errors import ExportError
from clipq.methods import Bits


def write_weight_only(source: Path, target: Path, method: str, bits: Bits) -> dict[str, Any]:
    """Write ``target``, the FP32 graph ``source`` with its linear weights in ``bits``."""
    raise ExportError(f"{method} {bits} of {source} is not there", found=target)
