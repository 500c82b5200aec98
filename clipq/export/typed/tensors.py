"""What flows where in a graph: who makes a tensor, who reads it, which ones are float32, and which values are constant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import constants, replace_nodes

_SMALL = 1024  # elements; shapes, axes and split sizes are smaller, and shape inference reads no other values


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a prepared graph.

    Attributes:
        floats: Names of all float32 tensors, constants too.
        constants: Constant tensors by name.
        producers: The node that makes a tensor.
        readers: The nodes that read a tensor, one entry for each reading; the graph's output is read by nobody.
        outputs: Names of the graph's outputs.
    """

    floats: frozenset[str]
    constants: dict[str, TensorProto]
    producers: dict[str, NodeProto] = field(repr=False)
    readers: dict[str, list[NodeProto]] = field(repr=False)
    outputs: frozenset[str]

    def float_inputs(self, node: NodeProto) -> list[str]:
        """Return the float32 tensors that a node reads and that another node or the caller makes."""
        return [name for name in node.input if name in self.floats and name not in self.constants]

    def float_outputs(self, node: NodeProto) -> list[str]:
        """Return the float32 tensors that a node makes."""
        return [name for name in node.output if name in self.floats]


def prepare(model: ModelProto, source: Path) -> Tensors:
    """Make float constants initializers, take out copies and Casts from float32 to float32, and return the tensors.

    Raises:
        ExportError: A node holds a graph of its own, or the type of a tensor cannot be told.
    """
    for node in model.graph.node:
        if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
            raise ExportError(f"{node.name} in {source} holds a graph of its own", found=node.op_type, expected="plain operators")
    types = element_types(model, source)
    _unfold(model, types)
    floats = frozenset(name for name, kind in types.items() if kind == TensorProto.FLOAT)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Tensors(
        floats,
        {name: tensor for name, tensor in constants(model).items() if name in types},
        {name: node for node in model.graph.node for name in node.output},
        readers,
        frozenset(output.name for output in model.graph.output),
    )


def element_types(model: ModelProto, source: Path) -> dict[str, int]:
    """Return the ONNX element type of every tensor, inferred without touching large weights.

    Raises:
        ExportError: Shape inference fails, or leaves a tensor without a type.
    """
    graph = model.graph
    small = [tensor for tensor in graph.initializer if _elements(tensor) <= _SMALL]
    large = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if _elements(tensor) > _SMALL
    ]
    skeleton = helper.make_graph(graph.node, graph.name, [*graph.input, *large], graph.output, small)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            helper.make_model(skeleton, opset_imports=model.opset_import, ir_version=model.ir_version), data_prop=True
        ).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"cannot tell the types in {source}", found=error, fix="Export it again.") from error
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.input, *inferred.value_info, *inferred.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ExportError(f"cannot tell the type of {unknown[0]} in {source}", fix="Export it again.")
    return types


def _elements(tensor: TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size


def _unfold(model: ModelProto, types: dict[str, int]) -> None:
    same: dict[str, str] = {}
    kept = list(_without_copies(model, types, same))
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
    replace_nodes(model, kept)


def _without_copies(model: ModelProto, types: dict[str, int], same: dict[str, str]) -> Iterable[NodeProto]:
    outputs = {output.name for output in model.graph.output}
    for node in model.graph.node:
        if node.op_type == "Constant" and types[node.output[0]] == TensorProto.FLOAT and node.attribute[0].name == "value":
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        elif _copies(node, types) and node.output[0] not in outputs:
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            yield node


def _copies(node: NodeProto, types: dict[str, int]) -> bool:
    """Tell whether a node hands its input on as it is: an Identity, or a Cast to the type that it has already."""
    return node.op_type in {"Identity", "Cast"} and types.get(node.input[0]) == types[node.output[0]]
