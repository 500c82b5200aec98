"""What is in a pack as a CycloneDX 1.6 bill of materials: model, libraries, files, each with its hash or version."""

from __future__ import annotations

import uuid
from typing import Any

from clipq import __version__
from clipq.artifact import MANIFEST, FileEntry, Manifest
from clipq.pack.write import Packed

_APPLICATIONS = frozenset({"clipq"})


def bill_of_materials(packed: Packed) -> dict[str, Any]:
    """Return the bill of a pack as a JSON value; the same pack has the same bill, so it carries no time.

    The form: https://cyclonedx.org/docs/1.6/json/ . The model's hash is over its tensors (``state_sha256`` of the manifest), those of
    pack and files over their bytes. Libraries are those that the manifest names: what the bundle was made with.
    """
    manifest = packed.manifest
    files = [_file(MANIFEST, FileEntry(packed.manifest_sha256, 0)), *(_file(name, entry) for name, entry in sorted(manifest.files.items()))]
    libraries = [_library(name, version) for name, version in sorted(manifest.versions.items())]
    if "python" in manifest.device:
        libraries.append({**_named("platform", "python", str(manifest.device["python"])), "bom-ref": "platform:python"})
    parts = [_model(manifest), *libraries, *files]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'sha256:{packed.sha256}')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [_named("application", "clipq", __version__)]},
            "component": {"type": "file", "bom-ref": "pack", "name": packed.path.name, "hashes": _hashes(packed.sha256)},
            "properties": _properties({**_provenance(manifest), "recipe_sha256": manifest.recipe_sha256}),
        },
        "components": parts,
        "dependencies": [
            {"ref": "pack", "dependsOn": [part["bom-ref"] for part in parts]},
            *_descent(manifest),
        ],
    }


def _model(manifest: Manifest) -> dict[str, Any]:
    model = manifest.model
    facts = {"embed_dim": model.embed_dim, "logit_scale": model.logit_scale, "engines": ", ".join(manifest.engines)}
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": model.id,
        **({"version": revision} if (revision := str(_origin(manifest).get("revision", ""))) else {}),
        "description": "The hash is over the names, types, shapes and bytes of the tensors.",
        "hashes": _hashes(model.state_sha256),
        "modelCard": {"modelParameters": {"task": "zero-shot image classification"}},
        "properties": _properties(facts),
    }


def _origin(manifest: Manifest) -> dict[str, Any]:
    found = manifest.provenance.get("model")
    return found if isinstance(found, dict) else {}


def _library(name: str, version: str) -> dict[str, Any]:
    kind = "application" if name in _APPLICATIONS else "library"
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
    return {**_named(kind, name, version), "bom-ref": f"library:{name}", "purl": purl.replace("+", "%2B")}


def _named(kind: str, name: str, version: str) -> dict[str, Any]:
    return {"type": kind, "name": name, "version": version}


def _file(name: str, entry: FileEntry) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(entry.sha256)}


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _descent(manifest: Manifest) -> list[dict[str, Any]]:
    """Return which file was made from which, or from the model."""
    by_hash = {entry.sha256: f"file:{name}" for name, entry in manifest.files.items()} | {manifest.model.state_sha256: "model"}
    made = [(name, by_hash.get(entry.parent)) for name, entry in sorted(manifest.files.items())]
    return [{"ref": f"file:{name}", "dependsOn": [parent]} for name, parent in made if parent and parent != f"file:{name}"]


def _provenance(manifest: Manifest) -> dict[str, Any]:
    """Return the provenance as flat names: ``code.commit``, ``data.calibration.digest``, ..."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                walk(f"{prefix}.{name}" if prefix else name, part)
        else:
            flat[prefix] = value

    walk("", dict(manifest.provenance))
    return flat


def _properties(facts: dict[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"clipq:{name}", "value": str(value)} for name, value in sorted(facts.items())]
