"""The two products of attention, and which of them may read quantized values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from clipq.export.quantize.graph import constants

# What may stand between the product of queries and keys and its softmax, and between the softmax and the product with the values.
_BEFORE_SOFTMAX = {"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Sub", "Where"}
_AFTER_SOFTMAX = {"Cast", "Dropout", "Identity", "Reshape"}
UNSAFE = "product of attention whose input something other than a product reads too"


@dataclass(frozen=True, slots=True)
class Product:
    """One product of attention whose inputs may be quantized: nothing but products reads them.

    Attributes:
        name: Name of the MatMul.
        inputs: Queries and transposed keys, or probabilities and values.
        probabilities: Whether the first input comes from a softmax, so that its range is 0 to 1 whatever the images are.
    """

    name: str
    inputs: tuple[str, str]
    probabilities: bool


def find_products(model: ModelProto) -> tuple[list[Product], dict[str, str]]:
    """Return the attention products that may be quantized, in graph order, and why each other one may not.

    Q/DQ will stand directly before a product, so behind the transpose of the keys and the scale of the queries: TensorRT fuses
    attention only where the DQ feeds the MatMul. A tensor that anything but a MatMul reads as well gets none.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fixed = {*constants(model), *(value.name for value in model.graph.output)}
    scores, values = set(_score_products(model)), set(_value_products(model, readers))
    safe, unsafe = [], {}
    for node in model.graph.node:
        if node.name not in scores | values:
            continue
        if any(name in fixed or any(reader.op_type != "MatMul" for reader in readers[name]) for name in node.input):
            unsafe[str(node.name)] = UNSAFE
        else:
            safe.append(Product(str(node.name), (str(node.input[0]), str(node.input[1])), node.name in values))
    return safe, unsafe


def _score_products(model: ModelProto) -> Iterator[str]:
    """Yield the products of two activations whose result reaches a softmax."""
    producers = {name: node for node in model.graph.node for name in node.output}
    fixed = constants(model)
    waiting = [node.input[0] for node in model.graph.node if node.op_type == "Softmax"]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.op_type == "MatMul" and not fixed.keys() & set(node.input):
            yield str(node.name)
        elif node is not None and node.op_type in _BEFORE_SOFTMAX:
            waiting.extend(node.input)


def _value_products(model: ModelProto, readers: Mapping[str, list[NodeProto]]) -> Iterator[str]:
    """Yield the products whose first input is the result of a softmax."""
    fixed = constants(model)
    waiting = [node.output[0] for node in model.graph.node if node.op_type == "Softmax"]
    while waiting:
        name = waiting.pop()
        for node in readers.get(name, ()):
            if node.op_type == "MatMul" and node.input[0] == name and node.input[1] not in fixed:
                yield str(node.name)
            elif node.op_type in _AFTER_SOFTMAX:
                waiting.append(node.output[0])
