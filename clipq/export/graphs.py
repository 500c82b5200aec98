"""The portable graphs of a bundle, ``towers/<tower>.<kind>.onnx``, each made once from the one it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from clipq.engines.base import Tower
from clipq.engines.golden import Golden
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.engines.torch.patches import PatchTower
from clipq.errors import ExportError
from clipq.export.calibration import Calibration
from clipq.export.onnx import export_tower
from clipq.export.parity import check_parity, measure
from clipq.export.qat.asked import is_trained
from clipq.export.qat.pairs import TrainingData
from clipq.export.qat.write import Task, table_name, write_trained
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.fp8 import write_fp8
from clipq.export.quantize.graph import scratch_folder
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.ptq import scheme_of, source_of
from clipq.export.quantize.static import write_int8, write_scheme
from clipq.export.quantize.weight_only import write_weight_only
from clipq.export.stages import Facts, Stages
from clipq.export.transform.tower import transform_tower
from clipq.export.typed.half import to_half
from clipq.export.typed.rounded import measure_rounded
from clipq.methods import NOTHING, Bits, Method, method_of
from clipq.recipe import Recipe

_PARENTS: Mapping[str, str] = {
    "fp16": "fp32",
    "bf16": "fp32",
    "int8-dynamic": "fp32",
    "int8": "fp32",
    "int8-fp16": "int8",
    "fp8": "fp32",
    "fp8-fp16": "fp8",
}
_CALIBRATED = frozenset({"int8", "int8-fp16", "fp8", "fp8-fp16"})
_HELD = 2  # observed towers in memory at once
_NOT_ON_CPU = frozenset({"bf16"})  # ONNX Runtime's CPU provider has no products of BF16


def parent_of(kind: str) -> str:
    """Return the kind of graph that a kind is made from; empty for the FP32 graph that PyTorch's exporter makes.

    >>> parent_of("int8-fp16"), parent_of("w8a8-gptq-fp16"), parent_of("w8a8-gptq"), parent_of("w8a8-rotation"), parent_of("fp32-rotation")
    ('int8', 'w8a8-gptq', 'fp32', 'fp32-rotation', 'fp32')
    """
    if kind in _PARENTS:
        return _PARENTS[kind]
    if kind.endswith("-fp16"):
        return kind.removesuffix("-fp16")
    named = method_of(f"ort-{kind}")
    return source_of(*named) if named else "fp32"


def needs_images(kind: str) -> bool:
    """Tell whether calibration images (or their captions) are needed to make a kind of graph."""
    named = method_of(f"ort-{kind.removesuffix('-fp16')}")
    return kind in _CALIBRATED or (named is not None and named[0].needs != NOTHING)


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
        checkpoint: The model.
        folder: The bundle.
        stages: Records what is made.
        golden: Inputs and PyTorch's outputs to measure each graph with.
        calibration: Images for static quantization, None when no engine needs any.
        calibration_digest: Which images they are.
        training: Pairs for methods with training, None when no engine needs any.
        training_digest: Which pairs they are.
        keep: Tower to the nodes that stay unquantized, each with its reason.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    folder: Path
    stages: Stages
    golden: Golden
    calibration: Calibration | None
    calibration_digest: str
    training: TrainingData | None = None
    training_digest: str = ""
    keep: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    _observed: dict[tuple[Tower, str], Observed] = field(default_factory=dict)

    def make(self, tower: Tower, kind: str) -> dict[str, Facts]:
        """Make a graph and what it depends on, unless they are there; return what is known of each by its name, the FP32 one left out.

        Raises:
            ExportError: It cannot be made, or needs calibration images and there are none.
            DataError: The calibration images are unusable.
        """
        if kind == "fp32":
            return {}
        parent = parent_of(kind)
        known = self.make(tower, parent)
        source, name = graph_name(tower, parent), graph_name(tower, kind)

        def run() -> Facts:
            facts = self._write(tower, kind, self.folder / source, self.folder / name)
            golden = self.golden.inputs(tower), self.golden.outputs(tower), self.golden.patch_tokens(tower)
            if kind.endswith(("fp16", "bf16")):
                facts["parity_rounded"] = measure_rounded(self.folder / name, *golden)
            if kind not in _NOT_ON_CPU and "parity" not in facts:
                facts["parity"] = measure(self.folder / name, *golden)
            return facts

        names = [name, table_name(name)] if is_trained(kind) else [name]
        return {**known, name: self.stages.run(name, names, self.stages.files[source].sha256, run)}

    def observed(self, tower: Tower, source: str = "fp32") -> Observed:
        """Return what one pass of calibration saw of a tower; the first use runs it.

        Args:
            tower: The tower.
            source: The kind of FP32 graph that the images run through: PyTorch's, or an equal one that is easier to quantize.

        Raises:
            ExportError: There are no calibration images.
            DataError: They are unusable.
        """
        if (tower, source) not in self._observed:
            if len(self._observed) >= _HELD:  # each has the weights of a tower
                del self._observed[next(iter(self._observed))]
            with scratch_folder(self.folder / graph_name(tower, "int8")) as scratch:
                self._observed[tower, source] = observe(
                    self.folder / graph_name(tower, source), self._inputs(tower), scratch, attention=self.recipe.mha == "int8"
                )
        return self._observed[tower, source]

    def _inputs(self, tower: Tower) -> Iterator[npt.NDArray[Any]]:
        if self.calibration is None:
            raise ExportError("static quantization needs calibration images", fix="Give them with --calib DATA.")
        return self.calibration.inputs(tower, self.calibration_digest)

    def _write(self, tower: Tower, kind: str, source: Path, target: Path) -> dict[str, Any]:
        keep = self.keep.get(tower, {})
        named = method_of(f"ort-{kind}")
        if named:
            return self._by_method(tower, *named, target)
        if kind.startswith("fp32-"):
            return self._transformed(tower, kind, target)
        if kind == "int8-dynamic":
            return quantize_dynamic(source, target)
        if kind == "int8":
            return write_int8(self.observed(tower), target, self.recipe.calib_method, mha=self.recipe.mha, keep=keep)
        if kind == "fp8":
            return write_fp8(self.observed(tower), target, mha="fp8" if self.recipe.mha == "int8" else "fp16", keep=keep)
        return to_half(source, target, "bf16" if kind == "bf16" else "fp16")

    def _by_method(self, tower: Tower, method: Method, bits: Bits, target: Path) -> dict[str, Any]:
        """Write the graph of one method at some bits."""
        source = source_of(method, bits)
        if method.family == "weight-only":
            return write_weight_only(self.folder / graph_name(tower, source), target, method.name, bits)
        if method.family == "qat":
            return self._by_training(tower, method, bits, target)
        scheme = scheme_of(method, bits, self.recipe.calib_method)
        keep, inputs = self.keep.get(tower, {}), partial(self._inputs, tower)
        return write_scheme(self.observed(tower, source), target, scheme, mha=self.recipe.mha, keep=keep, inputs=inputs)

    def _by_training(self, tower: Tower, method: Method, bits: Bits, target: Path) -> dict[str, Any]:
        """Train the tower with quantization and write its graph."""
        if self.training is None:
            raise ExportError("training needs images with captions or class names", fix="Name them with --qat-data DATA.")
        kind = source_of(method, bits)
        transformed = kind.removeprefix("fp32-") if kind != "fp32" else ""
        changed = transform_tower(self.checkpoint, tower, transformed, lambda: self._inputs(tower))[0] if transformed else self.checkpoint
        task = Task(
            recipe=self.recipe,
            checkpoint=changed,
            original=self.checkpoint,
            tower=tower,
            method=method,
            bits=bits,
            data=self.training,
            digest=self.training_digest,
            golden=self.golden,
            keep=self.keep.get(tower, {}),
        )
        return write_trained(task, self.folder, target)

    def _transformed(self, tower: Tower, kind: str, target: Path) -> dict[str, Any]:
        """Write an FP32 graph of the same function that is easier to quantize, and hold it against PyTorch's outputs."""
        changed, said = transform_tower(self.checkpoint, tower, kind.removeprefix("fp32-"), lambda: self._inputs(tower))
        patches = PatchTower(changed.model, changed.model_id) if tower == "image" and self.recipe.patch_tokens else None
        export_tower(changed, tower, target, patches)
        golden = self.golden.inputs(tower), self.golden.outputs(tower), self.golden.patch_tokens(tower)
        return {**said, "parity": check_parity(target, *golden)}
