"""How many multiply-adds each node of a portable graph takes, and in which precision the graph asks for them.

Written into ``engine.json`` when an engine is made, so that a device can tell what ran without reading ONNX::

    {"work": {tower: work_of(graph)}, "asked": {tower: asked_of(graph)}}

where ``graph`` is the portable graph of that tower and engine (the one a plan is built from, or that ONNX Runtime runs).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from clipq.errors import ExportError

_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm")
_CONVOLUTIONS = ("Conv", "ConvInteger")
_PRECISIONS: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
}
_QUANTIZED = ("int8", "fp8")
_PACKED: Mapping[int, str] = {TensorProto.UINT8: "int8-weights", TensorProto.UINT4: "int4-weights"}  # weights in blocks
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # what may stand between DequantizeLinear and its reader
_LEFT_ALONE = (*_PRODUCTS, *_CONVOLUTIONS, "QuantizeLinear", "DequantizeLinear")  # never computed as part of a shape
_SHAPE_VALUES = 1024  # constants of up to so many values may be shapes, or part of computing one


def work_of(graph: Path) -> dict[str, int]:
    """Return node name -> multiply-adds of one sample, for every matrix product and convolution, in graph order.

    Raises:
        ExportError: The graph cannot be read, or a shape in it is not known for one sample.
    """
    shaped = _read(graph)
    return {node.name: shaped.multiply_adds(node) for node in shaped.nodes()}


def asked_of(graph: Path) -> dict[str, int]:
    """Return precision -> multiply-adds of one sample.

    ``int8`` and ``fp8`` where both inputs are dequantized, ``int8-weights`` and ``int4-weights`` where the weight alone is, in blocks,
    else the inputs' type.

    Raises:
        ExportError: The graph cannot be read, or a shape in it is not known for one sample.
    """
    shaped = _read(graph)
    asked: Counter[str] = Counter()
    for node in shaped.nodes():
        asked[shaped.precision(node)] += shaped.multiply_adds(node)
    return dict(asked)


@dataclass(frozen=True, slots=True)
class _Shaped:
    """A graph with the shape and type of every tensor for one sample; a dimension nobody knows is None."""

    model: ModelProto
    path: Path
    shapes: Mapping[str, list[int | None]]
    types: Mapping[str, int]
    producers: Mapping[str, NodeProto]

    def nodes(self) -> Iterator[NodeProto]:
        return (node for node in self.model.graph.node if node.op_type in _PRODUCTS + _CONVOLUTIONS)

    def multiply_adds(self, node: NodeProto) -> int:
        """Return the size of the result times the length of the sums behind each of its values."""
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        convolution = node.op_type in _CONVOLUTIONS
        summed = self.shape(node, node.input[1])[1:] if convolution else [self.shape(node, node.input[0])[0 if transposed else -1]]
        return math.prod(self.shape(node, node.output[0])) * math.prod(summed)

    def shape(self, node: NodeProto, tensor: str) -> list[int]:
        """Return a tensor's shape for one sample; a leading dimension without a number is the batch."""
        dims = self.shapes.get(tensor, [None, None])
        known = [1 if size is None and place == 0 else size for place, size in enumerate(dims)]
        if None in known:
            raise ExportError(
                f"cannot tell how much work {node.name} of {self.path} is", found=f"{tensor} of shape {known}", fix="Report this model."
            )
        return [size for size in known if size is not None]

    def precision(self, node: NodeProto) -> str:
        """Return the precision a node asks for; whole weights alone in INT8 are computed with in the type of the activation."""
        stored = {self._stored(name) for name in node.input[:2]}
        if len(stored) == 1 and stored <= set(_QUANTIZED):
            return stored.pop()
        if (packed := self._packed(node.input[1])) is not None:
            return packed
        return _PRECISIONS.get(self.types.get(node.input[0], 0), "unknown")

    def _packed(self, tensor: str) -> str | None:
        """Return the precision of a product with a weight in blocks, or None."""
        producer = self.producers.get(tensor)
        if producer is None or producer.op_type != "DequantizeLinear" or not any(a.name == "block_size" for a in producer.attribute):
            return None
        return _PACKED.get(self.types.get(producer.input[0], 0))

    def _stored(self, tensor: str) -> str:
        """Return the type in which a tensor is stored: that in front of its DequantizeLinear, or its own."""
        producer = self.producers.get(tensor)
        while producer is not None and producer.op_type in _MOVES:
            producer = self.producers.get(producer.input[0])
        if producer is not None and producer.op_type == "DequantizeLinear":
            tensor = producer.input[0]
        return _PRECISIONS.get(self.types.get(tensor, 0), "unknown")


def _read(path: Path) -> _Shaped:
    """Read a graph, once for all engines that share it."""
    state = path.stat() if path.exists() else None
    return _read_once(path, (state.st_mtime_ns, state.st_size, state.st_ino) if state else None)


@functools.lru_cache(maxsize=16)  # without weights a graph is small
def _read_once(path: Path, state: tuple[int, int, int] | None) -> _Shaped:
    del state  # a file that changed is another one
    try:
        model = onnx.load(str(path), load_external_data=False)
        _one_sample(model)
        model = _infer(model)
    except Exception as error:  # protobuf, onnx and the file system each raise their own kinds
        raise ExportError(f"cannot read the graph {path}", found=error, fix="Export it again.") from error
    shapes: dict[str, list[int | None]] = {
        value.name: [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]
        for value in [*_values(model), *model.graph.output]
    }
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.input]}
    for tensor in model.graph.initializer:
        shapes[tensor.name], types[tensor.name] = list(tensor.dims), tensor.data_type
    return _Shaped(model, path, shapes, types, {name: node for node in model.graph.node for name in node.output})


def _one_sample(model: ModelProto) -> None:
    """Set the batch to one, and drop the values of weights: only their shapes matter, and inference is limited to 2 GiB."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in model.graph.initializer:
        if not _is_small(tensor):
            tensor.ClearField("raw_data")


def _infer(model: ModelProto) -> ModelProto:
    """Infer every shape; what computes shapes is computed here, round by round, because inference knows too few operators for it."""
    while True:
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not _compute_shapes(model):
            return model


def _compute_shapes(model: ModelProto) -> bool:
    """Turn every node that depends on known shapes and small constants alone into a constant; return whether there was one."""
    sizes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in _values(model)}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if _is_small(tensor)}
    kept = []
    for node in model.graph.node:
        value = _value(node, known, sizes)
        if value is None or value.size > _SHAPE_VALUES:
            kept.append(node)
        else:
            known[node.output[0]] = value
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    found = len(kept) < len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return found


def _value(node: NodeProto, known: Mapping[str, npt.NDArray[Any]], sizes: Mapping[str, list[int]]) -> npt.NDArray[Any] | None:
    """Return what a node computes where that is known by now."""
    if node.op_type == "Shape" and all(sizes.get(node.input[0], [0])):
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        return np.array(sizes[node.input[0]][ends.get("start", 0) : ends.get("end")], np.int64)
    large = any(not _is_small(attribute.t) or attribute.HasField("g") for attribute in node.attribute)
    left_alone = len(node.output) != 1 or node.op_type in _LEFT_ALONE or large
    if left_alone or not all(name in known for name in node.input if name):
        return None
    (value,) = ReferenceEvaluator(node).run(None, {name: known[name] for name in node.input if name})
    return np.asarray(value)


def _values(model: ModelProto) -> Iterator[ValueInfoProto]:
    """Yield the tensors whose shape is known to some degree."""
    for value in [*model.graph.value_info, *model.graph.input]:
        if value.type.tensor_type.HasField("shape"):
            yield value


def _is_small(tensor: TensorProto) -> bool:
    return math.prod(tensor.dims) <= _SHAPE_VALUES and tensor.data_location != TensorProto.EXTERNAL
