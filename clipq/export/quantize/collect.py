"""One pass of calibration images through the FP32 graph: a histogram per tensor, nothing else is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from clipq.errors import DataError, ExportError
from clipq.export.quantize.graph import open_on_cpu, save_graph
from clipq.export.quantize.histogram import Histogram
from clipq.export.quantize.padding import Padding, counted

CHUNK = 8  # images per run: the activations of 8 images are all that is ever held


def write_observed(model: ModelProto, tensors: Iterable[str], path: Path) -> None:
    """Write the graph with the given tensors as its only outputs; ``model`` itself ends as it was."""
    results = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    save_graph(model, path)
    del model.graph.output[:]
    model.graph.output.extend(results)


def collect(graph: Path, batches: Iterable[npt.NDArray[Any]], padding: Padding) -> tuple[dict[str, Histogram], int]:
    """Return the histogram of each output of ``graph`` over all images, and the number of images.

    Images are regrouped into runs of ``CHUNK``, so the result does not depend on the size of the batches. Of texts only the tokens count
    that an embedding depends on.

    Raises:
        DataError: There are no images.
        ExportError: A tensor holds NaN or infinity.
    """
    session = open_on_cpu(graph)
    name = session.get_inputs()[0].name
    histograms = {output.name: Histogram() for output in session.get_outputs()}
    images = 0
    for chunk in regroup(batches):
        read = padding.read(chunk)
        for (tensor, histogram), values in zip(histograms.items(), session.run(None, {name: chunk}), strict=True):
            _add(histogram, tensor, counted(values, read), images)
        images += len(chunk)
    if not images:
        raise DataError("no calibration images", found=0, expected="at least 1", fix="Name a data set with --calib.")
    return histograms, images


def _add(histogram: Histogram, tensor: str, values: npt.NDArray[np.float32], images: int) -> None:
    try:
        histogram.add(values)
    except ValueError as error:
        where = f"calibration images {images} to {images + CHUNK - 1}"
        raise ExportError(f"NaN or infinity in {tensor}", found=where, fix="Check the checkpoint and the images.") from error


def regroup(batches: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Yield the same images in runs of ``CHUNK``, the last one shorter."""
    held: npt.NDArray[Any] | None = None
    for batch in batches:
        held = batch if held is None else np.concatenate([held, batch])
        while len(held) >= CHUNK:
            yield held[:CHUNK]
            held = held[CHUNK:]
    if held is not None and len(held):
        yield held
