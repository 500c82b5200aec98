"""Thresholds to deploy, saved into a bundle beside the engines that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipq import __version__
from clipq.artifact import Bundle, describe_file, write_manifest
from clipq.errors import ClipqError, RefusedError
from clipq.evaluate.provenance import engine_files
from clipq.evaluate.statistics.quantile import KEEPS
from clipq.files import locked, write_json
from clipq.progress import note

SCHEMA = "clipq.thresholds/1"


def thresholds_name(engine_id: str) -> str:
    """Return the name in the bundle of an engine's thresholds."""
    return f"engines/{engine_id}/thresholds.json"


def require_writable(folder: Path) -> None:
    """Refuse a bundle that thresholds could not be saved into, before any work.

    Raises:
        ClipqError: The folder cannot be written.
    """
    if not os.access(folder, os.W_OK):
        raise ClipqError(
            f"cannot save thresholds into {folder}", found="no right to write there", fix="Leave out --save-thresholds, or copy the bundle."
        )


def save_thresholds(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """Write every engine's thresholds of a report into its bundle and name them in the manifest.

    Thresholds of the same data are replaced, those of other data stay as long as the engine's files are the same. Whenever this is
    interrupted the manifest is valid and names only what is there: files that change leave it first and come back last.

    Args:
        folder: The bundle.
        report: Its evaluation, with ``thresholds``.

    Returns:
        The names of the files that were written.

    Raises:
        RefusedError: An engine's files are no longer those that were evaluated, or earlier thresholds are not what the manifest names.
        BusyError: Another run writes into the bundle.
        ClipqError: The disk is full, or the folder cannot be written.
    """
    with locked(folder):
        bundle = Bundle.open(folder)
        made = {
            thresholds_name(engine_id): _document(bundle, engine_id, report)
            for engine_id in report["thresholds"]
            if engine_id in bundle.manifest.engines
        }
        files = {name: entry for name, entry in bundle.manifest.files.items() if name not in made}
        write_manifest(folder, replace(bundle.manifest, files=files))
        for name, document in made.items():
            write_json(folder / name, document)
        write_manifest(folder, replace(bundle.manifest, files=files | {name: describe_file(folder, name) for name in made}))
    note(f"saved the thresholds of {len(made)} engines into {folder}")
    return list(made)


def _document(bundle: Bundle, engine_id: str, report: Mapping[str, Any]) -> dict[str, Any]:
    files = report["engines"][engine_id]["sha256"]
    if engine_files(bundle, engine_id) != files:
        raise RefusedError(f"{engine_id} of {bundle.folder} is not what was evaluated", fix="Run clipq eval again.")
    model = {key: report["provenance"]["model"][key] for key in ("id", "state_sha256", "logit_scale", "logit_bias")}
    head = {"schema": SCHEMA, "engine": engine_id, "model": model, "files": files, "accepts": "ood_score <= threshold", "keeps": KEEPS}
    data = {name: _entry(report, name, scores) for name, scores in report["thresholds"][engine_id].items()}
    return {**head, "data": {**_earlier(bundle, engine_id, head), **data}}


def _entry(report: Mapping[str, Any], data: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    images = report["datasets"][data]
    facts = {key: images[key] for key in ("sha256", "n", "classes", "templates", "class_texts_sha256") if key in images}
    return {**facts, "created": report["provenance"]["created"], "clipq": __version__, "scores": dict(scores)}


def _earlier(bundle: Bundle, engine_id: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return thresholds of other data that are in the bundle already and belong to the same files and model."""
    name = thresholds_name(engine_id)
    if name not in bundle.manifest.files:
        return {}
    found = json.loads(bundle.file(name).read_text())
    return dict(found["data"]) if all(found.get(key) == value for key, value in head.items()) else {}
