"""Classifiers in a bundle: class embeddings made where the texts can be, so that a device needs neither tokenizer nor text tower."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle, describe_file, write_manifest
from clipq.calib_data.relabelled import ClassNames
from clipq.calib_data.table import open_source
from clipq.engines.base import Engine, Float32
from clipq.engines.table import PLANNED, open_engine
from clipq.errors import DataError, MissingRuntimeError, RefusedError, UsageError, unknown_name
from clipq.evaluate.embeddings import tokenise
from clipq.evaluate.zeroshot import classifier, prompts
from clipq.files import atomic_path, locked, sha256_json, write_json
from clipq.progress import bar, note

SCHEMA = "clipq.classifier/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE = re.compile(r"classifiers/([^/]+)/classifier\.json")
_BATCH = 32


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
    if found.vectors[tower]["tower_sha256"] != _tower_sha256(bundle, tower):
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


def check_classifiers(asked: Mapping[str, str]) -> None:
    """Check, before any work, that classifiers can be made of these data sets.

    Args:
        asked: Name -> data id.

    Raises:
        UsageError: A name cannot be a folder's, or a data id is unknown.
        DataError: A data set has no class names.
    """
    for name, data in asked.items():
        if not _NAME.fullmatch(name):
            raise UsageError("a classifier's name is wrong", found=name, expected="letters, digits, '.', '_' and '-'")
        source = open_source(data)
        if not source.classnames:
            raise DataError(f"{source.id} has no class names to make the classifier {name} of", fix="Name another data set.")


def add_classifiers(folder: Path, asked: Mapping[str, str]) -> Bundle:
    """Write classifiers into a bundle, by every text tower of it that runs here, and name them in the manifest.

    A classifier of the same name is replaced: it leaves the manifest before its files change, so an interrupted run leaves a bundle that
    verifies.

    Args:
        folder: The bundle.
        asked: Name -> data id of the set whose class names and templates it takes.

    Returns:
        The bundle with them.

    Raises:
        UsageError: As ``check_classifiers``.
        DataError: As ``check_classifiers``.
        MissingRuntimeError: No text tower runs here.
        BusyError: Another run writes into the bundle.
    """
    check_classifiers(asked)
    with locked(folder):
        bundle = Bundle.open(folder)
        kept = {
            name: entry for name, entry in bundle.manifest.files.items() if not name.startswith(tuple(f"classifiers/{n}/" for n in asked))
        }
        made = {name: _vectors(bundle, data) for name, data in asked.items()}
        write_manifest(folder, replace(bundle.manifest, files=kept))
        written = [file for name, (said, vectors) in made.items() for file in _write(folder, name, said, vectors)]
        write_manifest(folder, replace(bundle.manifest, files=kept | {name: describe_file(folder, name) for name in written}))
    told = ", ".join(f"{name} ({len(said['classnames'])} classes)" for name, (said, _) in made.items())
    note(f"wrote {told} into {folder / 'classifiers'}")
    return Bundle.open(folder)


def _vectors(bundle: Bundle, data: str) -> tuple[dict[str, Any], dict[str, Float32]]:
    """Return what to say of a classifier, and its class embeddings by text tower."""
    source = open_source(data)
    texts = prompts(source.classnames, source.templates)
    tokens = tokenise(bundle, {data: texts})[data]
    vectors: dict[str, Float32] = {}
    for engine_id in bundle.manifest.engines:
        tower = text_tower(bundle, engine_id)
        engine = None if tower in vectors or bundle.engine(engine_id).runtime in PLANNED else _runnable(bundle, engine_id)
        if engine is not None:
            vectors[tower] = classifier(_embed(engine, tokens), len(source.templates), f"texts of {data} with {engine_id}")
    for engine_id in bundle.manifest.engines:
        if text_tower(bundle, engine_id) not in vectors:
            note(f"no classifier for {engine_id}: its text tower does not run here")
    if not vectors:
        raise MissingRuntimeError(f"no text tower of {bundle.folder} runs here", fix="See clipq doctor.")
    said = {"data": source.id, "classnames": list(source.classnames), "templates": list(source.templates)}
    return {**said, "towers": {tower: _tower_sha256(bundle, tower) for tower in vectors}}, vectors


def _runnable(bundle: Bundle, engine_id: str) -> Engine | None:
    try:
        return open_engine(bundle, engine_id)
    except MissingRuntimeError:
        return None


def _embed(engine: Engine, tokens: npt.NDArray[np.int32]) -> Float32:
    with engine, bar(f"Embedding class texts with {engine.id}", len(tokens)) as advance:
        blocks = []
        for start in range(0, len(tokens), _BATCH):
            blocks.append(engine.run("text", tokens[start : start + _BATCH]))
            advance(len(blocks[-1]))
    return np.concatenate(blocks)


def _write(folder: Path, name: str, said: Mapping[str, Any], vectors: Mapping[str, Float32]) -> list[str]:
    files = {tower: f"classifiers/{name}/{Path(tower).name.removesuffix('.onnx')}.npy" for tower in vectors}
    for tower, file in files.items():
        with atomic_path(folder / file) as part, part.open("wb") as stream:
            np.save(stream, vectors[tower], allow_pickle=False)
    towers = {tower: {"file": file, "tower_sha256": said["towers"][tower]} for tower, file in files.items()}
    facts = {"data": said["data"], "classnames": said["classnames"], "templates": said["templates"]}
    write_json(folder / classifier_name(name), {"schema": SCHEMA, "name": name, **facts, "vectors": towers})
    return [classifier_name(name), *files.values()]


def _tower_sha256(bundle: Bundle, tower: str) -> str:
    """Return the hash of a text tower with its external data, or of the checkpoint for PyTorch itself."""
    files = {file: entry.sha256 for file, entry in bundle.manifest.files.items() if file == tower or file.startswith(f"{tower}.data")}
    return sha256_json(files) if files else bundle.manifest.model.state_sha256
