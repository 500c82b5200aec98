"""The integers of every layer as a scheme wants them, and the mean error that they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import ExportError
from clipq.export.quantize.bias import mean_error
from clipq.export.quantize.gptq import gptq
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.moments import Moments, collect_moments
from clipq.export.quantize.observe import Observed
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.selection import Selection
from clipq.export.quantize.weights import LARGEST, mse_scales, quantize_weight, round_weight

Inputs = Callable[[], Iterator[npt.NDArray[Any]]]
Weight = tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Rounded:
    """The quantized weights of a tower.

    Attributes:
        weights: Layer to integers and scales.
        mean_errors: Layer to what quantization adds to its outputs on average; empty unless the scheme corrects biases.
    """

    weights: Mapping[str, Weight]
    mean_errors: Mapping[str, npt.NDArray[np.float64]]


def round_layers(  # noqa: PLR0913 - each is one thing
    observed: Observed,
    selection: Selection,
    scheme: Scheme,
    scales: Mapping[str, npt.NDArray[np.float32]],
    *,
    inputs: Inputs | None,
    scratch: Path,
) -> Rounded:
    """Return the quantized weights of the selected layers; runs the calibration inputs once more where the scheme needs their moments.

    Args:
        observed: The tower.
        selection: What is quantized of it.
        scheme: How.
        scales: Step of each quantized activation.
        inputs: Gives the calibration inputs anew; None where there are none.
        scratch: An existing folder for a graph of about the source's size.

    Raises:
        ExportError: A second pass is needed and there are no inputs.
    """
    moments: dict[str, Moments] = {}
    if scheme.second_pass and selection.layers:
        if inputs is None:
            raise ExportError(f"{scheme.words} needs calibration images", found="none", fix="Give them with --calib DATA.")
        limit, second = scheme.bits.activation_limit, scheme.rounding == "gptq"
        moments = collect_moments(observed.source, selection.layers, inputs(), scratch, scales=scales, limit=limit, second=second)
    weights = {layer.name: weight_of(layer, scheme, moments.get(layer.activation)) for layer in selection.layers}
    if not scheme.corrected:
        return Rounded(weights, {})
    return Rounded(weights, {layer.name: mean_error(layer, *weights[layer.name], moments[layer.activation]) for layer in selection.layers})


def weight_of(layer: Layer, scheme: Scheme, moments: Moments | None = None) -> Weight:
    """Return a layer's integers and scales as a scheme rounds them; convolutions are rounded to the nearest where products are by GPTQ."""
    learned = scheme.learned.weights.get(layer.name)
    if learned is not None:
        return learned
    limit = scheme.bits.weight_limit
    if scheme.rounding == "nearest":
        return layer.int8 if limit == LARGEST else quantize_weight(layer.weight, layer.axis, limit)
    scales = mse_scales(layer.weight, layer.axis, limit)
    if moments is None or moments.gram is None:
        return round_weight(layer.weight, scales, layer.axis, limit), scales
    return gptq(layer.weight, moments.gram, scales, limit), scales
