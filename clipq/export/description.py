"""``engine.json``: what an engine is and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipq.artifact import EngineEntry
from clipq.engines.onnxruntime.options import session_entries
from clipq.export.stages import Facts, Stages
from clipq.files import sha256_json, write_json


def description_name(engine_id: str) -> str:
    """Return the name in the bundle of an engine's description."""
    return f"engines/{engine_id}/engine.json"


def write_description(folder: Path, stages: Stages, engine_id: str, entry: EngineEntry, said: Mapping[str, Any]) -> None:
    """Write an engine's description as a stage of the export.

    Args:
        folder: The bundle.
        stages: Records what is made.
        engine_id: The engine.
        entry: Its entry of the manifest.
        said: What its makers said: ``graphs``, ``work``, ``asked``, ``plans``.
    """
    name = description_name(engine_id)
    values = {
        "engine": engine_id,
        "runtime": entry.runtime,
        "provider": entry.provider,
        "precision": entry.precision,
        "towers": dict(entry.towers),
        "graphs_of_plans": dict(entry.graphs),
        "quantized": list(entry.quantized),
        **({"simulated": True} if entry.simulated else {}),
        **({"session": entries} if (entries := session_entries(entry)) else {}),
        **said,
    }
    files = {**entry.graphs, **{f"{tower} that runs": file for tower, file in entry.towers.items()}}
    made_from = sha256_json({tower: stages.files[file].sha256 for tower, file in files.items()})

    def write() -> Facts:
        write_json(folder / name, values)
        return {}

    stages.run(name, [name], made_from, write)
