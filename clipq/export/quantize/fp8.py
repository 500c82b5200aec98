"""FP8 (E4M3) with explicit Q/DQ: the graph of the ``fp8`` engines before their other operators become FP16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from clipq.export.quantize.facts import facts, label, sizes
from clipq.export.quantize.graph import publish, save_graph, scratch_folder
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.observe import Observed
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.qdq import Form, quantized_model
from clipq.export.quantize.selection import select
from clipq.export.quantize.static import NOTHING, clips_of, largest_of
from clipq.export.quantize.weights import scale_of
from clipq.export.typed.opset import upgrade

SCHEME = "W8A8 QDQ FP8 E4M3: activations and weights per tensor, saturating; bias FP32"
LARGEST = 448  # of E4M3 in the form without infinities
OPSET = 19  # the first whose QuantizeLinear makes FP8
NO_CONVOLUTION = "convolution: TensorRT-RTX has FP8 for matrix products only, TensorRT none for depthwise convolutions"


def write_fp8(
    observed: Observed, target: Path, *, mha: Literal["fp16", "fp8"] = "fp16", keep: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """Write ``target``, the FP8 form of an observed tower, and return facts for ``engine.json``.

    Activation scales are the largest magnitude over 448, and nothing is clipped: an FP8 number has the same relative precision from
    2**-6 to 448, so a smaller range would save no precision and cost the outliers. What is larger on an image than on all
    calibration images saturates. Weights have one scale per tensor for the same reason, as NVIDIA's own recipes have.

    Args:
        observed: What one pass of calibration saw; it stays as it is.
        target: Where the QDQ graph goes, operator set 19; written whole or not at all.
        mha: ``fp8`` puts Q/DQ on both inputs of both products of attention too; probabilities have the fixed scale 1/448.
        keep: Nodes that stay unquantized, each with its reason.

    Raises:
        UsageError: A name in ``keep`` is no MatMul, Gemm or Conv of the tower.
        ExportError: Nothing is left to quantize, or attention is asked for and was not observed.
    """
    convolutions = {layer.name: NO_CONVOLUTION for layer in observed.layers if layer.operator == "Conv"}
    selection = select(observed, {**convolutions, **keep}, attention=mha == "fp8")
    largest = {name: largest_of(observed, name) for name in clips_of(observed, selection, "minmax")}
    model = quantized_model(observed, selection, FP8, {name: scale_of(value, LARGEST) for name, value in largest.items()})
    upgrade(model, OPSET)
    label(model, observed.source_sha256, scheme=SCHEME, images=observed.images, mha=mha)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        del model
        assert_qdq_portable(folder / target.name, "fp8")
        publish(folder / target.name, target)
    ranges = {name: {"largest": value, "clip": value} for name, value in largest.items()}
    said = {**facts(SCHEME, "fp8", selection.operators, selection.fp32), **sizes(observed.source_bytes, target)}
    return {**said, "method": "minmax", "images": observed.images, "mha": mha, "ranges": ranges}


def quantize_weight_fp8(layer: Layer) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Return a layer's weight in E4M3 and its one scale; nothing saturates."""
    scale = scale_of(np.abs(layer.weight).max(), LARGEST)
    values = np.clip(layer.weight / scale, -LARGEST, LARGEST)  # rounding of the scale may carry the largest past 448
    return values.astype(ml_dtypes.float8_e4m3fn), scale


FP8 = Form("fp8", ml_dtypes.float8_e4m3fn, quantize_weight_fp8)
