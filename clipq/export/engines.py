"""How each engine of a bundle is made: which towers are quantized, by what, and the ``engine.json`` that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.artifact import EngineEntry
from clipq.engines.base import Tower
from clipq.errors import ExportError
from clipq.export.calibration import Calibration
from clipq.export.golden import Golden
from clipq.export.parity import measure
from clipq.export.quantize.dynamic import quantize_dynamic
from clipq.export.quantize.static import quantize_static
from clipq.export.stages import Facts, Stages
from clipq.files import sha256_json, write_json
from clipq.recipe import Recipe

STATIC, DYNAMIC = "ort-int8-static", "ort-int8-dynamic"
TOWERS: tuple[Tower, ...] = ("image", "text")
CPU = "CPUExecutionProvider"


def tower_name(tower: Tower) -> str:
    """Return the name in the bundle of a tower's FP32 graph.

    >>> tower_name("image")
    'towers/image.fp32.onnx'
    """
    return f"towers/{tower}.fp32.onnx"


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """Makes the engines of one export.

    Attributes:
        recipe: What was asked.
        folder: The bundle.
        stages: Records what is made.
        golden: Inputs and PyTorch's outputs to measure each quantized tower with.
        calibration: Images for static quantization, None when no engine needs any.
        calibration_digest: Which images they are.
    """

    recipe: Recipe
    folder: Path
    stages: Stages
    golden: Golden
    calibration: Calibration | None
    calibration_digest: str

    def build(self, engine_id: str) -> EngineEntry:
        """Make one engine and its ``engine.json``; return its entry of the manifest."""
        entry, facts = self._entry(engine_id)
        name = f"engines/{engine_id}/engine.json"
        values = {
            "engine": engine_id,
            "runtime": entry.runtime,
            "provider": entry.provider,
            "precision": entry.precision,
            "towers": dict(entry.towers),
            "quantized": list(entry.quantized),
            "quantization": {tower: dict(said) for tower, said in facts.items()},
        }
        made_from = sha256_json({tower: self.stages.files[graph].sha256 for tower, graph in entry.towers.items()})
        self.stages.run(name, [name], made_from, lambda: _write(self.folder / name, values))
        return entry

    def _entry(self, engine_id: str) -> tuple[EngineEntry, Mapping[str, Facts]]:
        if engine_id == "torch-fp32":
            return EngineEntry("torch", "cpu", "fp32"), {}
        towers = {str(tower): tower_name(tower) for tower in TOWERS}
        if engine_id == "ort-fp32":
            return EngineEntry("onnxruntime", CPU, "fp32", towers), {}
        quantized = tuple(tower for tower in TOWERS if tower in self.recipe.towers)
        facts: dict[str, Facts] = {tower: self._quantize(engine_id, tower) for tower in quantized}
        towers.update({tower: f"engines/{engine_id}/{tower}.onnx" for tower in quantized})
        return EngineEntry("onnxruntime", CPU, "int8", towers, quantized), facts

    def _quantize(self, engine_id: str, tower: Tower) -> Facts:
        source, name = self.folder / tower_name(tower), f"engines/{engine_id}/{tower}.onnx"

        def make() -> Facts:
            facts = self._run_quantizer(engine_id, tower, source, self.folder / name)
            return {**facts, "parity": measure(self.folder / name, self.golden.inputs(tower), self.golden.outputs(tower))}

        return self.stages.run(name, [name], self.stages.files[tower_name(tower)].sha256, make)

    def _run_quantizer(self, engine_id: str, tower: Tower, source: Path, target: Path) -> dict[str, Any]:
        if engine_id == DYNAMIC:
            return quantize_dynamic(source, target)
        if self.calibration is None:
            raise ExportError(f"{engine_id} needs calibration images", fix="Give them with --calib DATA.")
        return quantize_static(source, target, self.calibration.inputs(tower, self.calibration_digest), self.recipe.calib_method)


def _write(path: Path, values: Mapping[str, Any]) -> Facts:
    write_json(path, values)
    return {}
