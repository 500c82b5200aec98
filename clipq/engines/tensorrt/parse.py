"""From an ONNX graph to TensorRT's network, or to one line that names the nodes that it refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.engines.tensorrt.adapter import Api
from clipq.engines.tensorrt.log import FAILURES, Line, last_failure, one_line
from clipq.errors import ExportError

_NEWEST_OPSET_8 = 17
_OPSET = re.compile(r"Opset version:\s*(\d+)")
# TensorRT only warns of unsigned zero points and then reads the values as signed ones: half of their range is cut off.
_UNSIGNED = re.compile(r"UINT8 zero_point")
_QUANTIZATION = re.compile(r"QuantizeLinear|DequantizeLinear|MatMulInteger|ConvInteger|QLinear|MatMulNBits")
_TYPES = {"fp16": "HALF", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}  # as TensorRT names them


@dataclass(frozen=True, slots=True)
class RefusedNode:
    """A node that TensorRT cannot take: its name in the graph, its operator, and TensorRT's reason."""

    name: str
    operator: str
    reason: str

    def __str__(self) -> str:
        operator = f" ({self.operator})" if self.operator else ""
        return f"{self.name or 'the graph'}{operator}: {self.reason}"


class GraphRefusedError(ExportError):
    """TensorRT refused a graph.

    Attributes:
        nodes: Every refused node; the message names the first three.
    """

    def __init__(self, what: str, nodes: Sequence[RefusedNode], fix: str) -> None:
        more = f" (and {len(nodes) - 3} more, see the build log)" if len(nodes) > 3 else ""
        super().__init__(what, found="; ".join(str(node) for node in nodes[:3]) + more, fix=fix)
        self.nodes = tuple(nodes)


def parse(api: Api, builder: Any, graph: Path, lines: Sequence[Line]) -> Any:
    """Return the network of a graph; weights that lie beside the graph in files of their own are found.

    Args:
        api: The library.
        builder: Its builder.
        graph: The ONNX file.
        lines: The library's messages, growing while it parses.

    Raises:
        ExportError: The file is missing or no graph, or its opset is too new.
        GraphRefusedError: TensorRT refused nodes.
    """
    if not graph.is_file():
        raise ExportError(f"{graph} is missing", fix="Export the bundle again.")
    network = api.create_network(builder)
    parser = api.library.OnnxParser(network, api.logger)
    accepted = parser.parse_from_file(str(graph))
    _check_opset(api, graph, lines)
    refused = [_refused(parser.get_error(index), lines) for index in range(parser.num_errors)]
    refused += [RefusedNode(line.node, "", one_line(line.text)) for line in lines if _UNSIGNED.search(line.text)]
    if refused:
        raise GraphRefusedError(f"{api.title} refused {graph}", refused, _fix(refused))
    if not accepted or network.num_inputs == 0 or network.num_outputs == 0:
        raise ExportError(f"{api.title} reads no graph in {graph}", found=last_failure(lines), fix="Copy the file again, or export again.")
    return network


def drop_other_outputs(network: Any, name: str) -> list[str]:
    """Leave a network of several outputs the one of this name, and return the names of the others: what makes only them is not built."""
    if network.num_outputs == 1:
        return []
    others = [tensor for tensor in (network.get_output(index) for index in range(network.num_outputs)) if tensor.name != name]
    for tensor in others:
        network.unmark_output(tensor)
    return [str(tensor.name) for tensor in others]


def check_types(api: Api, network: Any, graph: Path, precision: str) -> None:
    """Check that a graph is typed as its precision says, so that no plan is silently something else.

    Raises:
        ExportError: Nothing in the graph has the precision's type, or an FP32 graph is not FP32.
    """
    found = {str(layer.get_output(0).dtype.name) for layer in layers(network)}
    if not api.strongly_typed and any(layer.type.name == "QUANTIZE" for layer in layers(network)):
        found.add("INT8")
    wrong = found.intersection(_TYPES.values()) if precision == "fp32" else {_TYPES[precision]} - found
    if wrong:
        raise ExportError(
            f"{graph} is not an {precision} graph", found=f"types {', '.join(sorted(found))}", fix="Build from the graph of this precision."
        )


def layers(network: Any) -> Iterable[Any]:
    """Return the layers of a network that have a result."""
    every = (network.get_layer(index) for index in range(network.num_layers))
    return (layer for layer in every if layer.num_outputs and layer.get_output(0) is not None)


def _check_opset(api: Api, graph: Path, lines: Sequence[Line]) -> None:
    opset = next((int(found[1]) for line in lines if (found := _OPSET.search(line.text))), None)
    if opset is not None and opset > _NEWEST_OPSET_8 and not api.strongly_typed:
        raise ExportError(
            f"{api.title} cannot read {graph}",
            found=f"opset {opset}",
            expected=f"at most {_NEWEST_OPSET_8}",
            fix="Build from the fp32, fp16 or int8 graph of the same bundle.",
        )


def _refused(error: Any, lines: Sequence[Line]) -> RefusedNode:
    """Return what the parser says of a node; 8.6 has no names in its errors, there the log tells which node it was at."""
    failures = [line for line in lines if line.severity in FAILURES]
    if hasattr(error, "node_name"):
        name, operator = error.node_name(), error.node_operator()
    else:
        at = [line.node for line in failures if line.node]
        name, operator = at[-1] if at else "", ""
    reason = one_line(error.desc())
    if reason == "false":  # all that is said of an operator that is not there
        reason = "no such operator in TensorRT"
    if not name and failures:  # not of a node but of the file: the first thing that went wrong says more than what followed from it
        reason = one_line(failures[0].text)
    return RefusedNode(name, operator, reason)


def _fix(refused: Sequence[RefusedNode]) -> str:
    if any(_QUANTIZATION.search(f"{node.operator} {node.reason}") or "zero" in node.reason for node in refused):
        return (
            "TensorRT takes signed values with zero points of 0, and no quantized bias: "
            "make the graph again with clipq-export MODEL -o DIR --engines trt-int8 --calib DATA."
        )
    return "Export the graph again."
