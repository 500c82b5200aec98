"""What a typed graph computes where every result is really rounded to its type: ONNX Runtime's CPU provider does not.

That provider has no half kernels for most operators: it computes in FP32 and rounds seldom, so an FP16 graph whose activations
overflow on a GPU looks perfect there. Here each half node computes in FP32 and each of its results is rounded to half, to nearest
even and beyond the range to infinity: what tensor cores do, but for the order of their sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from clipq.engines.base import Float32
from clipq.engines.closeness import BATCH_SIZES
from clipq.engines.onnxruntime.options import session_options
from clipq.errors import ExportError
from clipq.export.parity import compare_towers
from clipq.export.quantize.graph import load_graph, publish, save_graph, scratch_folder
from clipq.export.typed.tensors import element_types
from clipq.machine import usable_cores

_HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def measure_rounded(path: Path, inputs: npt.NDArray[Any], expected: Float32, patches: Float32 | None = None) -> dict[str, Any]:
    """Return the figures of ``parity.measure`` for a typed graph with every result rounded.

    Args:
        path: A typed graph, with one input.
        inputs: ``(n, ...)``; as many are used as ``measure`` uses.
        expected: PyTorch's float32 outputs ``(n, d)``.
        patches: PyTorch's patch tokens ``(n, patches, d)``, of a graph that has them as its second output.

    Raises:
        ExportError: ONNX Runtime cannot run it, or it gives NaN or infinity: its activations overflow.
    """
    rows = sum(BATCH_SIZES)
    found = _outputs(path, inputs[:rows])
    if not all(np.isfinite(output).all() for output in found):
        raise ExportError(
            f"{path.name} gives NaN or infinity where results are rounded", fix="Leave FP16 out for this model; BF16 has the range of FP32."
        )
    return compare_towers(path, found, expected, patches)


def rounded_outputs(path: Path, inputs: npt.NDArray[Any]) -> Float32:
    """Return the first output ``(n, d)`` of a typed graph with every result rounded to the type that the graph gives it.

    Raises:
        ExportError: ONNX Runtime cannot run it.
    """
    return _outputs(path, inputs)[0]


def _outputs(path: Path, inputs: npt.NDArray[Any]) -> list[Float32]:
    model = load_graph(path)
    widen(model, path, rounded=True)
    options = session_options(usable_cores())
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # or the rounding is optimized away
    with scratch_folder(path) as folder:
        save_graph(model, folder / "rounded.onnx")
        try:
            session = onnxruntime.InferenceSession(str(folder / "rounded.onnx"), options, providers=["CPUExecutionProvider"])
            outputs: list[Float32] = session.run(None, {session.get_inputs()[0].name: inputs})
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            first = str(error).strip().splitlines()[:1]
            raise ExportError(f"ONNX Runtime cannot run {path.name} with rounded results", found=" ".join(first)) from error
    return outputs


def write_rounded(source: Path, target: Path) -> None:
    """Write ``target``, the FP32 form of a typed graph with every result rounded; run it without graph optimisations.

    Raises:
        ExportError: The source is unreadable.
    """
    model = load_graph(source)
    widen(model, source, rounded=True)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        publish(folder / target.name, target)


def widen(model: ModelProto, path: Path, *, rounded: bool) -> None:
    """Make a typed graph an FP32 one, with a Cast to half and back behind each half result where it is to be rounded."""
    if not _is_typed(model):
        return
    halves = {name: kind for name, kind in element_types(model, path).items() if kind in _HALVES}
    for tensor in model.graph.initializer:
        if tensor.data_type in _HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = [made for node in model.graph.node for made in _rounded(node, halves if rounded else {})]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_typed(model: ModelProto) -> bool:
    casts = [attribute.i for node in model.graph.node if node.op_type == "Cast" for attribute in node.attribute if attribute.name == "to"]
    return bool(_HALVES.intersection([*casts, *(tensor.data_type for tensor in model.graph.initializer)]))


def _rounded(node: NodeProto, halves: Mapping[str, int]) -> Iterator[NodeProto]:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
            attribute.i = TensorProto.FLOAT
    results = [(index, name) for index, name in enumerate(node.output) if name in halves]
    for index, name in results:
        node.output[index] = f"{name}.exact"
    yield node
    for _, name in results:
        yield helper.make_node("Cast", [f"{name}.exact"], [f"{name}.narrow"], name=f"{name}.round", to=halves[name])
        yield helper.make_node("Cast", [f"{name}.narrow"], [name], name=f"{name}.widen", to=TensorProto.FLOAT)
