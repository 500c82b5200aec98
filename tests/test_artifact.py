"""The bundle refuses whatever its manifest does not vouch for: wrong hashes, paths that leave, links, unknown schemas."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipq.artifact import Bundle, EngineEntry, FileEntry, Manifest, ModelEntry, contained, describe_file, write_manifest
from clipq.errors import RefusedError, UsageError

MODEL = ModelEntry("ViT-B-32:openai", "0" * 64, 512, 100.0, None, 77)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of one file and one engine."""
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "image.onnx").write_bytes(b"graph")
    files = {"towers/image.onnx": describe_file(tmp_path, "towers/image.onnx", parent="1" * 64)}
    engines = {"ort-fp32": EngineEntry("onnxruntime", "CPUExecutionProvider", "fp32", {"image": "towers/image.onnx"}, ("image",))}
    write_manifest(tmp_path, Manifest(MODEL, files, engines, {"model": MODEL.id}, "2" * 64, {"clipq": "0"}, {"cores": 2}))
    return Bundle.open(tmp_path)


def _edit(bundle: Bundle, change: Callable[[dict[str, Any]], Any]) -> Bundle:
    path = bundle.folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return Bundle.open(bundle.folder)


def test_a_manifest_comes_back_as_it_was_written(bundle: Bundle) -> None:
    """Model, files, engines, recipe and the rest survive the file."""
    manifest = bundle.manifest
    assert manifest.model == MODEL
    assert manifest.files["towers/image.onnx"].size_bytes == 5
    assert manifest.files["towers/image.onnx"].parent == "1" * 64
    assert bundle.engine("ort-fp32").quantized == ("image",)
    assert (manifest.recipe, manifest.recipe_sha256, manifest.device) == ({"model": MODEL.id}, "2" * 64, {"cores": 2})


def test_a_whole_bundle_is_accepted(bundle: Bundle) -> None:
    """Every file has its hash, so the path is given out."""
    bundle.verify()
    assert bundle.file("towers/image.onnx").read_bytes() == b"graph"


def test_a_changed_file_is_refused(bundle: Bundle) -> None:
    """One other byte is another file."""
    (bundle.folder / "towers" / "image.onnx").write_bytes(b"grapi")
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        bundle.file("towers/image.onnx")


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    """A file that is gone is named."""
    (bundle.folder / "towers" / "image.onnx").unlink()
    with pytest.raises(RefusedError, match=r"image\.onnx is missing"):
        bundle.verify()


def test_a_file_the_manifest_does_not_name_is_refused(bundle: Bundle) -> None:
    """What nobody vouched for is not opened."""
    (bundle.folder / "extra.bin").touch()
    with pytest.raises(RefusedError, match="not named by the manifest"):
        bundle.file("extra.bin")


@pytest.mark.parametrize("name", ["../secret", "towers/../../secret", "/etc/passwd", ""])
def test_a_path_that_leaves_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    """Whatever hash the manifest gives it."""
    (bundle.folder.parent / "secret").write_bytes(b"x")
    edited = _edit(bundle, lambda value: value["files"].update({name: {"sha256": "0" * 64, "size_bytes": 1, "parent": ""}}))
    with pytest.raises(RefusedError, match="outside the bundle"):
        edited.file(name)


@pytest.mark.parametrize("link", ["towers/image.onnx", "towers"])
def test_a_symbolic_link_is_refused(bundle: Bundle, link: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A linked file or folder is refused even where the content has the right hash."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    (bundle.folder / link).rename(elsewhere)
    (bundle.folder / link).symlink_to(elsewhere)
    with pytest.raises(RefusedError, match="is a symbolic link"):
        bundle.file("towers/image.onnx")


def test_a_pipe_is_refused_instead_of_waited_for(bundle: Bundle) -> None:
    """Reading a FIFO would hang for ever."""
    path = bundle.folder / "towers" / "image.onnx"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RefusedError, match="is missing"):
        bundle.file("towers/image.onnx")


def test_an_unknown_schema_is_refused(bundle: Bundle) -> None:
    """A manifest of another version is not half understood."""
    with pytest.raises(RefusedError, match=r"unknown schema; found clipq\.bundle/9; expected clipq\.bundle/1"):
        _edit(bundle, lambda value: value.update(schema="clipq.bundle/9"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', '"clipq.bundle/1"'])
def test_what_is_no_manifest_is_refused(bundle: Bundle, text: str) -> None:
    """Broken or foreign JSON is one clear line."""
    (bundle.folder / "manifest.json").write_text(text)
    with pytest.raises(RefusedError, match="is not a manifest"):
        Bundle.open(bundle.folder)


def test_bytes_that_are_no_text_are_refused(bundle: Bundle) -> None:
    """A binary file called manifest.json is one clear line too."""
    (bundle.folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RefusedError, match="is not a manifest"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("key", ["model", "files", "engines", "recipe", "recipe_sha256", "versions", "device"])
def test_an_incomplete_manifest_is_refused(bundle: Bundle, key: str) -> None:
    """Each part must be there."""
    with pytest.raises(RefusedError, match="is incomplete"):
        _edit(bundle, lambda value: value.pop(key))


@pytest.mark.parametrize(
    "change",
    [{"graphs": {"../../evil": "towers/image.onnx"}}, {"towers": {"audio": "towers/image.onnx"}}, {"quantized": ["."]}, {"towers": ["a"]}],
)
def test_an_engine_of_unknown_towers_is_refused(bundle: Bundle, change: dict[str, Any]) -> None:
    """Plans are written to files that are named after towers: a name of the manifest's own could lead anywhere."""
    with pytest.raises(RefusedError, match="is incomplete or wrong"):
        _edit(bundle, lambda value: value["engines"]["ort-fp32"].update(change))


def test_a_manifest_with_unknown_fields_is_refused(bundle: Bundle) -> None:
    """An entry this version does not know may matter."""
    with pytest.raises(RefusedError, match="is incomplete"):
        _edit(bundle, lambda value: value["model"].update(colour="red"))


def test_no_bundle_tells_how_to_make_one(tmp_path: Path) -> None:
    """An empty or missing folder is the user's slip, not a refusal."""
    with pytest.raises(UsageError, match="clipq-export MODEL"):
        Bundle.open(tmp_path / "nothing")


def test_an_unknown_engine_suggests_the_nearest(bundle: Bundle) -> None:
    """The engines of this bundle are listed."""
    with pytest.raises(UsageError, match="Did you mean 'ort-fp32'"):
        bundle.engine("ort-fp16")


def test_contained_gives_the_path(tmp_path: Path) -> None:
    """An honest name stays what it is, even before the file exists."""
    assert contained(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"


def test_describe_file_tells_hash_size_and_parent(tmp_path: Path) -> None:
    """The entry of the empty file is known in advance."""
    (tmp_path / "a").touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert describe_file(tmp_path, "a", "p") == FileEntry(empty, 0, "p")
