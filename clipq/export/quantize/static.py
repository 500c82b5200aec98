"""Static INT8 with calibrated ranges: the one QDQ graph that ONNX Runtime, TensorRT and OpenVINO all take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.export.quantize.facts import facts, label, sizes
from clipq.export.quantize.graph import publish, save_graph, scratch_folder
from clipq.export.quantize.observe import Observed, observe, quantized_tensors
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.qdq import Form, quantized_model
from clipq.export.quantize.ranges import clip_of
from clipq.export.quantize.selection import Selection, select
from clipq.export.quantize.weights import scale_of
from clipq.recipe import AttentionPrecision, CalibrationMethod

SCHEME = "W8A8 QDQ: INT8 activations per tensor, INT8 weights per channel, both symmetric; bias FP32"
NOTHING: Mapping[str, str] = MappingProxyType({})
INT8 = Form("int8", np.int8, lambda layer: layer.int8)


def quantize_static(  # noqa: PLR0913 - what observe and write_int8 take
    source: Path,
    target: Path,
    batches: Iterable[npt.NDArray[Any]],
    method: CalibrationMethod,
    *,
    mha: AttentionPrecision = "fp16",
    keep: Mapping[str, str] = NOTHING,
) -> dict[str, Any]:
    """Observe ``source`` and write its statically quantized form: ``observe`` and ``write_int8`` in one."""
    with scratch_folder(target) as folder:
        observed = observe(source, batches, folder, attention=mha == "int8")
    return write_int8(observed, target, method, mha=mha, keep=keep)


def write_int8(
    observed: Observed, target: Path, method: CalibrationMethod, *, mha: AttentionPrecision = "fp16", keep: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """Write ``target``, the statically quantized form of an observed tower, and return facts for ``engine.json``.

    Args:
        observed: What one pass of calibration saw; it stays as it is.
        target: Where the QDQ graph goes; written whole or not at all.
        method: How activation ranges are chosen from the statistics.
        mha: ``int8`` puts Q/DQ on both inputs of both products of attention too.
        keep: Nodes that stay unquantized, each with its reason.

    Raises:
        UsageError: A name in ``keep`` is no MatMul, Gemm or Conv of the tower.
        ExportError: Nothing is left to quantize, or attention is asked for and was not observed.
    """
    selection = select(observed, keep, attention=mha == "int8")
    clips = clips_of(observed, selection, method)
    model = quantized_model(observed, selection, INT8, {name: scale_of(clip) for name, clip in clips.items()})
    label(model, observed.source_sha256, scheme=SCHEME, method=method, images=observed.images, mha=mha)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        del model
        assert_qdq_portable(folder / target.name)
        publish(folder / target.name, target)
    ranges = {name: {"largest": largest_of(observed, name), "clip": clip} for name, clip in clips.items()}
    said = {**facts(SCHEME, "int8", selection.operators, selection.fp32), **sizes(observed.source_bytes, target)}
    return {**said, "method": method, "images": observed.images, "mha": mha, "ranges": ranges}


def clips_of(observed: Observed, selection: Selection, method: str) -> dict[str, float]:
    """Return the clip of each tensor that gets Q/DQ; probabilities have 1, whatever the method, because they cannot be larger."""
    names = dict.fromkeys([*quantized_tensors(selection.layers), *(name for product in selection.products for name in product.inputs)])
    return {name: clip_of(observed.histograms[name], method) if name in observed.histograms else 1.0 for name in names}


def largest_of(observed: Observed, name: str) -> float:
    """Return the largest absolute value of a tensor over all images; 1 for probabilities."""
    return observed.histograms[name].largest if name in observed.histograms else 1.0
