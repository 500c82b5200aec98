"""The gate between PyTorch and an exported graph: what does not match is deleted, not shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.engines.base import Float32
from clipq.engines.closeness import BATCH_SIZES, FIGURES, MAX_RELATIVE_ERROR, beyond, compare_outputs, export_limits, golden_blocks
from clipq.engines.onnxruntime.options import session_options
from clipq.errors import ExportError, missing_extra

MEASURED_ROWS = sum(BATCH_SIZES)


def check_parity(path: Path, inputs: npt.NDArray[Any], expected: Float32, patches: Float32 | None = None) -> dict[str, Any]:
    """Return how far a graph is from PyTorch on ONNX Runtime's CPU provider, at batch sizes 1 and 5; delete the file if too far.

    Args:
        path: The graph, with one input.
        inputs: ``(n, ...)``, n at least 6.
        expected: PyTorch's float32 outputs ``(n, d)``.
        patches: PyTorch's patch tokens ``(n, patches, d)``, of a graph that has them as its second output.

    Returns:
        ``max_abs_error`` (largest difference of one number), ``max_abs_output`` (largest output of PyTorch, its scale),
        ``min_cosine`` and ``min_centred_cosine`` (over the rows; centred on the mean of ``expected``); ``patches``: the same four of
        the patch tokens, where there are any.

    Raises:
        ExportError: The graph does not load, does not take these batch sizes, or its outputs differ by more than the limits.
    """
    try:
        figures = measure(path, inputs, expected, patches)
        _gate(path, figures)
        if "patches" in figures:
            _gate(path, figures["patches"], "the patch tokens of ")
    except ExportError:
        _delete(path)
        raise
    return figures


def measure(path: Path, inputs: npt.NDArray[Any], expected: Float32, patches: Float32 | None = None) -> dict[str, Any]:
    """Return the figures of ``check_parity`` without its limits: a quantized graph may be as far away as it is, but must run.

    Raises:
        ExportError: The graph does not load, does not take these batch sizes, or gives NaN or infinity.
    """
    found = _run(path, inputs)
    if not all(np.isfinite(output).all() for output in found):
        raise ExportError(f"{path.name} gives NaN or infinity", fix="Export it with another precision or calibration method.")
    return compare_towers(path, found, expected, patches)


def compare_towers(path: Path, found: Sequence[Float32], expected: Float32, patches: Float32 | None) -> dict[str, Any]:
    """Return the figures of ``check_parity`` for all outputs of a graph, of as many rows as ``found`` has; they must be finite.

    Raises:
        ExportError: Patch tokens are expected and there is no second output, or one of another shape.
    """
    rows = len(found[0])
    figures: dict[str, Any] = {**compare_outputs(found[0], expected[:rows])}
    if patches is not None:
        if len(found) < 2 or found[1].shape != patches[:rows].shape:
            shapes = [output.shape for output in found]
            raise ExportError(f"{path.name} lost its patch tokens", found=f"outputs {shapes}", expected=patches[:rows].shape)
        figures["patches"] = compare_outputs(found[1].reshape(-1, patches.shape[-1]), patches[:rows].reshape(-1, patches.shape[-1]))
    return figures


def _gate(path: Path, figures: dict[str, Any], what: str = "") -> None:
    limits = export_limits(figures["max_abs_output"])
    for name in beyond(figures, limits):
        numbers = ", ".join(f"{key} {figures[key]:.6g}" for key in FIGURES)
        expected = f"{MAX_RELATIVE_ERROR} of max_abs_output" if name == "max_abs_error" else f"at least {limits[name]}"
        raise ExportError(f"{what}{path.name} does not match PyTorch and was deleted", found=numbers, expected=f"{name} {expected}")


def _run(path: Path, inputs: npt.NDArray[Any]) -> list[Float32]:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "cpu") from error
    try:
        session = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: inputs[rows]}) for rows in golden_blocks(MEASURED_ROWS)]
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        first = str(error).strip().splitlines()[:1]
        raise ExportError(f"ONNX Runtime cannot run {path.name}", found=" ".join(first)) from error
    return [np.concatenate(blocks) for blocks in zip(*found, strict=True)]


def _delete(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)
