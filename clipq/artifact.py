"""The bundle: one folder with a manifest that names every file by hash; the contract between export and everything after it."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clipq.errors import RefusedError, UsageError, unknown_name
from clipq.files import sha256_file, write_json

SCHEMA = "clipq.bundle/1"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 << 20  # bytes; a manifest of a thousand files has a tenth of it
PLAN_SUFFIX = ".plan"  # an engine built for one device: executable code
_TOWERS = frozenset({"image", "text"})  # files are named after them, so a manifest may not make up others


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: its hash, its size and the hash of what it was made from (empty for a root)."""

    sha256: str
    size_bytes: int
    parent: str = ""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What scoring must know of the model.

    Attributes:
        id: Canonical model id, e.g. ``ViT-B-32:openai``.
        state_sha256: Hash over the names, dtypes, shapes and bytes of the checkpoint's tensors.
        embed_dim: Length of one embedding.
        logit_scale: ``exp`` of the learned parameter: logits = logit_scale * cosine + logit_bias.
        logit_bias: SigLIP's bias; None for models trained with a softmax loss.
        context_length: Tokens per text.
    """

    id: str
    state_sha256: str
    embed_dim: int
    logit_scale: float
    logit_bias: float | None
    context_length: int


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One engine of the bundle.

    Attributes:
        runtime: ``torch``, ``onnxruntime``, ...
        provider: What must compute, e.g. ``CPUExecutionProvider``.
        precision: ``fp32``, ``int8``, ...
        towers: Tower name to the file that runs; empty for the engine that loads the checkpoint itself, and for one whose plans are
            still to be built on the target.
        quantized: The towers that are quantized.
        graphs: Tower name to the portable graph that a plan is built from; empty where the graph itself runs.
        simulated: Integers of fewer than 8 bits, computed in INT8: answers are those of the fewer bits, speed and size are not.
    """

    runtime: str
    provider: str
    precision: str
    towers: Mapping[str, str] = field(default_factory=dict)
    quantized: tuple[str, ...] = ()
    graphs: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of ``manifest.json``; ``recipe``, ``versions``, ``device`` and ``provenance`` are plain JSON values.

    ``parent_sha256`` is the hash of the manifest that a rebuilt bundle was made from; empty for an export. ``provenance`` tells where
    model, data and code came from; empty in bundles of older versions.
    """

    model: ModelEntry
    files: Mapping[str, FileEntry]
    engines: Mapping[str, EngineEntry]
    recipe: Mapping[str, Any]
    recipe_sha256: str
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    parent_sha256: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Bundle:
    """A bundle on disk, opened for reading: no file leaves it unchecked.

    Attributes:
        folder: Where it is.
        manifest: What it holds.
        trust_plans: Let plans pass whose hash the manifest does not name; see ``open``.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, trust_plans: bool = False) -> None:
        self.folder = folder
        self.manifest = manifest
        self.trust_plans = trust_plans
        self._checked: set[str] = set()

    @classmethod
    def open(cls, folder: Path, *, trust_plans: bool = False) -> Bundle:
        """Read a bundle's manifest.

        Args:
            folder: Where it is.
            trust_plans: Let plans pass whose hash the manifest does not name. A plan is code that runs on this machine.

        Raises:
            UsageError: There is no bundle at ``folder``.
            RefusedError: The manifest cannot be read, is too large, or is of an unknown schema version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise UsageError(f"no bundle at {folder}", found="no manifest.json", fix="Make one with: clipq-export MODEL -o DIR")
        with path.open("rb") as stream:
            data = stream.read(MANIFEST_LIMIT + 1)
        return cls(folder, parse_manifest(data, path), trust_plans=trust_plans)

    def engine(self, engine_id: str) -> EngineEntry:
        """Return an engine's entry.

        Raises:
            UsageError: The bundle has no such engine.
        """
        if engine_id not in self.manifest.engines:
            raise unknown_name("engine of this bundle", engine_id, self.manifest.engines)
        return self.manifest.engines[engine_id]

    def file(self, name: str) -> Path:
        """Return the path of a file after checking that it stays inside, is no link, and has the hash the manifest names.

        Raises:
            RefusedError: It leaves the folder, is a link, is missing, is unknown to the manifest, or its hash differs.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise RefusedError(f"{name} is not named by the manifest of {self.folder}", fix="Export the bundle again.")
        path = contained(self.folder, name)
        if name not in self._checked:
            if not (self.trust_plans and name.endswith(PLAN_SUFFIX) and path.is_file()):
                _check_hash(path, entry)
            self._checked.add(name)
        return path

    def verify(self) -> None:
        """Check every file of the manifest; raises like ``file``."""
        for name in self.manifest.files:
            self.file(name)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Return the manifest that ``data`` is.

    Args:
        data: The file's content.
        path: What messages call it.

    Raises:
        RefusedError: It is no manifest, larger than ``MANIFEST_LIMIT``, incomplete, or of an unknown schema version.
    """
    if len(data) > MANIFEST_LIMIT:
        raise RefusedError(f"{path} is too large", found="more", expected=f"at most {MANIFEST_LIMIT} bytes", fix="Do not use this bundle.")
    try:
        value = json.loads(data.decode())
        schema = value["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"{path} is not a manifest", found=error, fix="Export the bundle again.") from error
    if schema != SCHEMA:
        raise RefusedError(
            f"{path} has an unknown schema", found=schema, expected=SCHEMA, fix="Use the clipq that wrote it, or export again."
        )
    return _manifest_from_json(value, path)


def contained(folder: Path, name: str) -> Path:
    """Return ``folder / name`` when it stays inside and no part of it is a link.

    Raises:
        RefusedError: The name is absolute, climbs out, or passes through a symbolic link.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise RefusedError(f"the manifest names a path outside the bundle: {name!r}", fix="Do not use this bundle.")
    path = folder
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise RefusedError(
                f"{path} is a symbolic link", expected="a regular file", fix="Copy the file into the bundle and export again."
            )
    return path


def _check_hash(path: Path, entry: FileEntry) -> None:
    if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
        raise RefusedError(f"{path} is missing", fix="Run the export again with --resume.")
    found = sha256_file(path)
    if found != entry.sha256:
        raise RefusedError(
            f"{path} is not the file the manifest names",
            found=f"sha256 {found[:16]}…",
            expected=f"{entry.sha256[:16]}…",
            fix="Copy it again, or export again.",
        )


def describe_file(folder: Path, name: str, parent: str = "") -> FileEntry:
    """Return the manifest entry of a file that was just written."""
    path = folder / name
    return FileEntry(sha256_file(path), path.stat().st_size, parent)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically; it is written last, so a bundle without one is unfinished."""
    write_json(
        folder / MANIFEST,
        {
            "schema": SCHEMA,
            "model": _plain(manifest.model),
            "recipe": dict(manifest.recipe),
            "recipe_sha256": manifest.recipe_sha256,
            "parent_sha256": manifest.parent_sha256,
            "versions": dict(manifest.versions),
            "device": dict(manifest.device),
            "provenance": dict(manifest.provenance),
            "engines": {name: _plain(entry) for name, entry in manifest.engines.items()},
            "files": {name: _plain(entry) for name, entry in manifest.files.items()},
        },
    )


def _plain(entry: ModelEntry | EngineEntry | FileEntry) -> dict[str, Any]:
    values = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    return {name: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}


def _manifest_from_json(value: Mapping[str, Any], path: Path) -> Manifest:
    try:
        for part in ("recipe", "versions", "device"):
            if not isinstance(value[part], dict):
                raise TypeError(f"no object as {part}")  # noqa: TRY301 - told like what the entries refuse
        return Manifest(
            model=ModelEntry(**value["model"]),
            files={name: _file_from_json(entry) for name, entry in value["files"].items()},
            engines={name: _engine_from_json(entry) for name, entry in value["engines"].items()},
            recipe=value["recipe"],
            recipe_sha256=value["recipe_sha256"],
            versions=value["versions"],
            device=value["device"],
            parent_sha256=value.get("parent_sha256", ""),
            provenance=dict(value.get("provenance", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError(f"{path} is incomplete or wrong", found=error, fix="Export the bundle again.") from error


def _file_from_json(value: Mapping[str, Any]) -> FileEntry:
    """Return a file's entry; raises ValueError for what is no hash or no size."""
    entry = FileEntry(**value)
    if not re.fullmatch("[0-9a-f]{64}", entry.sha256) or type(entry.size_bytes) is not int or entry.size_bytes < 0:
        raise ValueError(f"no file has sha256 {entry.sha256!r} and {entry.size_bytes!r} bytes")
    return entry


def _engine_from_json(value: Mapping[str, Any]) -> EngineEntry:
    """Return an engine's entry; raises ValueError for towers that no model has."""
    files = {key: dict(value.get(key, {})) for key in ("towers", "graphs")}
    strange = [name for name in (*files["towers"], *files["graphs"], *value["quantized"]) if name not in _TOWERS]
    if strange:
        raise ValueError(f"no model has a tower {strange[0]!r}")
    return EngineEntry(**{**value, **files, "quantized": tuple(value["quantized"])})
