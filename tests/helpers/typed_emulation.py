"""A second implementation of half arithmetic: every half node computes in FP32 and rounds each of its results to the half type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def emulate(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the output of a typed graph as tensor cores make it: products summed in FP32, results rounded to nearest even."""
    model = onnx.load(str(path))
    half_tensors = _half_tensors(model)
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = [made for node in model.graph.node for made in _rounded(node, half_tensors)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # or the rounding is optimized away
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return output


def _half_tensors(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    return {name: kind for name, kind in types.items() if kind in _HALVES}


def _rounded(node: NodeProto, half_tensors: dict[str, int]) -> list[NodeProto]:
    made = [node]
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
            attribute.i = TensorProto.FLOAT
    for index, name in enumerate(node.output):
        if name in half_tensors:
            node.output[index] = f"{name}.exact"
            made.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.narrow"], to=half_tensors[name]))
            made.append(helper.make_node("Cast", [f"{name}.narrow"], [name], to=TensorProto.FLOAT))
    return made
