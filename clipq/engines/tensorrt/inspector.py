"""TensorRT's engine inspector, read into the layers that really run; two shapes of its JSON, up to 10 and from 11 on.

Up to TensorRT 10 a tensor has ``"Format/Datatype"`` and the engine ``"Bindings"``; from 11 on they are ``"Format"``, ``"Datatype"`` and
``"I/O Tensors"``. A plan built without detailed profiling verbosity lists its layers by name only, so their precision is unknown.
Myelin, TensorRT's compiler of transformers, names its kernels itself and says in ``"Metadata"`` which ONNX nodes they stand for; up to
8.6 it may hide them all in one layer ``{ForeignNode[...]}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipq.engines.proof import COMPUTING, UNKNOWN, LayerKind, RanLayer, TowerProof
from clipq.errors import EngineError

PROVIDER = "cuda"
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_MYELIN_ENDING = re.compile(r"_myl\d+_\d+$")
_FUSED_ATTENTION = re.compile(r"(^|_)(gemm|gemv)_mha|fmha|fused_mha|flash_?att", re.IGNORECASE)
_COMPUTE_TYPE = re.compile(r"_(?:i8|u8|e4m3|e5m2|bf16|f16|f32)+_(i8|u8|e4m3|e5m2|bf16|f16|tf32|f32)(?:i32|f16|f32)_")
_MOVES_ONLY = re.compile(r"^__myl_(bb\d+_\d+_)?((Tran?|Resh?|Move?|Cast?|Slic?|Conc?|Repl?|Copy)(?=[A-Z_]|$))+(_|$)")
_TACTIC_TYPES = {
    "i8": "int8",
    "u8": "int8",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "bf16": "bf16",
    "f16": "fp16",
    "tf32": "tf32",
    "f32": "fp32",
}
_TYPE_WORDS: Sequence[tuple[str, re.Pattern[str]]] = [
    ("int8", re.compile(r"\bu?int8\b", re.IGNORECASE)),
    ("fp8", re.compile(r"\b(fp8|float8|e4m3|e5m2)", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE)),
]
_KIND_WORDS: Sequence[tuple[LayerKind, re.Pattern[str]]] = [  # of a layer's type and tactic, the first that fits
    ("reformat", re.compile(r"^(reformat|cast|quantize|dequantize|shuffle|copy)", re.IGNORECASE)),
    ("convolution", re.compile(r"conv|correlation|fprop", re.IGNORECASE)),
    ("product", re.compile(r"gemm|gemv|matrix|matmul|fullyconnected", re.IGNORECASE)),
    ("softmax", re.compile(r"softmax", re.IGNORECASE)),
]
_RANK = {"attention": 3, "convolution": 2, "product": 2}  # whose claim to a node counts: a kernel that only moves its result names it too


def read_inspector(text: str, version: str, work: Mapping[str, int]) -> TowerProof:
    """Return what the inspector tells of a plan.

    For a plan with dynamic shapes, types are known only when the inspector was given an execution context whose input shapes are set.

    Args:
        text: ``get_engine_information(LayerInformationFormat.JSON)``.
        version: Of TensorRT, for the record.
        work: Node of the portable graph -> multiply-adds of one sample; what no layer names is listed as one product of unknown precision.

    Raises:
        EngineError: The text is no such JSON, or lists no layers.
    """
    try:
        layers = [_Layer.from_json(layer) for layer in json.loads(text)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"cannot read what TensorRT {version} tells of its engine",
            found=repr(error),
            expected="JSON with Layers",
            fix="Build it again.",
        ) from error
    if not layers:
        raise EngineError(f"TensorRT {version} tells nothing of this engine's layers", fix="Build it with detailed profiling verbosity.")
    claimed = _claims(layers, work)
    ran = [_ran(layer, [node for node, owner in claimed.items() if owner == place], work) for place, layer in enumerate(layers)]
    hidden = [node for node in work if node not in claimed]
    if hidden:
        total = sum(work[node] for node in hidden)
        ran.append(RanLayer(f"{len(hidden)} nodes that no layer names, from {hidden[0]}", "product", UNKNOWN, total, PROVIDER))
    return TowerProof(f"tensorrt {version} inspector", tuple(ran))


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer as the inspector lists it; of a layer listed by name only, everything else is empty."""

    name: str
    layer_type: str = ""
    tactic: str = ""
    metadata: str = ""
    types: tuple[str, ...] = ()
    weights: str = ""

    @classmethod
    def from_json(cls, value: Any) -> _Layer:
        if isinstance(value, str):
            return cls(value)
        weights = value.get("Weights")
        return cls(
            str(value["Name"]),
            str(value.get("LayerType", "")),
            str(value.get("TacticName", "")),
            str(value.get("Metadata", "")),
            tuple(_tensor_type(tensor) for tensor in value.get("Inputs", ())),
            _type_in(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else UNKNOWN,
        )

    def nodes(self) -> Iterator[str]:
        """Yield the ONNX nodes it stands for: as its metadata says, or else the parts of its name."""
        found = _ONNX_NODE.findall(self.metadata)
        yield from found or (part.strip() for part in re.split(r" \+ |\+(?=/)| \|\| ", _MYELIN_ENDING.sub("", self.name)))

    def kind(self) -> LayerKind:
        """Return what it does as far as its own type, tactic and name tell."""
        if _FUSED_ATTENTION.search(self.tactic or self.name):
            return "attention"
        if self.name.startswith("Reformatting CopyNode") or _MOVES_ONLY.match(self.name):
            return "reformat"
        for kind, words in _KIND_WORDS:
            if words.search(self.layer_type) or (kind in COMPUTING and words.search(self.tactic)):
                return kind
        names = [node.lower() for node in self.nodes()]
        if any(name.endswith("softmax") for name in names):
            return "softmax"
        return "normalisation" if any(name.endswith("normalization") for name in names) else "other"

    def precision(self) -> str:
        """Return the type it computes in: as its tactic says, or else that of its first input, or else of its weights."""
        named = _COMPUTE_TYPE.search(self.tactic)
        if named:
            return _TACTIC_TYPES[named[1]]
        known = [name for name in (*self.types, self.weights) if name not in {UNKNOWN, ""}]
        return known[0] if known else UNKNOWN


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    text = tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or ""
    return _type_in(str(text))


def _type_in(text: str) -> str:
    return next((name for name, words in _TYPE_WORDS if words.search(text)), UNKNOWN)


def _claims(layers: Sequence[_Layer], work: Mapping[str, int]) -> dict[str, int]:
    """Return node -> place of the layer that computes it; among several that name it, the one that is a product by its own account."""
    spelled = {_plain(node): node for node in work}  # kernels of Myelin have underscores for dots
    claimed: dict[str, int] = {}
    for place, layer in enumerate(layers):
        kind = layer.kind()
        rank = _RANK.get(kind, 0)
        for name in layer.nodes() if kind != "reformat" else ():
            node = name if name in work else spelled.get(_plain(name))
            if node is not None and (node not in claimed or rank > _RANK.get(layers[claimed[node]].kind(), 0)):
                claimed[node] = place
    return claimed


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _ran(layer: _Layer, nodes: Sequence[str], work: Mapping[str, int]) -> RanLayer:
    return RanLayer(layer.name, _kind(layer, nodes), layer.precision(), sum(work[node] for node in nodes), PROVIDER)


def _kind(layer: _Layer, nodes: Sequence[str]) -> LayerKind:
    """Return the kind of a layer by the nodes it computes: TensorRT runs quantized products as convolutions, and small ones by Myelin."""
    kind = layer.kind()
    if not nodes or kind == "attention":
        return kind
    operators = " ".join(node.rsplit("/", 1)[-1].lower() for node in nodes)
    if "matmul" in operators or "gemm" in operators:
        return "product"
    return kind if kind in COMPUTING else "convolution" if "conv" in operators else "product"
