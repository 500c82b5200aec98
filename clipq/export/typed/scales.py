"""Quantization scales that a half type holds exactly, with the integers that belong to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.export.quantize.graph import constants
from clipq.export.typed.numbers import Half


def round_scales(model: ModelProto, half: Half) -> dict[str, int]:
    """Round every constant scale to the half type, still stored as float32, and fit constant integers to the rounded scale.

    A scale of full precision moves by at most 2**-11 (FP16) and its integers stay as they are. A smaller one, of a channel whose
    weights are nearly zero, may move far; then the integers move too, so that their product stays the nearest. No scale becomes 0.

    Returns:
        How many scale values there are (``scales``), how many have less than full precision (``subnormal_scales``), and how many
        weight integers changed (``changed_integers``).
    """
    fixed = constants(model)
    grids = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and node.input[1] in fixed]
    before = {node.input[1]: numpy_helper.to_array(fixed[node.input[1]]) for node in grids}
    after = {name: _round(scale, half) for name, scale in before.items()}
    changed = 0
    for integers, node in {node.input[0]: node for node in grids if node.input[0] in fixed}.items():
        tensor = fixed[integers]
        ratio = _beside(before[node.input[1]].astype(np.float64) / after[node.input[1]], len(tensor.dims), node)
        changed += _multiply(tensor, ratio)
    for name, scale in after.items():
        fixed[name].CopyFrom(numpy_helper.from_array(scale, fixed[name].name))
    values = np.concatenate([np.ravel(scale) for scale in after.values()]) if after else np.ones(0)
    return {"scales": values.size, "subnormal_scales": int((values < half.normal).sum()), "changed_integers": changed}


def _round(scale: npt.NDArray[Any], half: Half) -> npt.NDArray[np.float32]:
    """Return float32 scales that the half type holds; one that is too large stays, to be refused by its name."""
    near = half.rounded(scale).astype(np.float32)
    return np.where((scale > 0) & np.isfinite(near), np.maximum(near, np.float32(half.smallest)), scale).astype(np.float32)


def _beside(ratio: npt.NDArray[np.float64], dimensions: int, node: NodeProto) -> npt.NDArray[np.float64]:
    """Return one ratio per channel in the shape that multiplies the weight."""
    if ratio.ndim != 1 or ratio.size == 1:
        return ratio.reshape(())
    axis = next((int(helper.get_attribute_value(attribute)) for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [1] * dimensions
    shape[axis] = -1
    return ratio.reshape(shape)


def _multiply(tensor: TensorProto, ratio: npt.NDArray[np.float64]) -> int:
    """Multiply a quantized weight in place, in its own type, and return how many of its values changed."""
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.INT8:
        found = np.clip(np.rint(values * ratio), -127, 127).astype(np.int8)
    else:
        wide = values.astype(np.float32)
        found = np.clip(wide * ratio, -np.abs(wide).max(initial=0), np.abs(wide).max(initial=0)).astype(np.float32).astype(values.dtype)
    changed = int((found != values).sum())
    if changed:
        tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))
    return changed
