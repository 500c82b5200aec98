"""Plans built anew on the target from a bundle's portable graphs: a new bundle that names its parent; needs neither torch nor onnx."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clipq.artifact import MANIFEST, PLAN_SUFFIX, Bundle, EngineEntry, Manifest, write_manifest
from clipq.engines.table import ENGINES, checked_entry
from clipq.engines.tensorrt.build import BuildOptions
from clipq.errors import MissingRuntimeError, RefusedError, UsageError, unknown_name
from clipq.export.description import description_name, write_description
from clipq.export.plans import PlanMaker, require_builder, target_device
from clipq.export.stages import Facts, Stages
from clipq.files import atomic_path, locked, sha256_file
from clipq.machine import describe_code, describe_machine, library_versions
from clipq.progress import bar, note
from clipq.recipe import Recipe

INSTALL = "See clipq doctor."


def rebuild_bundle(parent: Bundle, engine_ids: tuple[str, ...], folder: Path, options: BuildOptions, *, resume: bool = False) -> Bundle:
    """Copy a bundle and build its plans for this device.

    Args:
        parent: The bundle with the portable graphs.
        engine_ids: Which planned engines to build; empty means all of the parent's that can be built here. The others are left out of
            the new bundle.
        folder: A new or empty folder.
        options: Batches and compatibility of the plans.
        resume: Continue what a killed run left.

    Raises:
        UsageError: An engine is not in the bundle or has no plan to build, an option is wrong, or the folder holds something else.
        MissingRuntimeError: The library or the device is not here.
        RefusedError: A file of the parent is not what its manifest says.
        ExportError: The builder refuses a graph.
    """
    Recipe(model="", batch=options.batch, compatibility=options.compatibility)  # raises what an export with these options would
    chosen = _buildable(_chosen(parent, engine_ids), options, must=bool(engine_ids))
    digest = sha256_file(parent.folder / MANIFEST)
    key = {
        "parent": digest,
        "engines": list(chosen),
        "options": _described(options),
        "versions": library_versions(),
        "device": target_device(chosen),
    }
    with locked(folder):
        if (folder / MANIFEST).exists():
            return _finished(folder, digest, chosen, options)
        stages = Stages.open(folder, key, resume=resume)
        _copy(parent, folder, stages)
        plans = PlanMaker(folder, stages, options)
        planned = {engine_id: _build(parent, engine_id, folder, stages, plans) for engine_id in chosen}
        ready = {name: entry for name, entry in parent.manifest.engines.items() if not entry.graphs}
        said = {**parent.manifest.recipe, "rebuilt": {"engines": list(chosen), **_described(options)}}
        write_manifest(folder, replace(_manifest(parent.manifest, {**ready, **planned}, stages, digest), recipe=said))
        stages.close()
        return Bundle.open(folder)


def _chosen(parent: Bundle, engine_ids: tuple[str, ...]) -> tuple[str, ...]:
    planned = [name for name, entry in parent.manifest.engines.items() if entry.graphs]
    if not planned:
        raise UsageError(
            f"{parent.folder} has no engine with a plan to build",
            found=", ".join(parent.manifest.engines),
            fix="Export it with --engines trt-fp16,trt-int8 --graphs-only.",
        )
    for engine_id in engine_ids:
        if engine_id not in planned:
            raise unknown_name("engine with a plan to build", engine_id, planned)
    chosen = tuple(dict.fromkeys(engine_ids or planned))
    for engine_id in chosen:
        if engine_id not in ENGINES or not ENGINES[engine_id].planned:
            raise unknown_name("engine with a plan to build", engine_id, [name for name, kind in ENGINES.items() if kind.planned])
        checked_entry(parent, engine_id)
    return chosen


def _buildable(chosen: tuple[str, ...], options: BuildOptions, *, must: bool) -> tuple[str, ...]:
    """Return the engines that can be built here, telling of each other one why not.

    Raises:
        MissingRuntimeError: None can, or, with ``must``, one cannot.
        UsageError: The library of one has no such option.
    """
    failures = {engine_id: error for engine_id in chosen if (error := _failure(engine_id, options))}
    if failures and (must or len(failures) == len(chosen)):
        raise next(iter(failures.values()))
    for engine_id, error in failures.items():
        note(f"leaving out {engine_id}: {error}")
    return tuple(engine_id for engine_id in chosen if engine_id not in failures)


def _failure(engine_id: str, options: BuildOptions) -> MissingRuntimeError | None:
    try:
        require_builder(engine_id, options, fix=INSTALL)
    except MissingRuntimeError as error:
        return error
    return None


def _described(options: BuildOptions) -> dict[str, Any]:
    return {"batch": list(options.batch), "compatibility": list(options.compatibility), "for": list(options.compute_capabilities)}


def _finished(folder: Path, digest: str, chosen: tuple[str, ...], options: BuildOptions) -> Bundle:
    """Check a finished bundle: made from this parent, with these engines and options, and whole."""
    bundle = Bundle.open(folder)
    engines = {name for name, entry in bundle.manifest.engines.items() if entry.graphs}
    if bundle.manifest.parent_sha256 != digest or engines != set(chosen):
        raise UsageError(f"{folder} holds another bundle", fix="Choose another folder with -o.")
    bundle.verify()
    asked = list(options.batch), list(options.compatibility)
    for engine_id in chosen:
        for plan in json.loads(bundle.file(description_name(engine_id)).read_text())["plans"].values():
            built = [shape[0] for shape in next(iter(plan["profile"].values()))], plan["compatibility"]
            if built != asked:
                raise UsageError(
                    f"{folder} holds plans of other options", found=built, expected=asked, fix="Choose another folder with -o."
                )
    note(f"{folder} is already finished and whole")
    return bundle


def _copy(parent: Bundle, folder: Path, stages: Stages) -> None:
    """Copy every file of the parent but the plans, their logs and the descriptions of planned engines, each checked by hash."""
    left = tuple(f"engines/{name}/" for name, entry in parent.manifest.engines.items() if entry.graphs)
    names = [name for name in parent.manifest.files if not name.startswith(left) and not name.endswith(PLAN_SUFFIX)]
    with bar("Copying the bundle", len(names)) as advance:
        for name in names:
            stages.run(f"copy of {name}", [name], parent.manifest.files[name].parent, partial(_copy_file, parent, name, folder))
            advance(1)


def _copy_file(parent: Bundle, name: str, folder: Path) -> Facts:
    source = parent.file(name)
    with atomic_path(folder / name) as part:
        shutil.copyfile(source, part)
        if sha256_file(part) != parent.manifest.files[name].sha256:
            raise RefusedError(f"{source} changed while it was copied", fix="Run the same command again.")
    return {}


def _build(parent: Bundle, engine_id: str, folder: Path, stages: Stages, plans: PlanMaker) -> EngineEntry:
    entry, kept = parent.engine(engine_id), _kept(parent, engine_id)
    towers, facts = plans.make(engine_id, ENGINES[engine_id], entry.graphs)
    built = replace(entry, towers=towers)
    write_description(folder, stages, engine_id, built, {**kept, "plans": facts})
    return built


def _kept(parent: Bundle, engine_id: str) -> dict[str, Any]:
    """Return what the parent's description says of the graphs: it is as true of the new plans."""
    path = parent.file(description_name(engine_id))
    try:
        said: Mapping[str, Any] = json.loads(path.read_text())
        return {name: said[name] for name in ("graphs", "work", "asked") if name in said}
    except (ValueError, TypeError) as error:
        raise RefusedError(f"{path} does not describe an engine", found=error, fix="Export the bundle again.") from error


def _manifest(parent: Manifest, engines: Mapping[str, EngineEntry], stages: Stages, digest: str) -> Manifest:
    return replace(
        parent,
        files=stages.files,
        engines=engines,
        versions=library_versions(),
        device=describe_machine(),
        parent_sha256=digest,
        provenance={**parent.provenance, "rebuilt_by": describe_code()},
    )
