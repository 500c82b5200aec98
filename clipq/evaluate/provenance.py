"""What ran: facts of engines and towers by hash, and everything needed to judge or repeat a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any

from clipq import __version__
from clipq.artifact import PLAN_SUFFIX, Bundle, FileEntry, describe_file
from clipq.engines.base import Tower
from clipq.engines.onnxruntime.options import session_entries
from clipq.engines.table import PLANNED
from clipq.engines.tensorrt.adapter import load_api
from clipq.engines.tensorrt.device import require_device
from clipq.errors import MissingRuntimeError, missing_extra
from clipq.machine import describe_machine, library_versions, now

_DISTRIBUTIONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "export"),
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
}  # runtime -> distributions that may bring it, and the extra that does
ON_CPU = ("cpu", "CPUExecutionProvider")


def runtime_version(runtime: str) -> str:
    """Return the version of a runtime: as it is installed, or as the library says that runs plans (JetPack installs it without pip).

    Raises:
        MissingRuntimeError: It is not installed.
    """
    if runtime in PLANNED:
        return load_api(runtime).version
    names, extra = _DISTRIBUTIONS[runtime]
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise missing_extra(runtime, extra)


def engine_files(bundle: Bundle, engine_id: str) -> dict[str, str]:
    """Return file name -> SHA-256 of everything an engine is: its towers with their external data; empty for torch."""
    return {file: entry.sha256 for file, entry in _engine_entries(bundle, engine_id).items()}


def engine_bytes(bundle: Bundle, engine_id: str) -> int | None:
    """Return the size of an engine's files together, or None for the engine that ships no file of its own."""
    entries = _engine_entries(bundle, engine_id)
    return sum(entry.size_bytes for entry in entries.values()) if entries else None


def tower_facts(bundle: Bundle, engine_id: str, tower: Tower) -> dict[str, Any]:
    """Return what decides the values a tower computes: its files or checkpoint by hash, runtime, version and options, and its GPU.

    Raises:
        MissingRuntimeError: The runtime is not installed.
    """
    entry = bundle.engine(engine_id)
    name = entry.towers.get(tower)
    weights = None if name is None else sorted(file.sha256 for file in _tower_entries(bundle, name).values())
    facts = {
        "tower": tower,
        "weights": weights or bundle.manifest.model.state_sha256,
        "runtime": entry.runtime,
        "version": runtime_version(entry.runtime),
        "provider": entry.provider,
        **({"session": session_entries(entry)} if tower in entry.quantized and session_entries(entry) else {}),
    }
    return facts if entry.provider in ON_CPU else {**facts, "device": require_device().name}


def describe_engine(bundle: Bundle, engine_id: str) -> dict[str, Any]:
    """Return the entry of ``report["engines"]``."""
    entry = bundle.engine(engine_id)
    return {
        "sha256": engine_files(bundle, engine_id),
        "runtime": entry.runtime,
        "provider": entry.provider,
        "precision": entry.precision,
        "size_bytes": engine_bytes(bundle, engine_id),
        "quantized": list(entry.quantized),
        **({"simulated": True} if entry.simulated else {}),
    }


def describe_run(bundle: Bundle) -> dict[str, Any]:
    """Return what ``report["provenance"]`` says of the tool, the model, the machine and the libraries."""
    model = bundle.manifest.model
    return {
        "created": now(),
        "clipq": __version__,
        "command": [PurePosixPath(sys.argv[0]).name, *sys.argv[1:]],
        "model": {
            "id": model.id,
            "state_sha256": model.state_sha256,
            "embed_dim": model.embed_dim,
            "logit_scale": model.logit_scale,
            "logit_bias": model.logit_bias,
            "random_weights": model.id.endswith(":random"),
        },
        "recipe": dict(bundle.manifest.recipe),
        "recipe_sha256": bundle.manifest.recipe_sha256,
        "versions": library_versions(),
        "device": {**describe_machine(), **_gpu(bundle)},
    }


def _gpu(bundle: Bundle) -> dict[str, Any]:
    """Return the GPU's facts where the bundle has engines for one and it is here; a run on the CPU alone does not start the driver."""
    if all(entry.provider in ON_CPU for entry in bundle.manifest.engines.values()):
        return {}
    try:
        return {"gpu": require_device().to_json()}
    except MissingRuntimeError:
        return {}


def _engine_entries(bundle: Bundle, engine_id: str) -> dict[str, FileEntry]:
    names = bundle.engine(engine_id).towers.values()
    return {file: entry for name in names for file, entry in _tower_entries(bundle, name).items()}


def _tower_entries(bundle: Bundle, name: str) -> dict[str, FileEntry]:
    """Return a tower's file and its external data as they ran: a plan that need not have the manifest's hash is hashed anew."""
    if bundle.trust_plans and name.endswith(PLAN_SUFFIX):
        return {name: describe_file(bundle.folder, name)}
    return {file: entry for file, entry in bundle.manifest.files.items() if file == name or file.startswith(f"{name}.data")}
