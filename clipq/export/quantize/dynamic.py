"""INT8 weights with activations quantized on the fly: the graph of ``ort-int8-dynamic``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def quantize_dynamic(source: Path, target: Path) -> dict[str, Any]:
    """Write ``target``, the dynamically quantized form of the FP32 graph ``source``, and return facts for ``engine.json``.

    Raises:
        ExportError: The source is unreadable or has nothing to quantize.
    """
    raise NotImplementedError
