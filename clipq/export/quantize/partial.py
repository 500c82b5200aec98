"""A quantized graph taken apart again: its weights alone, its activations alone, or both, computed in FP32 on any runtime.

Every graph is first spelled out: half types become FP32 (nothing is rounded that Q/DQ do not round), and an integer product becomes
Q/DQ around an FP32 product. Then constants that a DequantizeLinear reads are weights, and all other pairs are activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import add_initializer, constants, load_graph, publish, replace_nodes, save_graph, scratch_folder
from clipq.export.quantize.layers import split_gemms
from clipq.export.quantize.qdq import CLIP
from clipq.export.typed.rounded import widen

Float32 = npt.NDArray[np.float32]
_QUANTIZE = {"QuantizeLinear", "DynamicQuantizeLinear"}
_DEQUANTIZE = "DequantizeLinear"
_FIX = "Export the bundle again."


def without_activation_quantization(source: Path, target: Path) -> None:
    """Write ``target``: the weights as the quantized graph has them, activations not quantized.

    Raises:
        ExportError: The source is unreadable, holds nothing quantized, or an integer product that cannot be spelled out.
    """
    model = _spelled_out(source)
    _take_out_pairs(model)
    _write(model, target, lambda dequantize, _reader, _index: _dequantized(dequantize, constants(model)))


def without_weight_quantization(source: Path, target: Path, fp32: Path) -> None:
    """Write ``target``: activations quantized as in the graph, with the weights of the FP32 graph.

    Raises:
        ExportError: As above, or the FP32 graph has another weight there, or none.
    """
    model, plain = _spelled_out(source), load_graph(fp32)
    split_gemms(plain)
    fixed, nodes = constants(plain), {str(node.name): node for node in plain.graph.node}

    def weight(dequantize: NodeProto, reader: NodeProto, index: int) -> Float32:
        node = nodes.get(reader.name)
        tensor = fixed.get(node.input[index]) if node is not None and index < len(node.input) else None
        expected = list(constants(model)[dequantize.input[0]].dims)
        if tensor is None or list(tensor.dims) != expected:
            found = "none" if tensor is None else f"one of shape {list(tensor.dims)}"
            raise ExportError(f"{fp32.name} has no such weight for {reader.name}", found=found, expected=f"shape {expected}", fix=_FIX)
        return numpy_helper.to_array(tensor).astype(np.float32, copy=False)

    _write(model, target, weight)


def without_quantization(source: Path, target: Path, fp32: Path) -> None:
    """Write ``target``: the graph without any Q/DQ, with the weights of the FP32 graph; it computes what the FP32 graph does.

    Raises:
        ExportError: As in ``without_weight_quantization``.
    """
    with scratch_folder(target) as folder:
        without_weight_quantization(source, folder / target.name, fp32)
        model = load_graph(folder / target.name)
    _take_out_pairs(model)
    _write(model, target, _no_weight)


def simulated(source: Path, target: Path) -> None:
    """Write ``target``: weights and activations as the quantized graph has them, every product in FP32.

    Raises:
        ExportError: As in ``without_activation_quantization``.
    """
    model = _spelled_out(source)
    _write(model, target, lambda dequantize, _reader, _index: _dequantized(dequantize, constants(model)))


def _no_weight(dequantize: NodeProto, _reader: NodeProto, _index: int) -> Float32:
    raise ExportError(f"{dequantize.name} still reads a quantized weight", fix="Report this as a bug of the attribution.")


def _spelled_out(source: Path) -> ModelProto:
    model = load_graph(source)
    widen(model, source, rounded=False)
    replace_nodes(model, list(_without_integer_products(model, source)))
    if not any(node.op_type == _DEQUANTIZE for node in model.graph.node):
        raise ExportError(f"{source} holds nothing quantized", expected="Q/DQ or integer products around MatMul, Gemm or Conv", fix=_FIX)
    return model


def _without_integer_products(model: ModelProto, source: Path) -> Iterator[NodeProto]:
    """Yield the nodes with MatMulInteger, Cast and Mul as DQ, DQ and MatMul: the same numbers but for the order of the FP32 sums."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fixed, gone = constants(model), set[str]()
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            cast, scaled, scale = _around(node, readers, producers, source)
            gone.update((cast.name, scaled.name))
            yield from _product(node, scaled.output[0], scale, fixed)
        elif node.name not in gone:
            yield node


def _around(
    node: NodeProto, readers: Mapping[str, list[NodeProto]], producers: Mapping[str, NodeProto], source: Path
) -> tuple[NodeProto, NodeProto, tuple[str, str]]:
    """Return the Cast and the last Mul behind an integer product, and the scales of activation and weight."""
    quantize = producers.get(node.input[0])
    cast = _only(readers, node.output[0], "Cast")
    scaled = _only(readers, cast.output[0], "Mul") if cast is not None else None
    if cast is not None and scaled is not None and quantize is not None and quantize.op_type in _QUANTIZE:
        other = next(name for name in scaled.input if name != cast.output[0])
        scales = producers.get(other)
        own = quantize.output[1] if quantize.op_type == "DynamicQuantizeLinear" else quantize.input[1]
        if scales is not None and scales.op_type == "Mul" and own in scales.input:
            return cast, scaled, (own, next(name for name in scales.input if name != own))
    raise ExportError(
        f"the integer product {node.name} of {source} cannot be spelled out", expected="DynamicQuantizeLinear, Cast and Mul", fix=_FIX
    )


def _only(readers: Mapping[str, list[NodeProto]], name: str, operator: str) -> NodeProto | None:
    found = readers.get(name, [])
    return found[0] if len(found) == 1 and found[0].op_type == operator else None


def _product(node: NodeProto, result: str, scales: tuple[str, str], fixed: Mapping[str, TensorProto]) -> list[NodeProto]:
    zeros = [*node.input[2:], "", ""][:2]
    parts = []
    for index, what in enumerate(("activation", "weight")):
        grid = [node.input[index], scales[index], *([zeros[index]] if zeros[index] else [])]
        per_channel = scales[index] in fixed and len(fixed[scales[index]].dims) == 1
        name = f"{node.name}.{what}.spelled"
        parts.append(helper.make_node(_DEQUANTIZE, grid, [name], name=f"{name}.dequantize", axis=1 if per_channel else None))
    return [*parts, helper.make_node("MatMul", [part.output[0] for part in parts], [result], name=node.name)]


def _take_out_pairs(model: ModelProto) -> None:
    """Let every reader of a dequantized activation read the activation itself, without the Clip of fewer than 8 bits."""
    producers = {name: node for node in model.graph.node for name in node.output}
    plain: dict[str, str] = {}
    for node in model.graph.node:
        quantize = producers.get(node.input[0]) if node.op_type == _DEQUANTIZE else None
        if quantize is not None and quantize.op_type in _QUANTIZE:
            clip = producers.get(quantize.input[0])
            own = clip.input[0] if clip is not None and clip.name.endswith(CLIP) else quantize.input[0]
            plain[node.output[0]] = plain.get(own, own)
        for index, name in enumerate(node.input):
            node.input[index] = plain.get(name, name)
    replace_nodes(model, list(model.graph.node))


def _write(model: ModelProto, target: Path, weight: Callable[[NodeProto, NodeProto, int], Float32]) -> None:
    """Write a graph with an FP32 constant in the place of each dequantized one."""
    fixed = constants(model)
    weights = {node.output[0]: node for node in model.graph.node if node.op_type == _DEQUANTIZE and node.input[0] in fixed}
    for node in list(model.graph.node):
        for index, name in enumerate(node.input):
            if name in weights:
                node.input[index] = add_initializer(model, f"{node.name}.{index}.float", weight(weights[name], node, index))
    replace_nodes(model, list(model.graph.node))
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        publish(folder / target.name, target)


def _dequantized(node: NodeProto, fixed: Mapping[str, TensorProto]) -> Float32:
    """Return ``(values - zero point) * scale`` in FP32, as DequantizeLinear defines it."""
    values, scale, *zero = (numpy_helper.to_array(fixed[name]).astype(np.float32) for name in node.input if name)
    attributes: dict[str, Any] = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    shape = [1] * values.ndim
    if scale.ndim == 1 and scale.size > 1:
        shape[attributes.get("axis", 1)] = -1
    offset = zero[0].reshape(shape if zero[0].size > 1 else [1] * values.ndim) if zero else np.float32(0)
    result: Float32 = (values - offset) * scale.reshape(shape)
    return result
