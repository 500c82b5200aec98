"""Weights alone in 8 or 4 bits, activations FP32: a blockwise DequantizeLinear in front of each product.

ONNX Runtime makes one MatMulNBits of the two, which reads the small weights and computes in FP32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper

from clipq.export.quantize.facts import facts, label, sizes
from clipq.export.quantize.graph import (
    add_initializer,
    graph_bytes,
    load_graph,
    open_on_cpu,
    publish,
    replace_nodes,
    save_graph,
    scratch_folder,
)
from clipq.export.quantize.hqq import Blocks, round_blocks
from clipq.export.quantize.layers import choose_layers, split_gemms
from clipq.export.typed.opset import upgrade
from clipq.files import sha256_file
from clipq.methods import Bits

BLOCK = 32  # inputs per scale and zero point
OPSET = 21  # the first with blocks and 4-bit integers in DequantizeLinear
NO_CONVOLUTION = "convolution: ONNX Runtime has no product of packed weights for it"
_TYPES: dict[int, npt.DTypeLike] = {8: np.uint8, 4: ml_dtypes.uint4}


def write_weight_only(source: Path, target: Path, method: str, bits: Bits) -> dict[str, Any]:
    """Write ``target``, the FP32 graph ``source`` with the weights of its linear layers in blocks, and return facts for ``engine.json``.

    Convolutions, the embedding of tokens and the final projection stay FP32.

    Args:
        source: FP32 graph.
        target: Where the graph goes, operator set 21; written whole or not at all.
        method: ``rtn`` (to the nearest) or ``hqq`` (zero points and scales by half-quadratic optimisation).
        bits: W8A32 or W4A32.

    Raises:
        ExportError: The source is unreadable, has nothing to quantize, or has NaN or infinity in its weights.
    """
    model = load_graph(source)
    split_gemms(model)
    layers, kept = choose_layers(model, source, skip={"Conv": NO_CONVOLUTION})
    by_name = {layer.name: layer for layer in layers}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name in by_name:
            made = round_blocks(by_name[node.name].weight, bits.weights, BLOCK, optimised=method == "hqq")
            nodes.append(_dequantize(model, node.name, made, _TYPES[bits.weights]))
            node.input[1] = nodes[-1].output[0]
        nodes.append(node)
    replace_nodes(model, nodes)
    upgrade(model, OPSET)
    scheme = f"{bits}: UINT{bits.weights} weights in blocks of {BLOCK} inputs, each with a scale and a zero point; the rest FP32"
    label(model, sha256_file(source), scheme=scheme, method=method, bits=str(bits))
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        del model
        open_on_cpu(folder / target.name)
        publish(folder / target.name, target)
    quantized = {layer.name: layer.operator for layer in layers}
    said = {**facts(scheme, f"int{bits.weights}-weights", quantized, kept), **sizes(graph_bytes(source), target)}
    return {**said, "bits": str(bits), "method": method, "block": BLOCK}


def _dequantize(model: ModelProto, name: str, made: Blocks, dtype: npt.DTypeLike) -> NodeProto:
    inputs = [
        add_initializer(model, f"{name}.weight.packed", made.integers.astype(dtype)),
        add_initializer(model, f"{name}.weight.scale", made.scales),
        add_initializer(model, f"{name}.weight.zero_point", made.zeros.astype(dtype)),
    ]
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}.weight.dequantized"], name=f"{name}.weight.dequantize", axis=0, block_size=BLOCK
    )
