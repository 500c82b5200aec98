"""What a quantized graph says about itself: inside the file, and in the bundle's ``engine.json``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from onnx import ModelProto

from clipq import __version__
from clipq.export.quantize.graph import graph_bytes
from clipq.export.quantize.layers import Layer
from clipq.files import sha256_file

METADATA_KEY = "clipq.quantization"


def label(model: ModelProto, source: Path, **values: Any) -> None:
    """Write how a graph was quantized, and from which file, into its metadata beside what stands there."""
    model.producer_name, model.producer_version = "clipq", __version__
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [*kept, (METADATA_KEY, json.dumps({**values, "source_sha256": sha256_file(source)}, sort_keys=True))]:
        model.metadata_props.add(key=key, value=value)


def facts(scheme: str, layers: list[Layer], kept: dict[str, str], source: Path, target: Path) -> dict[str, Any]:
    """Return which nodes are INT8, which are not and why, how many of each, and the sizes of both files in bytes."""
    return {
        "scheme": scheme,
        "quantized": [layer.node.name for layer in layers],
        "fp32": kept,
        "counts": {"int8": dict(Counter(layer.node.op_type for layer in layers)), "fp32": dict(Counter(kept.values()))},
        "source_bytes": graph_bytes(source),
        "target_bytes": graph_bytes(target),
    }
