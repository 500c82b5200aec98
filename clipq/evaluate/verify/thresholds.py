"""Deployed thresholds, replayed: they load, belong to the engine that is here, and keep so many of the golden pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.engines.base import Engine, Float32
from clipq.errors import RefusedError, UsageError
from clipq.evaluate.classifiers import Classifier, classifier_names, read_classifier, read_vectors
from clipq.evaluate.provenance import engine_files
from clipq.evaluate.thresholds import SCHEMA, thresholds_name
from clipq.evaluate.verify.towers import golden_outputs

Entry = dict[str, Any]


def replay_thresholds(bundle: Bundle, engine: Engine, pixels: Float32 | None) -> dict[str, dict[str, Entry]] | None:
    """Return what an opened engine's thresholds do on the golden pictures; None where the bundle has no thresholds of it.

    The pictures are drawn, not photographs of any class, so how many are kept says nothing about OOD detection: it says whether this
    device decides as another does, which ``clipq compare`` shows.

    Args:
        bundle: Where the thresholds are.
        engine: The engine.
        pixels: The golden pictures as this device preprocesses them, float32 ``(n, 3, height, width)``; None without any.

    Returns:
        DATA -> SCORE -> ``threshold`` and ``kept``: pictures at or below it; None where the bundle has no classifier with the class texts
        of that data, where the score needs more than class embeddings, or where scipy is not installed.

    Raises:
        RefusedError: The thresholds cannot be read, are not finite, or belong to other files or another model.
        EngineError: The engine failed.
    """
    name = thresholds_name(engine.id)
    if name not in bundle.manifest.files:
        return None
    data = _read(bundle, engine.id)
    embeddings = golden_outputs(engine, "image", pixels) if pixels is not None and len(pixels) else None
    known = {found.classes.sha256(): found for found in (read_classifier(bundle, name) for name in classifier_names(bundle))}
    replayed: dict[str, dict[str, Entry]] = {}
    for data_id, entry in data.items():
        classes = _classes(bundle, engine.id, known.get(entry.get("class_texts_sha256", "")))
        scores = _scores(bundle, embeddings, classes, f"golden pictures with {engine.id}")
        limits = {score: float(found["threshold"]) for score, found in entry["scores"].items()}
        replayed[data_id] = {
            score: {"threshold": limit, "kept": int((scores[score] <= limit).sum()) if score in scores else None}
            for score, limit in limits.items()
        }
    return replayed


def _read(bundle: Bundle, engine_id: str) -> Mapping[str, Entry]:
    """Return DATA -> what ``save_thresholds`` wrote of it, checked."""
    path, model = bundle.file(thresholds_name(engine_id)), bundle.manifest.model
    try:
        said = json.loads(path.read_text())
        belongs = said["engine"], said["files"], said["model"]["state_sha256"]
        numbers = [float(found["threshold"]) for entry in said["data"].values() for found in entry["scores"].values()]
        schema, data = said["schema"], dict(said["data"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} holds no thresholds", found=error, fix="Save them again with clipq eval --save-thresholds.") from error
    if schema != SCHEMA or not all(map(math.isfinite, numbers)):
        raise RefusedError(f"{path} has an unknown schema or a threshold that is not finite", found=schema, expected=SCHEMA)
    if belongs != (engine_id, engine_files(bundle, engine_id), model.state_sha256):
        raise RefusedError(f"{path} belongs to other files than {engine_id} has here", fix="Save thresholds of the engine that is here.")
    return data


def _classes(bundle: Bundle, engine_id: str, found: Classifier | None) -> Float32 | None:
    """Return the class embeddings of an engine, or None where the bundle has none for it."""
    try:
        return read_vectors(bundle, found, engine_id) if found else None
    except UsageError:
        return None


def _scores(bundle: Bundle, embeddings: Float32 | None, classes: Float32 | None, what: str) -> Mapping[str, np.ndarray[Any, Any]]:
    if embeddings is None or classes is None:
        return {}
    try:
        from clipq.evaluate.answers import answer
    except ImportError:  # scipy: part of the base install, and nothing else here needs it
        return {}
    return answer(embeddings, classes, bundle.manifest.model, what).ood_scores
