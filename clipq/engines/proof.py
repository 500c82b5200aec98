"""What really ran: the layers of a tower as its runtime reports them, not as the graph asked for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["product", "convolution", "attention", "softmax", "normalisation", "reformat", "other"]


@dataclass(frozen=True, slots=True)
class RanLayer:
    """One kernel that a runtime executed.

    Attributes:
        name: The runtime's own name of it.
        kind: ``product`` (matrix product), ``convolution``, ``attention`` (a fused one), ``reformat`` (copies, casts and changes of
            layout or scale that compute nothing), ...
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``, or ``unknown`` where the runtime does not tell.
        multiply_adds: Of one image or text; 0 where it has none or the runtime does not tell.
        provider: Where it ran, e.g. ``CPUExecutionProvider``.
    """

    name: str
    kind: LayerKind
    precision: str
    multiply_adds: int
    provider: str


@dataclass(frozen=True, slots=True)
class TowerProof:
    """The layers of one tower.

    Attributes:
        source: Where they were read, e.g. ``onnxruntime profile`` or ``tensorrt inspector``.
        layers: In the order they ran, or in which the runtime lists them.
    """

    source: str
    layers: tuple[RanLayer, ...]
