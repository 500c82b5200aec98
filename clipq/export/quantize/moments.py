"""A second pass of the calibration images: means and second moments of what each layer reads, as it is and on its grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import ExportError
from clipq.export.quantize.collect import regroup, write_observed
from clipq.export.quantize.graph import load_graph, open_on_cpu
from clipq.export.quantize.layers import Layer, split_gemms
from clipq.export.quantize.padding import Mask, counted, padding_of
from clipq.export.quantize.weights import LARGEST

Float64 = npt.NDArray[np.float64]


@dataclass(slots=True)
class Moments:
    """Moments of one tensor over all images and positions.

    Attributes:
        total: Sum of the vectors ``(channels,)``.
        total_rounded: Sum of the vectors on their grid.
        gram: Sum of outer products of the vectors on their grid ``(channels, channels)``; None where nobody asked.
        count: Vectors seen.
    """

    total: Float64
    total_rounded: Float64
    gram: Float64 | None
    count: int = 0

    @classmethod
    def empty(cls, channels: int, *, second: bool) -> Moments:
        """Return moments of nothing yet; ``second`` asks for outer products too."""
        return cls(np.zeros(channels), np.zeros(channels), np.zeros((channels, channels)) if second else None)

    def add(self, vectors: npt.NDArray[np.float32], scale: np.float32, limit: int) -> None:
        """Add vectors ``(n, channels)`` whose grid has this step and this largest integer."""
        rounded = on_grid(vectors, scale, limit)
        self.count += len(vectors)
        self.total += vectors.sum(axis=0, dtype=np.float64)
        self.total_rounded += rounded.sum(axis=0, dtype=np.float64)
        if self.gram is not None:
            self.gram += rounded.T @ rounded

    @property
    def mean(self) -> Float64:
        """Mean vector ``(channels,)``."""
        return self.total / self.count

    @property
    def mean_rounded(self) -> Float64:
        """Mean vector on the grid."""
        return self.total_rounded / self.count


def on_grid(values: npt.NDArray[np.float32], scale: np.float32, limit: int) -> npt.NDArray[np.float32]:
    """Return values as the graph's Q/DQ pair gives them: rounded to the step, saturated at ``limit`` steps.

    At 8 bits no Clip stands before Q, so that the least integer is -128.
    """
    rounded: npt.NDArray[np.float32] = np.rint(values / scale)
    np.clip(rounded, -limit - 1 if limit == LARGEST else -limit, limit, out=rounded)
    rounded *= scale
    return rounded


def collect_moments(  # noqa: PLR0913 - the last three are named
    source: Path,
    layers: Sequence[Layer],
    batches: Iterable[npt.NDArray[Any]],
    scratch: Path,
    *,
    scales: Mapping[str, npt.NDArray[np.float32]],
    limit: int,
    second: bool,
) -> dict[str, Moments]:
    """Run the calibration images through the FP32 graph ``source`` and return the moments of what each layer reads.

    Of texts only the tokens count that an embedding depends on. Second moments are those of products only: a convolution is rounded to
    the nearest.

    Args:
        source: FP32 graph.
        layers: Whose inputs to watch.
        batches: Inputs of the graph, in batches of any size.
        scratch: An existing folder for a graph of about the source's size, gone afterwards.
        scales: Step of each tensor that a layer reads.
        limit: Largest integer of an activation.
        second: Collect second moments too; they take 8 bytes per pair of channels.

    Raises:
        ExportError: There are no images.
    """
    model = load_graph(source)
    split_gemms(model)
    reads = {layer.activation: layer for layer in layers}
    moments: dict[str, Moments] = {}
    write_observed(model, reads, scratch / "moments.onnx")
    del model
    try:
        session = open_on_cpu(scratch / "moments.onnx")
        name = session.get_inputs()[0].name
        padding = padding_of(source)
        for chunk in regroup(batches):
            read = padding.read(chunk)
            for (tensor, layer), values in zip(reads.items(), session.run(list(reads), {name: chunk}), strict=True):
                vectors = _vectors(layer, values, read)
                if tensor not in moments:
                    moments[tensor] = Moments.empty(vectors.shape[1], second=second and layer.operator != "Conv")
                moments[tensor].add(vectors, np.float32(scales[tensor]), limit)
    finally:
        for file in scratch.glob("moments.onnx*"):
            file.unlink()
    if not moments:
        raise ExportError("no calibration images for a second pass", found=0, expected="at least 1", fix="Name a data set with --calib.")
    return moments


def _vectors(layer: Layer, values: npt.NDArray[np.float32], read: Mask | None) -> npt.NDArray[np.float32]:
    """Return an activation as rows of channels, those of the tokens that are read."""
    if layer.operator == "Conv":
        values = np.moveaxis(values, 1, -1)
    return np.ascontiguousarray(counted(values, read).reshape(-1, values.shape[-1]))
