"""The bill of materials is CycloneDX by its own schema, and says of every file, library and model what the manifest says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from toy_bundle import make_toy_bundle

from clipq.artifact import Bundle, write_manifest
from clipq.files import sha256_file
from clipq.pack.sbom import bill_of_materials
from clipq.pack.write import Packed, pack_bundle


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Return the pack of a bundle whose manifest has everything that an export writes."""
    folder = tmp_path_factory.mktemp("sbom") / "bundle"
    manifest = make_toy_bundle(folder).manifest
    parents = {name: replace(entry, parent=manifest.model.state_sha256) for name, entry in manifest.files.items() if "towers" in name}
    static = "engines/ort-int8-static/image.onnx"
    parents[static] = replace(manifest.files[static], parent=manifest.files["towers/image.fp32.onnx"].sha256)
    provenance = {
        "model": {"source": "hf-hub:org/name", "revision": "c0ffee"},
        "data": {"calibration": {"data": "imagefolder:x", "images": 16, "digest": "ef" * 32}},
        "code": {"clipq": "0.1.0", "commit": "12" * 20, "dirty": False},
    }
    versions = {"clipq": "0.1.0", "onnxruntime": "1.32.0", "open_clip_torch": "3.3.0", "torch": "2.13.0+cpu"}
    made = replace(manifest, files={**manifest.files, **parents}, versions=versions, device={"python": "3.11.7"}, provenance=provenance)
    write_manifest(folder, made)
    return pack_bundle(folder, folder.parent / "toy.clipq.tar.zst")


@pytest.fixture(scope="module")
def bill(packed: Packed) -> dict[str, Any]:
    """Return its bill as it is read from a file."""
    value: dict[str, Any] = json.loads(json.dumps(bill_of_materials(packed)))
    return value


def test_bill_is_cyclonedx(bill: dict[str, Any]) -> None:
    """By the schema that the standard publishes; a bill that is wrong in one place is not."""
    folder = resources.files("cyclonedx.schema") / "_res"
    schemas = {name: json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text()) for name in ("bom-1.6", "spdx", "jsf-0.82")}
    resolved: Registry[Any] = Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()])
    validator = Draft7Validator(schemas["bom-1.6"], registry=resolved)
    assert not [error.message for error in validator.iter_errors(bill)]
    for change in ({"specVersion": 1.6}, {"serialNumber": "1"}, {"components": [{"type": "model", "name": "x"}]}, {"colour": "red"}):
        assert not validator.is_valid({**bill, **change})


def test_every_file_is_named_with_its_hash(packed: Packed, bill: dict[str, Any]) -> None:
    """Those of the bundle on disk, the manifest too, and the pack itself."""
    files = {part["name"]: part["hashes"] for part in bill["components"] if part["type"] == "file"}
    folder = packed.path.parent / "bundle"
    on_disk = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    assert files == {str(path.relative_to(folder)): [{"alg": "SHA-256", "content": sha256_file(path)}] for path in on_disk}
    whole = bill["metadata"]["component"]
    assert (whole["name"], whole["hashes"][0]["content"]) == ("toy.clipq.tar.zst", sha256_file(packed.path))


def test_model_and_libraries_are_named(bill: dict[str, Any]) -> None:
    """The model with the hash of its tensors and its revision, the libraries with version and address."""
    (model,) = [part for part in bill["components"] if part["type"] == "machine-learning-model"]
    assert (model["name"], model["version"], model["hashes"][0]["content"]) == ("toy:none", "c0ffee", "ab" * 32)
    parts = {part["name"]: part for part in bill["components"]}
    assert parts["open_clip_torch"]["purl"] == "pkg:pypi/open-clip-torch@3.3.0"
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert [(parts[name]["type"], parts[name]["version"]) for name in ("clipq", "onnxruntime", "python")] == [
        ("application", "0.1.0"),
        ("library", "1.32.0"),
        ("platform", "3.11.7"),
    ]


def test_provenance_is_told(bill: dict[str, Any]) -> None:
    """Commit, data and recipe as properties."""
    told = {entry["name"]: entry["value"] for entry in bill["metadata"]["properties"]}
    assert told["clipq:code.commit"] == "12" * 20
    assert told["clipq:code.dirty"] == "False"
    assert told["clipq:data.calibration.digest"] == "ef" * 32
    assert len(told["clipq:recipe_sha256"]) == 64


def test_descent_follows_the_manifest(bill: dict[str, Any]) -> None:
    """The pack holds all; a quantized graph comes from the FP32 graph, and that from the model."""
    made = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    refs = [part["bom-ref"] for part in bill["components"]]
    assert sorted(made["pack"]) == sorted(refs)
    assert len(set(refs)) == len(refs)
    assert made["file:towers/text.fp32.onnx"] == ["model"]
    assert made["file:engines/ort-int8-static/image.onnx"] == ["file:towers/image.fp32.onnx"]


def test_bill_of_an_older_bundle(tmp_path: Path) -> None:
    """Without provenance, versions and device there is less to tell, and it is told."""
    make_toy_bundle(tmp_path / "bundle")
    bill = bill_of_materials(pack_bundle(tmp_path / "bundle", tmp_path / "a.tar.zst"))
    assert {part["type"] for part in bill["components"]} == {"machine-learning-model", "file"}
    assert Bundle.open(tmp_path / "bundle").manifest.provenance == {}
