"""Which nodes stay FP32 in a typed graph, each with its reason.

FP32 begins at the fragile operators: normalisations, sums over many values, exponentials, roots, activation functions. From them it
grows over element-wise nodes as far as no further Cast of an input is needed: over those that read results of such a group, and
otherwise only what the group reads anyway. So a LayerNorm or an L2 norm in single operators, and the ``x *`` of a GELU, are
computed in FP32 as a whole. What lies between FP32 nodes only is FP32 too.

Activation functions, because in half their parts cancel: near -1, FP16 has steps of 2**-11, so ``1 + erf(x / sqrt(2))`` at x = -3 is
8 per cent off, in BF16 45 per cent; and the cube in the tanh form overflows FP16 from x = 41 on. PyTorch computes them in float32 and
rounds once, and so does ONNX Runtime's CUDA kernel of a fused GELU, which takes the Casts in (onnxruntime pull request 11885).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import ModelProto, NodeProto

from clipq.export.typed.numbers import Half
from clipq.export.typed.opset import opset_of
from clipq.export.typed.tensors import Tensors

_FRAGILE_BY_REASON = {
    "normalisation": ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"),
    "softmax": ("Softmax", "LogSoftmax"),
    "sum over many values": (
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "GlobalAveragePool",
        "CumSum",
    ),
    "logarithm of a sum": ("ReduceLogSum", "ReduceLogSumExp"),
    "exponential, logarithm, root or reciprocal": ("Exp", "Log", "Sqrt", "Reciprocal"),
    "activation function": ("Erf", "Gelu", "Pow", "Sigmoid", "Softplus", "Tanh"),
}
FRAGILE = {operator: reason for reason, operators in _FRAGILE_BY_REASON.items() for operator in operators}
_ELEMENT_WISE = {"Abs", "Add", "Clip", "Div", "Expand", "Max", "Min", "Mul", "Neg", "Relu", "Sub", "Where"}
_SHAPING = {"Concat", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
READS_ANY = frozenset({"Cast", "Shape", "Size"})  # no type of their own


def keep_fp32(model: ModelProto, tensors: Tensors, half: Half) -> dict[str, str]:
    """Return why each float node that stays FP32 does, by name, in graph order; every other float node computes in half.

    Nodes whose operator has no such half type at the graph's operator set are among them; so is the convolution that reads the
    pixels, in BF16: an 8-bit pixel has as many bits as bfloat16 has, before it is normalised.
    """
    nodes = [node for node in model.graph.node if computes(node, tensors)]
    inputs = {value.name for value in model.graph.input}
    kept = {}
    for node in nodes:
        reason = FRAGILE.get(node.op_type) or _no_half(node, tensors, half, opset_of(model), inputs)
        if reason:
            kept[node.name] = reason
    _grow_back(nodes, tensors, kept)
    _grow(nodes, tensors, kept)
    _fill(nodes, tensors, kept)
    _out_of_range(nodes, tensors, half, kept)
    return {node.name: kept[node.name] for node in nodes if node.name in kept}


def computes(node: NodeProto, tensors: Tensors) -> bool:
    """Tell whether a node has a floating point type to choose: it reads or makes float32, and is no Cast or Shape."""
    return node.op_type not in READS_ANY and any(name in tensors.floats for name in [*node.input, *node.output])


def _no_half(node: NodeProto, tensors: Tensors, half: Half, opset: int, inputs: set[str]) -> str:
    if half.name == "bf16" and node.op_type == "Conv" and node.input[0] in inputs:
        return "reads the pixels, which have as many bits as bfloat16"
    if not any(name in tensors.floats for name in node.input):
        return "made from integers"
    if not tensors.float_outputs(node) and node.op_type != "QuantizeLinear":
        return "makes integers or truth values"
    if not supports(node, tensors, half, opset):
        return f"the operator has no {half.name.upper()} form at operator set {opset}"
    return ""


def supports(node: NodeProto, tensors: Tensors, half: Half, opset: int) -> bool:
    """Tell whether ONNX allows a node the half type on every float32 input and output that it has."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}
    ends = [*_formal(node.input, schema.inputs), *_formal(node.output, schema.outputs)]
    return all(half.onnx_name in allowed.get(formal.type_str, ()) for name, formal in ends if name in tensors.floats)


def _formal(
    names: Iterable[str], formals: Sequence[onnx.defs.OpSchema.FormalParameter]
) -> Iterator[tuple[str, onnx.defs.OpSchema.FormalParameter]]:
    for index, name in enumerate(names):
        yield name, formals[min(index, len(formals) - 1)]  # the last may stand for any number


def _grow_back(nodes: list[NodeProto], tensors: Tensors, kept: dict[str, str]) -> None:
    """Take in what stands between an activation function and the tensor it is applied to, which is read more than once."""
    for node in reversed(nodes):
        readers = [reader for name in node.output for reader in tensors.readers.get(name, ())]
        if node.name in kept or node.op_type not in _ELEMENT_WISE or len(readers) != 1:
            continue
        if kept.get(readers[0].name) == "activation function":
            kept[node.name] = kept[readers[0].name]


def _grow(nodes: list[NodeProto], tensors: Tensors, kept: dict[str, str]) -> None:
    """Take in element-wise nodes that read results of FP32 nodes, and else only what FP32 nodes read anyway."""
    entries = {name for node in nodes if node.name in kept for name in tensors.float_inputs(node)}
    for node in nodes:
        if node.name in kept or node.op_type not in _ELEMENT_WISE:
            continue
        reasons = [kept[tensors.producers[name].name] for name in tensors.float_inputs(node) if _made_in(name, tensors, kept)]
        others = [name for name in tensors.float_inputs(node) if not _made_in(name, tensors, kept)]
        if reasons and entries.issuperset(others):
            kept[node.name] = reasons[0]
            entries.update(tensors.float_inputs(node))


def _made_in(name: str, tensors: Tensors, kept: dict[str, str]) -> bool:
    return name in tensors.producers and tensors.producers[name].name in kept


def _fill(nodes: list[NodeProto], tensors: Tensors, kept: dict[str, str]) -> None:
    """Take in nodes that only move or combine FP32 values for FP32 readers: two Casts less each."""
    filled = {
        node.name for node in nodes if node.op_type in _ELEMENT_WISE | _SHAPING and node.name not in kept and tensors.float_inputs(node)
    }
    before = -1
    while len(filled) != before:
        before = len(filled)
        inside = filled | kept.keys()
        filled = {node.name for node in nodes if node.name in filled and _enclosed(node, tensors, inside)}
    kept.update(dict.fromkeys(filled, "between FP32 nodes"))


def _enclosed(node: NodeProto, tensors: Tensors, inside: set[str]) -> bool:
    made = all(name not in tensors.producers or tensors.producers[name].name in inside for name in tensors.float_inputs(node))
    return made and all(reader.name in inside for name in node.output for reader in tensors.readers.get(name, ()))


def _out_of_range(nodes: list[NodeProto], tensors: Tensors, half: Half, kept: dict[str, str]) -> None:
    """Keep element-wise nodes with a constant that half cannot hold, where every reader of the result is FP32."""
    for node in nodes:
        bad = [
            name for name in node.input if name in tensors.constants and name in tensors.floats and not half.holds(tensors.constants[name])
        ]
        readers = [reader for name in node.output for reader in tensors.readers.get(name, ())]
        if bad and node.name not in kept and node.op_type in _ELEMENT_WISE and readers and all(reader.name in kept for reader in readers):
            kept[node.name] = f"a constant outside the range of {half.name.upper()}"
