"""Makes the classifiers of a bundle: class texts through every text tower of it that runs here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import Bundle, describe_file, write_manifest
from clipq.calib_data.table import open_source
from clipq.engines.base import Engine, Float32
from clipq.engines.table import PLANNED, open_engine
from clipq.errors import DataError, MissingRuntimeError, UsageError
from clipq.evaluate.classifiers import SCHEMA, classifier_name, text_tower, tower_sha256
from clipq.evaluate.embeddings import tokenise
from clipq.evaluate.zeroshot import classifier, prompts
from clipq.files import atomic_path, locked, write_json
from clipq.progress import bar, note

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BATCH = 32


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
    return {**said, "towers": {tower: tower_sha256(bundle, tower) for tower in vectors}}, vectors


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
