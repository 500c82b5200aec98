"""The portable graphs of a bundle, ``towers/<tower>.<kind>.onnx``, each made once from the one it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipq.engines.base import Tower
from clipq.engines.golden import Golden
from clipq.errors import ExportError
from clipq.export.calibration import Calibration
from clipq.export.parity import measure
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.fp8 import write_fp8
from clipq.export.quantize.graph import scratch_folder
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.static import write_int8
from clipq.export.stages import Facts, Stages
from clipq.export.typed.half import to_half
from clipq.export.typed.rounded import measure_rounded
from clipq.recipe import Recipe

# Kind of graph -> the kind it is made from.
PARENTS: Mapping[str, str] = {
    "fp16": "fp32",
    "bf16": "fp32",
    "int8-dynamic": "fp32",
    "int8": "fp32",
    "int8-fp16": "int8",
    "fp8": "fp32",
    "fp8-fp16": "fp8",
}
CALIBRATED = frozenset({"int8", "int8-fp16", "fp8", "fp8-fp16"})
_NOT_ON_CPU = frozenset({"bf16"})  # ONNX Runtime's CPU provider has no products of BF16


def graph_name(tower: str, kind: str) -> str:
    """Return the name in the bundle of a tower's graph.

    >>> graph_name("image", "int8")
    'towers/image.int8.onnx'
    """
    return f"towers/{tower}.{kind}.onnx"


@dataclass
class GraphMaker:
    """Makes the graphs of one export on demand.

    Attributes:
        recipe: What was asked.
        folder: The bundle.
        stages: Records what is made.
        golden: Inputs and PyTorch's outputs to measure each graph with.
        calibration: Images for static quantization, None when no engine needs any.
        calibration_digest: Which images they are.
        keep: Tower to the nodes that stay unquantized, each with its reason.
    """

    recipe: Recipe
    folder: Path
    stages: Stages
    golden: Golden
    calibration: Calibration | None
    calibration_digest: str
    keep: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    _observed: dict[Tower, Observed] = field(default_factory=dict)

    def make(self, tower: Tower, kind: str) -> dict[str, Facts]:
        """Make a graph and what it depends on, unless they are there; return what is known of each by its name, the FP32 one left out.

        Raises:
            ExportError: It cannot be made, or needs calibration images and there are none.
            DataError: The calibration images are unusable.
        """
        if kind == "fp32":
            return {}
        parent = PARENTS[kind]
        known = self.make(tower, parent)
        source, name = graph_name(tower, parent), graph_name(tower, kind)

        def run() -> Facts:
            facts = self._write(tower, kind, self.folder / source, self.folder / name)
            golden = self.golden.inputs(tower), self.golden.outputs(tower), self.golden.patch_tokens(tower)
            if kind.endswith(("fp16", "bf16")):
                facts["parity_rounded"] = measure_rounded(self.folder / name, *golden)
            if kind not in _NOT_ON_CPU:
                facts["parity"] = measure(self.folder / name, *golden)
            return facts

        return {**known, name: self.stages.run(name, [name], self.stages.files[source].sha256, run)}

    def observed(self, tower: Tower) -> Observed:
        """Return what one pass of calibration saw of a tower; the first use runs it.

        Raises:
            ExportError: There are no calibration images.
            DataError: They are unusable.
        """
        if self.calibration is None:
            raise ExportError("static quantization needs calibration images", fix="Give them with --calib DATA.")
        if tower not in self._observed:
            batches = self.calibration.inputs(tower, self.calibration_digest)
            with scratch_folder(self.folder / graph_name(tower, "int8")) as scratch:
                self._observed[tower] = observe(
                    self.folder / graph_name(tower, "fp32"), batches, scratch, attention=self.recipe.mha == "int8"
                )
        return self._observed[tower]

    def _write(self, tower: Tower, kind: str, source: Path, target: Path) -> dict[str, Any]:
        keep = self.keep.get(tower, {})
        if kind == "int8-dynamic":
            return quantize_dynamic(source, target)
        if kind == "int8":
            return write_int8(self.observed(tower), target, self.recipe.calib_method, mha=self.recipe.mha, keep=keep)
        if kind == "fp8":
            return write_fp8(self.observed(tower), target, mha="fp8" if self.recipe.mha == "int8" else "fp16", keep=keep)
        return to_half(source, target, "bf16" if kind == "bf16" else "fp16")
