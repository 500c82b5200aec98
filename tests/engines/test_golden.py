"""Golden files of a bundle: what is written is read, and what does not fit the model is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import rewrite_manifest
from toy_golden import make_golden_bundle

from clipq.artifact import Bundle
from clipq.engines.golden import PICTURE_TENSORS, PICTURES, TENSORS, golden_of, pictures_of
from clipq.errors import RefusedError
from clipq.export.golden import write_arrays


def changed(folder: Path, name: str, change: Callable[[dict], object]) -> Bundle:
    """Return the bundle with the arrays or the JSON of a file changed and named anew."""
    bundle, path = Bundle.open(folder), folder / name
    if path.suffix == ".npz":
        with np.load(path) as stored:
            values = dict(stored)
        change(values)
        write_arrays(path, values)
    else:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
    return rewrite_manifest(folder, bundle.manifest.engines)


def test_a_bundle_gives_its_golden_files_back(tmp_path: Path) -> None:
    """Eight inputs of each tower and seven pictures, in the shapes of the model."""
    bundle = make_golden_bundle(tmp_path)
    golden, pictures = golden_of(bundle), pictures_of(bundle)
    assert golden.pixels.shape == (8, 3, 16, 16)
    assert golden.text_embedding.shape == (8, 8)
    assert golden.patches is None
    assert pictures.pixels.shape == (7, 3, 16, 16)
    assert [name.rpartition(".")[2] for name in pictures.names] == ["jpg"] * 6 + ["png"]
    assert {"pillow", "jpeg", "png"} == set(pictures.decoder)


def test_an_older_bundle_has_no_pictures(tmp_path: Path) -> None:
    """Bundles from before there were golden pictures say nothing instead of failing."""
    assert pictures_of(make_golden_bundle(tmp_path, pictures=False)) is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda values: values.pop("tokens"), "holds no golden tensors; found no tokens"),
        (lambda values: values.update(pixels=values["pixels"][:, :, :8]), "does not fit the model: image inputs"),
        (lambda values: values.update(tokens=values["tokens"].astype(np.int64)), "does not fit the model: text inputs; found int64"),
        (lambda values: values.update(image_embedding=values["image_embedding"][:3]), "does not fit the model: image outputs"),
        (lambda values: values["text_embedding"].__setitem__(0, np.nan), "expected finite float32"),
        (lambda values: values.update(patches=np.zeros((8, 4, 3), np.float32)), "does not fit the model: patches"),
    ],
)
def test_golden_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[dict], object], line: str) -> None:
    """A file with the hash of its manifest may still be of another model: exit code 5."""
    make_golden_bundle(tmp_path)
    with pytest.raises(RefusedError, match=line) as caught:
        golden_of(changed(tmp_path, TENSORS, change))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (PICTURES, lambda values: values.pop("decoder"), "does not describe golden pictures"),
        (PICTURES, lambda values: values.update(schema="clipq.pictures/9"), "unknown schema"),
        (PICTURES, lambda values: values.update(pictures=[]), "no pictures"),
        (PICTURES, lambda values: values["pictures"].pop(), "does not fit the model: pixels"),
        (PICTURE_TENSORS, lambda values: values.pop("pixels"), "pixels; found none"),
        (PICTURE_TENSORS, lambda values: values.update(image_embedding=np.zeros((7, 5), np.float32)), "image_embedding"),
    ],
)
def test_golden_pictures_that_do_not_fit_are_refused(tmp_path: Path, name: str, change: Callable[[dict], object], line: str) -> None:
    """The description and the tensors must fit each other and the model."""
    make_golden_bundle(tmp_path)
    with pytest.raises(RefusedError, match=line):
        pictures_of(changed(tmp_path, name, change))


def test_a_bundle_without_golden_tensors_is_refused(tmp_path: Path) -> None:
    """Without them nothing can be verified."""
    bundle = make_golden_bundle(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(RefusedError, match="has no golden tensors"):
        golden_of(rewrite_manifest(tmp_path, bundle.manifest.engines))


@pytest.mark.parametrize("kind", ["garbage", "packed", "pickled", "huge"])
def test_arrays_that_are_none_are_refused(tmp_path: Path, kind: str) -> None:
    """No archive, one that grows when it is unpacked, objects, and a head that declares more than the file holds."""
    bundle, path = make_golden_bundle(tmp_path), tmp_path / TENSORS
    if kind == "garbage":
        path.write_bytes(b"no archive")
    elif kind == "packed":
        np.savez_compressed(path, pixels=np.zeros((1000, 1000)))
    elif kind == "pickled":
        np.savez(path, pixels=np.array([{}], dtype=object))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }"
            archive.writestr("pixels.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(RefusedError, match=r"holds no arrays|is compressed"):
        golden_of(rewrite_manifest(tmp_path, bundle.manifest.engines))
