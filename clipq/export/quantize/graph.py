"""Reading, cleaning and writing ONNX graphs, with a sibling data file where they are too large for one."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from clipq.engines.onnxruntime.options import session_options
from clipq.errors import ExportError
from clipq.machine import usable_cores

EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf ends at 2 GiB; above this the weights go into a file beside the graph


def load_graph(path: Path) -> ModelProto:
    """Read a graph with its weights; every node gets a name.

    Raises:
        ExportError: The file is missing or is no ONNX graph.
    """
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf, onnx and the file system each raise their own kinds
        raise ExportError(f"cannot read the graph {path}", found=error, fix="Export it again.") from error
    if not (model.graph.node and model.graph.input and model.graph.output):
        raise ExportError(f"{path} is an empty graph", fix="Export it again.")
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return every constant tensor by name: initializers, Constant nodes, and Identity copies of either."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def add_initializer(model: ModelProto, name: str, value: npt.NDArray[Any]) -> str:
    """Store an array as an initializer and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
    return name


def replace_nodes(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Give the graph these nodes, without those whose results nobody reads and without unread initializers."""
    needed = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(list(nodes)):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_reads(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    for index in range(len(model.graph.initializer) - 1, -1, -1):  # one by one: assigning those that stay would copy them
        if model.graph.initializer[index].name not in needed:
            del model.graph.initializer[index]


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a graph; above ``EXTERNAL_DATA_BYTES`` its weights go into ``<name>.data`` beside it."""
    if sum(_bytes(tensor) for tensor in model.graph.initializer) <= EXTERNAL_DATA_BYTES:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")
    load_external_data_for_model(model, str(path.parent))  # writing took the weights out of the model


def _bytes(tensor: TensorProto) -> int:
    return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def open_on_cpu(
    path: Path, *, threads: int | None = None, optimised: bool = True, quantized_kernels: bool = True, exact_products: bool = True
) -> onnxruntime.InferenceSession:
    """Open a graph on ONNX Runtime's CPU provider.

    Args:
        path: The graph.
        threads: Of one inference, sleeping between operators; None means every core this process may use, for itself alone.
        optimised: Let ONNX Runtime rewrite the graph; Casts that round are then optimized away.
        quantized_kernels: Let it put integer kernels in the place of Q/DQ around FP32 operators.
        exact_products: As engines run; without it, integer kernels saturate on x86 processors without VNNI (``EXACT_PRODUCTS``).

    Raises:
        ExportError: ONNX Runtime refuses the graph.
    """
    options = session_options(threads or usable_cores(), exact_products=exact_products)
    if threads:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not quantized_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class per status code, with no common base but Exception
        raise ExportError(f"ONNX Runtime refuses {path}", found=error, fix="Report this as a bug of the export.") from error


def graph_bytes(path: Path) -> int:
    """Return the size in bytes of a graph with its data file."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``, on the same file system; it is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        yield Path(folder)


def publish(written: Path, target: Path) -> None:
    """Move a graph written under its final name to its place; the graph comes last, so a reader never sees it without its data."""
    target.with_name(f"{target.name}.data").unlink(missing_ok=True)
    for file in sorted(written.parent.glob(f"{written.name}*"), key=lambda file: file == written):
        file.replace(target.with_name(file.name))
