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
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.observe import Observed, observe, quantized_tensors
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.qdq import Form, quantized_model
from clipq.export.quantize.ranges import clip_of
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.selection import Selection, select
from clipq.export.quantize.weights import quantize_weight, scale_of
from clipq.recipe import AttentionPrecision, CalibrationMethod

NOTHING: Mapping[str, str] = MappingProxyType({})


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
    """Write the plain W8A8 form of an observed tower: ``write_scheme`` with ranges by ``method`` and nothing else."""
    return write_scheme(observed, target, Scheme(method), mha=mha, keep=keep)


def write_scheme(
    observed: Observed, target: Path, scheme: Scheme, *, mha: AttentionPrecision = "fp16", keep: Mapping[str, str] = NOTHING
) -> dict[str, Any]:
    """Write ``target``, the statically quantized form of an observed tower, and return facts for ``engine.json``.

    Args:
        observed: What one pass of calibration saw; it stays as it is.
        target: Where the QDQ graph goes; written whole or not at all.
        scheme: Bits, ranges, rounding.
        mha: ``int8`` puts Q/DQ on both inputs of both products of attention too.
        keep: Nodes that stay unquantized, each with its reason.

    Raises:
        UsageError: A name in ``keep`` is no MatMul, Gemm or Conv of the tower.
        ExportError: Nothing is left to quantize, or attention is asked for and was not observed.
    """
    selection = select(observed, keep, attention=mha == "int8")
    limit = scheme.bits.activation_limit
    clips = {**clips_of(observed, selection, scheme.ranges), **scheme.learned.clips}
    form = Form("int8", np.int8, lambda layer: weight_of(layer, scheme), limit)
    model = quantized_model(observed, selection, form, {name: scale_of(clip, limit) for name, clip in clips.items()})
    said = {**scheme.to_json(), "images": observed.images, "mha": mha}
    label(model, observed.source_sha256, scheme=scheme.words, **said)
    with scratch_folder(target) as folder:
        save_graph(model, folder / target.name)
        del model
        assert_qdq_portable(folder / target.name)
        publish(folder / target.name, target)
    ranges = {name: {"largest": largest_of(observed, name), "clip": clip} for name, clip in clips.items()}
    counted = {**facts(scheme.words, "int8", selection.operators, selection.fp32), **sizes(observed.source_bytes, target)}
    return {**counted, **said, "ranges": ranges}


def weight_of(layer: Layer, scheme: Scheme) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a layer's integers and scales as a scheme rounds them."""
    learned = scheme.learned.weights.get(layer.name)
    if learned is not None:
        return learned
    return layer.int8 if scheme.bits.weights == 8 else quantize_weight(layer.weight, layer.axis, scheme.bits.weight_limit)


def clips_of(observed: Observed, selection: Selection, method: str) -> dict[str, float]:
    """Return the clip of each tensor that gets Q/DQ; probabilities have 1, whatever the method, because they cannot be larger."""
    names = dict.fromkeys([*quantized_tensors(selection.layers), *(name for product in selection.products for name in product.inputs)])
    return {name: clip_of(observed.histograms[name], method) if name in observed.histograms else 1.0 for name in names}


def largest_of(observed: Observed, name: str) -> float:
    """Return the largest absolute value of a tensor over all images; 1 for probabilities."""
    return observed.histograms[name].largest if name in observed.histograms else 1.0
