"""How each engine of a bundle is made: its graphs, its plans where it needs any, and the ``engine.json`` that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.artifact import EngineEntry
from clipq.engines.base import Tower
from clipq.engines.table import ENGINES, Kind
from clipq.export.description import write_description
from clipq.export.graphs import GraphMaker, graph_name
from clipq.export.plans import PlanMaker
from clipq.export.stages import Stages
from clipq.export.work import asked_of, work_of
from clipq.recipe import Recipe

TOWERS: tuple[Tower, ...] = ("image", "text")
QUANTIZED = frozenset({"int8", "fp8", "int8-weights", "int4-weights"})  # the other precisions only round


@dataclass(frozen=True, slots=True)
class EngineBuilder:
    """Makes the engines of one export.

    Attributes:
        recipe: What was asked.
        folder: The bundle.
        stages: Records what is made.
        graphs: Makes the graphs.
        plans: Builds the plans; None leaves them to the target.
    """

    recipe: Recipe
    folder: Path
    stages: Stages
    graphs: GraphMaker
    plans: PlanMaker | None

    def build(self, engine_id: str) -> EngineEntry:
        """Make one engine and its ``engine.json``; return its entry of the manifest."""
        kind = ENGINES[engine_id]
        if kind.runtime == "torch":
            entry, said = EngineEntry(kind.runtime, kind.provider, kind.precision), dict[str, Any]()
        else:
            entry, said = self._make(engine_id, kind)
        write_description(self.folder, self.stages, engine_id, entry, said)
        return entry

    def _make(self, engine_id: str, kind: Kind) -> tuple[EngineEntry, dict[str, Any]]:
        kinds = {tower: kind.graph if tower in self.recipe.towers else "fp32" for tower in TOWERS}
        known = {name: facts for tower, graph in kinds.items() for name, facts in self.graphs.make(tower, graph).items()}
        graphs = {str(tower): graph_name(tower, graph) for tower, graph in kinds.items()}
        quantized = tuple(tower for tower in TOWERS if tower in self.recipe.towers) if kind.precision in QUANTIZED else ()
        said: dict[str, Any] = {"graphs": known, **self._work(graphs)}
        entry = EngineEntry(kind.runtime, kind.provider, kind.precision, graphs, quantized, simulated=kind.simulated)
        if not kind.planned:
            return entry, said
        plans: dict[str, str] = {}
        if self.plans is not None:
            plans, said["plans"] = self.plans.make(engine_id, kind, graphs)
        return EngineEntry(kind.runtime, kind.provider, kind.precision, plans, quantized, graphs), said

    def _work(self, graphs: Mapping[str, str]) -> dict[str, Any]:
        """Return the multiply-adds of each node, and of each precision that the graph asks for, per tower."""
        paths = {tower: self.folder / name for tower, name in graphs.items()}
        return {
            "work": {tower: work_of(path) for tower, path in paths.items()},
            "asked": {tower: asked_of(path) for tower, path in paths.items()},
        }
