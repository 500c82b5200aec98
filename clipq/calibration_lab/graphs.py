"""Makes the quantized image tower of a draw: one pass of calibration serves every form that starts from the same FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.calibration_lab.options import Form
from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.engines.torch.compat import import_open_clip
from clipq.errors import RefusedError
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.ptq import scheme_of, source_of
from clipq.export.quantize.static import write_scheme
from clipq.recipe import AttentionPrecision, CalibrationMethod, Recipe

Inputs = Callable[[], Iterator[npt.NDArray[Any]]]
PLAIN = "fp32"


class Graphs:
    """Writes quantized graphs into a scratch folder, as an export with the bundle's recipe would.

    Args:
        bundle: Its FP32 graph, and which model it is.
        fp32: Path of that graph, its hash checked.
        scratch: For the graphs.
    """

    def __init__(self, bundle: Bundle, fp32: Path, scratch: Path) -> None:
        default, recipe = Recipe(model=""), bundle.manifest.recipe
        self._model, self._fp32, self._scratch = bundle.manifest.model, fp32, scratch
        self.mha = cast("AttentionPrecision", recipe.get("mha", default.mha))
        self.ranges = cast("CalibrationMethod", recipe.get("calib_method", default.calib_method))
        self._checkpoint: Checkpoint | None = None

    def prepare(self, forms: list[Form]) -> None:
        """Load the checkpoint where a form needs it, before any other work.

        Raises:
            MissingRuntimeError: torch or open_clip is not installed.
            UsageError: The checkpoint is not there.
            RefusedError: It is not the model the bundle was made from.
        """
        if any(source_of(form.method, form.bits) != PLAIN for form in forms):
            import_open_clip()
            self._checkpoint = _checked_checkpoint(self._model.id, self._model.state_sha256)

    def observed(self, source: str, inputs: Inputs) -> Observed:
        """Return what the calibration images of a draw show of an FP32 graph: the bundle's, or one of the same function made for them.

        Raises:
            ExportError: The graph cannot be made or has nothing to quantize.
        """
        return observe(self._source(source, inputs), inputs(), self._scratch, attention=self.mha == "int8")

    def write(self, observed: Observed, form: Form) -> Path:
        """Write the quantized graph of one form and return its path; it is overwritten by the next.

        Raises:
            ExportError: It cannot be made.
        """
        target = self._scratch / "image.quantized.onnx"
        write_scheme(observed, target, scheme_of(form.method, form.bits, self.ranges), mha=self.mha)
        return target

    def _source(self, kind: str, inputs: Inputs) -> Path:
        if kind == PLAIN or self._checkpoint is None:
            return self._fp32
        from clipq.export.onnx import export_tower
        from clipq.export.transform.tower import transform_tower

        changed, _ = transform_tower(self._checkpoint, "image", kind.removeprefix(f"{PLAIN}-"), inputs)
        target = self._scratch / f"image.{kind}.onnx"
        export_tower(changed, "image", target)
        return target


def _checked_checkpoint(model_id: str, expected: str) -> Checkpoint:
    checkpoint = load_checkpoint(model_id)
    if checkpoint.state_sha256 != expected:
        raise RefusedError(
            f"{model_id} is not the model this bundle was made from",
            found=f"tensors with sha256 {checkpoint.state_sha256[:16]}…",
            expected=f"{expected[:16]}…",
            fix="Bring the checkpoint back, or export the bundle again.",
        )
    return checkpoint
