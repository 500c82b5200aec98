"""From one operator set to a newer one by hand: names, metadata and large weights stay as they are.

onnx.version_converter goes through an in-memory copy that ends at 2 GiB, and few operators of a tower changed at all. Of those that
did between 17 and 22, Split and the reductions are written differently; the others gained types or optional attributes, and mean
what they meant. Any other changed operator is refused.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from clipq.errors import ExportError
from clipq.export.quantize.graph import add_initializer

NEWEST = 22  # the first whose convolutions and pools take bfloat16

_REDUCTIONS = {
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
}
_MEAN_THE_SAME = {
    *("Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LpNormalization"),
    *("Cast", "CastLike", "Constant", "ConstantOfShape", "DequantizeLinear", "QuantizeLinear", "Equal", "Identity", "Shape", "Size"),
    *("Elu", "HardSigmoid", "HardSwish", "Softplus", "Flatten", "Pad", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"),
}


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's own operator set that a graph uses."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)


def upgrade(model: ModelProto, version: int) -> None:
    """Rewrite a graph for operator set ``version``; a graph that has it, or a newer one, stays.

    Raises:
        ExportError: An operator changed in a way that is not known here.
    """
    before = opset_of(model)
    if before >= version:
        return
    for node in model.graph.node:
        if node.domain in {"", "ai.onnx"} and _since(node, before) != _since(node, version):
            _convert(model, node, before, version)
    for entry in model.opset_import:
        if entry.domain in {"", "ai.onnx"}:
            entry.version = version
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import))


def _since(node: NodeProto, version: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, version).since_version)
    except onnx.defs.SchemaError:
        return 0


def _convert(model: ModelProto, node: NodeProto, before: int, version: int) -> None:
    if node.op_type == "Split":
        if len(node.input) < 2:
            node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
    elif node.op_type in _REDUCTIONS:
        _axes_as_input(model, node)
    elif node.op_type not in _MEAN_THE_SAME:
        raise ExportError(
            f"{node.name} ({node.op_type}) cannot be taken from operator set {before} to {version}",
            expected="an operator that means the same",
        )


def _axes_as_input(model: ModelProto, node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "axes":
            node.input.append(add_initializer(model, f"{node.name}.axes", np.asarray(attribute.ints, np.int64)))
            node.attribute.remove(attribute)
            return
