"""Static INT8 with calibrated ranges: the one QDQ graph that ONNX Runtime, TensorRT and OpenVINO all take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.recipe import CalibrationMethod


def quantize_static(source: Path, target: Path, batches: Iterable[npt.NDArray[Any]], method: CalibrationMethod) -> dict[str, Any]:
    """Write ``target``, the statically quantized form of the FP32 graph ``source``, and return facts for ``engine.json``.

    Args:
        source: FP32 graph with one input.
        target: Where the QDQ graph goes; written whole or not at all.
        batches: Inputs of the graph, in batches of any size; read once, never held.
        method: How activation ranges are chosen from the statistics.

    Raises:
        ExportError: The source is unreadable, has nothing to quantize, or gives NaN or infinity on a calibration image.
        DataError: There are no calibration images.
    """
    raise NotImplementedError
