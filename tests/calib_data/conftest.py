"""Small data sets made by code, one maker per layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipq.calib_data.preprocess import Preprocess

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def encode(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """Return an encoded image of noise; ``size`` is (width, height)."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode).save(stream, kind)
    return stream.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a tar file with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def image() -> Callable[..., bytes]:
    """Return the maker of encoded images."""
    return encode


@pytest.fixture
def tar_of() -> Callable[[Path, Mapping[str, bytes]], None]:
    """Return the maker of tar files."""
    return write_tar


@pytest.fixture
def make_wds(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of webdataset folders: labels per shard, class names, bytes that replace single images by position."""

    def make(
        shards: Sequence[Sequence[int]] = ((0, 1, 2), (0, 1, 2)),
        names: Sequence[str] = ("cat", "dog", "owl"),
        broken: Mapping[int, bytes] | None = None,
        split: str = "test",
    ) -> Path:
        folder, position = tmp_path / "wds", 0
        folder.mkdir(exist_ok=True)
        for number, labels in enumerate(shards):
            members: dict[str, bytes] = {}
            for label in labels:
                members[f"s{position:04d}.jpg"] = (broken or {}).get(position, encode(position))
                members[f"s{position:04d}.cls"] = str(label).encode()
                position += 1
            write_tar(folder / split / f"{number}.tar", members)
        (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
        return folder

    return make


@pytest.fixture
def make_imagefolder(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of class folders with images of some names."""

    def make(classes: Mapping[str, Sequence[str]] | None = None) -> Path:
        folder = tmp_path / "images"
        folder.mkdir()
        for name, files in (classes or {"cat": ["b.jpg", "a.png"], "dog": ["deep/c.jpg"]}).items():
            (folder / name).mkdir()
            for file in files:
                path = folder / name / file
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(encode(len(str(path)), kind="PNG" if file.endswith("png") else "JPEG"))
        return folder

    return make


@pytest.fixture
def make_parquet() -> Callable[..., None]:
    """Return a maker of parquet files as the hub lays them out."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def make(path: Path, labels: Sequence[int | None], names: Sequence[str] | None = ("cat", "dog"), *, rows_per_group: int = 2) -> None:
        images = [{"bytes": encode(row), "path": None} for row in range(len(labels))]
        table = pa.table(
            {
                "img": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "label": pa.array(labels, pa.int64()),
            }
        )
        if names is not None:
            features = {"img": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, row_group_size=rows_per_group)

    return make


@pytest.fixture
def preprocess() -> Preprocess:
    """Return a small preprocessing."""
    return Preprocess((16, 16), "shortest", "bicubic", (0.48, 0.45, 0.40), (0.26, 0.26, 0.27))


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of the shared photographs, or skip."""
    if not SHARED.is_dir():
        pytest.skip("the shared photographs are not here")
    return SHARED
