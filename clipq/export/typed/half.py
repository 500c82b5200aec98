"""An FP32 or QDQ graph as a strongly typed FP16 or BF16 graph."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, helper

from clipq import __version__
from clipq.errors import ExportError
from clipq.export.quantize.graph import graph_bytes, load_graph, publish, save_graph, scratch_folder
from clipq.export.typed.casts import insert_casts
from clipq.export.typed.numbers import HALVES, Half, HalfName
from clipq.export.typed.opset import NEWEST, opset_of, upgrade
from clipq.export.typed.precision import computes, keep_fp32, supports
from clipq.export.typed.scales import round_scales
from clipq.export.typed.tensors import Tensors, prepare
from clipq.files import sha256_file

METADATA_KEY = "clipq.precision"
QDQ_OPSET = 19  # the first whose QuantizeLinear and DequantizeLinear work in FP16 and BF16


def to_half(source: Path, target: Path, dtype: HalfName) -> dict[str, Any]:
    """Write ``target``, the graph ``source`` computed in a half type, and return facts for ``engine.json``.

    Inputs and outputs keep their types. Weights are stored in half; ``precision.py`` says which nodes stay FP32, with FP32 weights.
    An FP32 graph stays at its operator set (17: TensorRT 8.6 reads it), with two exceptions: Q/DQ in half needs 19, and BF16
    convolutions behind the first need 22. Q/DQ keep their INT8 or FP8 type and zero points; their scales are rounded to half.
    Names of nodes stay; Casts are added, those from float32 to float32 and copies of constants go.

    Args:
        source: FP32 graph, or one with Q/DQ around FP32 operators.
        target: Where the typed graph goes; written whole or not at all.
        dtype: ``fp16`` or ``bf16``.

    Returns:
        ``precision``, ``opset``, ``nodes`` (how many float nodes compute in half and in FP32, and how many Casts), ``counts`` (FP32
        nodes by reason), ``fp32`` (reason by node), ``weights`` (see ``casts.Typed``), ``quantization`` (see ``round_scales``),
        ``source_bytes``, ``target_bytes``.

    Raises:
        ExportError: The source is unreadable, a constant does not fit the half type, an operator is unknown, or a node holds a graph.
    """
    half = HALVES[dtype]
    model = load_graph(source)
    tensors = prepare(model, source)
    upgrade(model, _opset_for(model, tensors, half))
    quantization = round_scales(model, half)
    kept = keep_fp32(model, tensors, half)
    computing = [node for node in model.graph.node if computes(node, tensors)]
    made = insert_casts(model, tensors, kept, half)
    _label(model, source, half)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        _check(folder / target.name, source)
        publish(folder / target.name, target)
    return {
        "precision": dtype,
        "opset": opset_of(model),
        "nodes": {dtype: len(computing) - len(kept), "fp32": len(kept), "casts": made.casts},
        "counts": dict(Counter(kept.values())),
        "fp32": kept,
        "weights": made.weights,
        "quantization": quantization,
        "source_bytes": graph_bytes(source),
        "target_bytes": graph_bytes(target),
    }


def _opset_for(model: ModelProto, tensors: Tensors, half: Half) -> int:
    """Return the operator set the typed graph needs: 22 if a BF16 operator wants it, 19 for Q/DQ, or the one it has."""
    version = max([opset_of(model)] + [QDQ_OPSET for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}])
    inputs = {value.name for value in model.graph.input}
    inner = [node for node in model.graph.node if computes(node, tensors) and set(tensors.float_inputs(node)) - inputs]
    late = [node for node in inner if not supports(node, tensors, half, version) and supports(node, tensors, half, NEWEST)]
    return NEWEST if late else version


def _label(model: ModelProto, source: Path, half: Half) -> None:
    """Write the precision and the source's hash into the metadata, beside what stands there."""
    model.producer_name, model.producer_version = "clipq", __version__
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept[METADATA_KEY] = json.dumps({"dtype": half.name, "source_sha256": sha256_file(source)}, sort_keys=True)
    helper.set_model_props(model, kept)


def _check(path: Path, source: Path) -> None:
    """Let ONNX's own checker tell that no operator reads two types or one that it does not take."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the typed graph of {source} is not valid ONNX", found=error, fix="Report this as a bug of the export."
        ) from error
