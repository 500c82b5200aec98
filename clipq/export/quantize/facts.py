"""What a quantized graph says about itself: inside the file, and in the bundle's ``engine.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from clipq import __version__
from clipq.export.quantize.graph import graph_bytes

METADATA_KEY = "clipq.quantization"


def label(model: ModelProto, source_sha256: str, **values: Any) -> None:
    """Write how a graph was quantized, and from which file by its hash, into its metadata beside what stands there."""
    model.producer_name, model.producer_version = "clipq", __version__
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*kept, (METADATA_KEY, json.dumps({**values, "source_sha256": source_sha256}, sort_keys=True))]:
        model.metadata_props.add(key=key, value=value)


def facts(scheme: str, precision: str, quantized: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, Any]:
    """Return which nodes are quantized, which are not and why, and how many of each.

    Args:
        scheme: How, in a line.
        precision: ``int8`` or ``fp8``.
        quantized: Names of the quantized nodes, each with its operator.
        kept: Names of the others, each with its reason.
    """
    counts = {precision: dict(Counter(quantized.values())), "fp32": dict(Counter(kept.values()))}
    return {"scheme": scheme, "quantized": list(quantized), "fp32": dict(kept), "counts": counts}


def sizes(source_bytes: int, target: Path) -> dict[str, int]:
    """Return the sizes in bytes of the FP32 graph and of what was made of it."""
    return {"source_bytes": source_bytes, "target_bytes": graph_bytes(target)}
