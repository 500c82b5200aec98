"""What really ran: the layers of a tower as its runtime reports them, not as the graph asked for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipq.artifact import Bundle
from clipq.errors import RefusedError

LayerKind = Literal["product", "convolution", "attention", "softmax", "normalisation", "reformat", "other"]
Attention = Literal["fused", "partly fused", "not fused", "none", "unknown"]
COMPUTING: tuple[LayerKind, ...] = ("product", "convolution", "attention")  # where the multiply-adds are
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RanLayer:
    """One kernel that a runtime executed.

    Attributes:
        name: The runtime's own name of it.
        kind: ``product`` (matrix product), ``convolution``, ``attention`` (a fused one), ``reformat`` (copies, casts and changes of
            layout or scale that compute nothing), ...
        precision: ``fp32``, ``tf32``, ``fp16``, ``bf16``, ``int8``, ``fp8``; ``int8-weights`` or ``int4-weights`` where a kernel reads
            such weights and computes in floating point; or ``unknown`` where the runtime does not tell.
        multiply_adds: Of one image or text; 0 where it has none or the runtime does not tell.
        provider: Where it ran, e.g. ``CPUExecutionProvider``.
    """

    name: str
    kind: LayerKind
    precision: str
    multiply_adds: int
    provider: str

    @property
    def computes(self) -> bool:
        """Whether it is a product, a convolution or a fused attention."""
        return self.kind in COMPUTING


@dataclass(frozen=True, slots=True)
class TowerProof:
    """The layers of one tower.

    Attributes:
        source: Where they were read, e.g. ``onnxruntime profile`` or ``tensorrt inspector``.
        layers: In the order they ran, or in which the runtime lists them.
    """

    source: str
    layers: tuple[RanLayer, ...]

    @property
    def attention(self) -> Attention:
        """Whether products and softmax of attention run as one kernel; ``none``: the tower has no softmax at all."""
        fused = any(layer.kind == "attention" for layer in self.layers)
        single = any(layer.kind == "softmax" for layer in self.layers)
        if fused:
            return "partly fused" if single else "fused"
        if single:
            return "not fused"
        return "unknown" if any(layer.computes and layer.precision == UNKNOWN for layer in self.layers) else "none"


def read_work(bundle: Bundle, engine_id: str) -> dict[str, dict[str, int]]:
    """Return tower -> node of the portable graph -> multiply-adds of one sample, from ``engine.json``; empty where it names none.

    Raises:
        RefusedError: ``engine.json`` is not the file the manifest names, or does not describe an engine.
    """
    return _table(bundle, engine_id, "work")


def read_asked(bundle: Bundle, engine_id: str) -> dict[str, dict[str, int]]:
    """Return tower -> precision -> multiply-adds of one sample that the graph asks for, from ``engine.json``; empty where it names none.

    Raises:
        RefusedError: ``engine.json`` is not the file the manifest names, or does not describe an engine.
    """
    return _table(bundle, engine_id, "asked")


def _table(bundle: Bundle, engine_id: str, key: str) -> dict[str, dict[str, int]]:
    name = f"engines/{engine_id}/engine.json"
    if name not in bundle.manifest.files:
        return {}
    path = bundle.file(name)
    try:
        return {tower: dict(counts) for tower, counts in json.loads(path.read_text()).get(key, {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} does not describe an engine", found=error, fix="Export the bundle again.") from error


def work_of_name(name: str, work: Mapping[str, int]) -> int:
    """Return the multiply-adds of the node that a layer is named after; runtimes append to names, so the longest beginning counts.

    >>> work_of_name("/conv1/Conv_output_0_nchwc", {"/conv1/Conv": 5, "/conv1": 1}), work_of_name("/other", {"/conv1/Conv": 5})
    (5, 0)
    """
    beginnings = [node for node in work if name.startswith(node)]
    return work[max(beginnings, key=len)] if beginnings else 0
