"""Gives every node the type it computes in: constants are converted, and a Cast stands where float32 meets half."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.export.quantize.graph import replace_nodes
from clipq.export.typed.numbers import Half
from clipq.export.typed.precision import READS_ANY
from clipq.export.typed.tensors import Tensors


@dataclass(slots=True)
class Typed:
    """What became of a graph.

    Attributes:
        casts: How many Casts were added.
        weights: Facts of the constants stored in half: ``values``, ``largest`` (magnitude) and ``largest_name``, ``flushed`` (not zero
            before, zero now) and ``subnormal`` (less than full precision).
    """

    casts: int = 0
    weights: dict[str, Any] = field(default_factory=lambda: {"values": 0, "largest": 0.0, "largest_name": "", "flushed": 0, "subnormal": 0})


def insert_casts(model: ModelProto, tensors: Tensors, kept: Mapping[str, str], half: Half) -> Typed:
    """Type a prepared graph: nodes in ``kept`` compute in float32, all other float nodes in half; outputs keep their types.

    Raises:
        ExportError: A constant does not fit the half type.
    """
    work = _Casts(model, tensors, kept, half)
    nodes = [made for node in model.graph.node for made in work.typed(node)]
    nodes += [made for output in model.graph.output for made in work.output(output.name, nodes)]
    del model.graph.value_info[:]
    replace_nodes(model, nodes)
    return work.result


class _Casts:
    """One pass over the nodes in order; knows the type of every float tensor made so far."""

    def __init__(self, model: ModelProto, tensors: Tensors, kept: Mapping[str, str], half: Half) -> None:
        self.model, self.tensors, self.kept, self.half = model, tensors, kept, half
        self.types = {value.name: int(TensorProto.FLOAT) for value in model.graph.input}
        self.copies: dict[tuple[str, int], str] = {}
        self.result = Typed()

    def typed(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield a node with its inputs in its type, after the Casts that it needs and nobody before it did."""
        if node.op_type in READS_ANY:
            self.types |= dict.fromkeys(node.output, int(TensorProto.FLOAT))
            yield node
            return
        wanted = int(TensorProto.FLOAT) if node.name in self.kept else self.half.onnx_type
        for index, name in enumerate(node.input):
            if name in self.tensors.floats:
                yield from self._convert(name, wanted)
                node.input[index] = self.copies.get((name, wanted), name)
        self.types |= dict.fromkeys(node.output, wanted)
        yield node

    def output(self, name: str, nodes: list[NodeProto]) -> Iterator[NodeProto]:
        """Yield the Cast that gives a graph output its float32 name back."""
        if name not in self.tensors.floats or self.types[name] == TensorProto.FLOAT:
            return
        inner = f"{name}.{self.half.name}"
        for node in nodes:
            for ends in (node.input, node.output):
                ends[:] = [inner if end == name else end for end in ends]
        self.result.casts += 1
        yield helper.make_node("Cast", [inner], [name], name=f"{name}.cast", to=TensorProto.FLOAT)

    def _convert(self, name: str, wanted: int) -> Iterator[NodeProto]:
        """Make the copy of a float tensor in the type ``wanted``, unless it has that type or the copy exists."""
        constant = self.tensors.constants.get(name)
        have = int(TensorProto.FLOAT) if constant is not None else self.types[name]
        if have == wanted or (name, wanted) in self.copies:
            return
        copy = f"{name}.{self.half.name if wanted == self.half.onnx_type else 'fp32'}"
        self.copies[name, wanted] = copy
        if constant is None:
            self.result.casts += 1
            yield helper.make_node("Cast", [name], [copy], name=f"{copy}.cast", to=wanted)
        else:
            self.model.graph.initializer.append(self.half.tensor(constant, copy))
            self._count(constant)

    def _count(self, constant: TensorProto) -> None:
        values = numpy_helper.to_array(constant)
        found = np.abs(self.half.rounded(values).astype(np.float32))
        facts = self.result.weights
        facts["values"] += values.size
        if found.max(initial=0) > facts["largest"]:
            facts["largest"], facts["largest_name"] = float(found.max()), constant.name
        facts["flushed"] += int(((found == 0) & (values != 0)).sum())
        facts["subnormal"] += int(((found > 0) & (found < self.half.normal)).sum())
