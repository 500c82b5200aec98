"""Static INT8 with calibrated ranges: the one QDQ graph that ONNX Runtime, TensorRT and OpenVINO all take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.export.quantize.bias import correct_biases
from clipq.export.quantize.facts import facts, label, sizes
from clipq.export.quantize.graph import publish, save_graph, scratch_folder
from clipq.export.quantize.observe import Observed, observe, quantized_tensors
from clipq.export.quantize.portable import assert_qdq_portable
from clipq.export.quantize.qdq import Form, quantized_model
from clipq.export.quantize.ranges import clip_of
from clipq.export.quantize.rounding import Inputs, round_layers
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.selection import Selection, select
from clipq.export.quantize.weights import LARGEST, scale_of
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


def write_scheme(  # noqa: PLR0913 - the last three are named
    observed: Observed,
    target: Path,
    scheme: Scheme,
    *,
    mha: AttentionPrecision = "fp16",
    keep: Mapping[str, str] = NOTHING,
    inputs: Inputs | None = None,
) -> dict[str, Any]:
    """Write ``target``, the statically quantized form of an observed tower, and return facts for ``engine.json``.

    Args:
        observed: What one pass of calibration saw; it stays as it is.
        target: Where the QDQ graph goes; written whole or not at all.
        scheme: Bits, ranges, rounding.
        mha: ``int8`` puts Q/DQ on both inputs of both products of attention too.
        keep: Nodes that stay unquantized, each with its reason.
        inputs: Gives the calibration inputs anew, for schemes that need a second pass over them.

    Raises:
        UsageError: A name in ``keep`` is no MatMul, Gemm or Conv of the tower.
        ExportError: Nothing is left to quantize, attention is asked for and was not observed, or a second pass is needed and cannot be had.
    """
    selection = select(observed, keep, attention=mha == "int8")
    limit = scheme.bits.activation_limit
    clips = {**clips_of(observed, selection, scheme.ranges, limit), **scheme.learned.clips}
    results = result_clips(observed, selection, scheme) if scheme.bits.simulated else {}
    scales = {name: scale_of(clip, limit) for name, clip in clips.items()}
    with scratch_folder(target) as folder:
        rounded = round_layers(observed, selection, scheme, scales, inputs=inputs, scratch=folder)
        form = Form("int8", np.int8, lambda layer: rounded.weights[layer.name], limit)
        model = quantized_model(observed, selection, form, scales, {**scales, **{name: scale_of(clip) for name, clip in results.items()}})
        correct_biases(model, rounded.mean_errors)
        said = {**scheme.to_json(), "images": observed.images, "mha": mha}
        label(model, observed.source_sha256, scheme=scheme.words, **said)
        save_graph(model, folder / target.name)
        del model
        assert_qdq_portable(folder / target.name)
        publish(folder / target.name, target)
    ranges = {name: {"largest": largest_of(observed, name), "clip": clip} for name, clip in {**results, **clips}.items()}
    counted = {**facts(scheme.words, "int8", selection.operators, selection.fp32), **sizes(observed.source_bytes, target)}
    return {**counted, **said, "ranges": ranges}


def clips_of(observed: Observed, selection: Selection, method: str, limit: int = LARGEST) -> dict[str, float]:
    """Return the clip of each tensor that gets Q/DQ; probabilities have 1, whatever the method, because they cannot be larger."""
    names = dict.fromkeys([*quantized_tensors(selection.layers), *(name for product in selection.products for name in product.inputs)])
    return {name: clip_of(observed.histograms[name], method, limit) if name in observed.histograms else 1.0 for name in names}


def result_clips(observed: Observed, selection: Selection, scheme: Scheme) -> dict[str, float]:
    """Return the clip of each convolution's result for the readers that do not quantize it: 8 bits, whatever those of the scheme."""
    names = [layer.result for layer in selection.layers if layer.operator == "Conv"]
    learned = scheme.learned.clips
    return {name: learned[name] if name in learned else clip_of(observed.histograms[name], scheme.ranges) for name in names}


def largest_of(observed: Observed, name: str) -> float:
    """Return the largest absolute value of a tensor over all images; 1 for probabilities."""
    return observed.histograms[name].largest if name in observed.histograms else 1.0
