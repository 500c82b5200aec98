"""Classifiers in a bundle: class embeddings made at export, so that a device needs neither tokenizer nor text tower."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle
from clipq.calib_data.relabelled import ClassNames
from clipq.engines.base import Float32
from clipq.errors import RefusedError, UsageError, unknown_name
from clipq.files import sha256_json

SCHEMA = "clipq.classifier/1"
_FILE = re.compile(r"classifiers/([^/]+)/classifier\.json")


@dataclass(frozen=True, slots=True)
class Classifier:
    """One classifier of a bundle.

    Attributes:
        name: Its folder below ``classifiers/``.
        data: The data set that its classes were taken from.
        classes: Class names and templates.
        vectors: Text tower (as in ``text_tower``) -> ``file`` and ``tower_sha256``.
    """

    name: str
    data: str
    classes: ClassNames
    vectors: Mapping[str, Mapping[str, str]]

    def describe(self) -> dict[str, Any]:
        """Return ``report["provenance"]["classifier"]``."""
        return {"name": self.name, "data": self.data, "classes": len(self.classes.classnames)}


def classifier_name(name: str) -> str:
    """Return the name in the bundle of a classifier's description."""
    return f"classifiers/{name}/classifier.json"


def classifier_names(bundle: Bundle) -> list[str]:
    """Return the classifiers of a bundle."""
    return sorted(found[1] for name in bundle.manifest.files if (found := _FILE.fullmatch(name)))


def text_tower(bundle: Bundle, engine_id: str) -> str:
    """Return what embeds the texts of an engine: its text graph, or ``torch-fp32``; a plan is named by the graph it is built from."""
    entry = bundle.engine(engine_id)
    return entry.graphs.get("text") or entry.towers.get("text") or engine_id


def read_classifier(bundle: Bundle, name: str) -> Classifier:
    """Return a classifier of a bundle.

    Raises:
        UsageError: The bundle has none of this name.
        RefusedError: It is not what the manifest says, or does not describe a classifier.
    """
    known = classifier_names(bundle)
    if not known:
        raise UsageError(f"{bundle.folder} has no classifiers", fix=f"Add one where it was exported, with --classifier {name}=DATA.")
    if name not in known:
        raise unknown_name("classifier of this bundle", name, known)
    path = bundle.file(classifier_name(name))
    try:
        said = json.loads(path.read_text())
        vectors = {
            str(key): {"file": str(value["file"]), "tower_sha256": str(value["tower_sha256"])} for key, value in said["vectors"].items()
        }
        classes = ClassNames(tuple(map(str, said["classnames"])), tuple(map(str, said["templates"])))
        schema, data = said["schema"], str(said["data"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{path} does not describe a classifier", found=error, fix="Make it again.") from error
    if schema != SCHEMA or not classes.classnames:
        raise RefusedError(f"{path} has an unknown schema or no classes", found=schema, expected=SCHEMA, fix="Make it again.")
    return Classifier(name, data, classes, vectors)


def read_vectors(bundle: Bundle, found: Classifier, engine_id: str) -> Float32:
    """Return the class embeddings for one engine, unit vectors, float32 ``(classes, dim)``.

    Raises:
        UsageError: The classifier was made without the text tower of this engine.
        RefusedError: They are not what the manifest says, or belong to another text tower.
    """
    tower = text_tower(bundle, engine_id)
    if tower not in found.vectors:
        raise UsageError(
            f"the classifier {found.name} has no class embeddings of {tower}, the text tower of {engine_id}",
            found=", ".join(found.vectors),
            fix="Make it again where that tower runs, or name other engines with --engines.",
        )
    path = bundle.file(found.vectors[tower]["file"])
    if found.vectors[tower]["tower_sha256"] != tower_sha256(bundle, tower):
        raise RefusedError(f"{path} was made by another {tower}", fix="Make the classifier again.")
    shape = len(found.classes.classnames), bundle.manifest.model.embed_dim
    try:
        vectors: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise RefusedError(f"{path} holds no class embeddings", found=error, fix="Make the classifier again.") from error
    if vectors.shape != shape or vectors.dtype != np.float32 or not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
        found_text = f"{vectors.dtype} {vectors.shape}"
        raise RefusedError(f"{path} holds no class embeddings", found=found_text, expected=f"unit vectors, float32 {shape}")
    return vectors


def tower_sha256(bundle: Bundle, tower: str) -> str:
    """Return the hash of a text tower with its external data, or of the checkpoint for PyTorch itself."""
    files = {file: entry.sha256 for file, entry in bundle.manifest.files.items() if file == tower or file.startswith(f"{tower}.data")}
    return sha256_json(files) if files else bundle.manifest.model.state_sha256
