"""Images with captions: CLIP_benchmark's webdataset, CSV, Karpathy's JSON and the drawn scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipq.calib_data.captions import CAPTIONED, open_captioned
from clipq.calib_data.scene_captions import captions_of
from clipq.calib_data.table import open_source
from clipq.errors import ClipqError, DataError, MissingDataError, UsageError


def refused(data_id: str, kind: type[ClipqError], *words: str) -> None:
    """Assert that a data id is refused with one line that holds these words."""
    with pytest.raises(kind) as caught:
        open_captioned(data_id)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.fixture
def make_retrieval(tmp_path: Path, image: Callable[..., bytes], tar_of: Callable[..., None]) -> Callable[..., Path]:
    """Return a maker of webdataset folders with captions, one tar per list of captions."""

    def make(*shards: list[bytes], kind: str | None = "retrieval") -> Path:
        folder, position = tmp_path / "wds", 0
        for number, texts in enumerate(shards):
            members: dict[str, bytes] = {}
            for text in texts:
                members[f"s{position}.txt"] = text
                members[f"s{position}.webp"] = image(position, kind="WEBP")
                position += 1
            tar_of(folder / "test" / f"{number}.tar", members)
        (folder / "test" / "nshards.txt").write_text(str(len(shards)))
        if kind is not None:
            (folder / "dataset_type.txt").write_text(f"{kind}\n")
        return folder

    return make


@pytest.fixture
def photos(tmp_path: Path, image: Callable[..., bytes]) -> Path:
    """Return a folder with two images, one of them deeper."""
    for number, name in enumerate(("a.jpg", "val/b.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image(number))
    return tmp_path


def test_webdataset_captions_stand_beside_their_images(make_retrieval: Callable[..., Path], image: Callable[..., bytes]) -> None:
    """One caption per line, several per image, across shards; without a type the layout is enough."""
    for kind in ("retrieval", None):
        folder = make_retrieval([b"a cat\n a dog \n\n", b"an owl"], ["zwei Äpfel\r\n".encode()], kind=kind)
        (folder / "dataset_type.txt").unlink(missing_ok=kind is None)
        found = open_captioned(f"wds:{folder}:test")
        assert found.source.id == f"wds:{folder}:test"
        assert list(found.captions) == [("a cat", "a dog"), ("an owl",), ("zwei Äpfel",)]
        assert [sample.data for sample in found.source.read()] == [image(number, kind="WEBP") for number in range(3)]


def test_webdataset_without_captions(make_retrieval: Callable[..., Path]) -> None:
    """Classification sets, empty captions and text in another encoding."""
    refused(f"wds:{make_retrieval([b'a'], kind='classification')}", UsageError, "not for retrieval", "Use it with --data")
    refused(f"wds:{make_retrieval([b'a', b' '])}", DataError, "1 images", "0.tar/s1.webp", "no caption")
    latin = make_retrieval(["café".encode("latin-1")])
    refused(f"wds:{latin}", DataError, "not UTF-8", "s0.txt")


def test_csv_has_a_row_per_caption(photos: Path) -> None:
    """Rows of an image may stand apart; other columns and quoted commas do not disturb."""
    (photos / "list.csv").write_text('number,image,caption\n1,val/b.jpg,"red, round"\n2,a.jpg,a cat\n3,val/b.jpg,a ball\n')
    for data_id in (f"captions:{photos}/list.csv", f"captions:{photos}/list.csv@{photos}"):
        found = open_captioned(data_id)
        assert [sample.id for sample in found.source.read()] == ["val/b.jpg", "a.jpg"]
        assert list(found.captions) == [("red, round", "a ball"), ("a cat",)]
        assert open_captioned(found.source.id).source.id == found.source.id == f"captions:{photos}/list.csv@{photos}"


def _karpathy(**change: Any) -> str:
    images = [
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a cat"}, {"raw": "a cat sits"}]},
        {"filepath": "val", "filename": "b.jpg", "split": "val", "sentences": [{"raw": "a ball"}], **change},
    ]
    return json.dumps({"images": images})


def test_karpathy_splits(photos: Path) -> None:
    """The test split by default, another by name; a folder may stand beside the file name."""
    (photos / "dataset.json").write_text(_karpathy())
    assert list(open_captioned(f"captions:{photos}/dataset.json").captions) == [("a cat", "a cat sits")]
    found = open_captioned(f"captions:{photos}/dataset.json@{photos}:val")
    assert [sample.id for sample in found.source.read()] == ["val/b.jpg"]
    assert open_captioned(found.source.id).captions == found.captions == [("a ball",)]
    refused(f"captions:{photos}/dataset.json@{photos}:tset", UsageError, "Did you mean 'test'?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image;caption\na.jpg;a cat\n", ["other columns", "image and caption"]),
        ("image,caption\n", ["no captions"]),
        ("image,caption\nnone.jpg,a cat\n", ["1 of 1 images", "no none.jpg"]),
        ("image,caption\n../a.jpg,a cat\n", ["outside its folder"]),
        ("image,caption\na.jpg,\n", ["an empty caption", "a.jpg"]),
    ],
)
def test_a_wrong_csv_is_told(photos: Path, text: str, words: list[str]) -> None:
    """What is wrong with it, in one line."""
    (photos / "list.csv").write_text(text)
    refused(f"captions:{photos}/list.csv", DataError, *words)


def test_what_is_no_caption_file(photos: Path) -> None:
    """Absent files, other kinds, broken JSON, unknown kinds and names."""
    refused(f"captions:{photos}/none.csv", MissingDataError, "none.csv")
    refused(f"captions:{photos}/none.csv@{photos}", MissingDataError, "none.csv")
    refused(f"captions:{photos}/a.jpg", UsageError, "holds no captions")
    for text in ("{", "{}", _karpathy(sentences=3)):
        (photos / "bad.json").write_text(text)
        refused(f"captions:{photos}/bad.json", DataError, "cannot read")
    refused("imagefolder:x", UsageError, "kind of data id with captions")
    refused("synthetic:scenes-caption", UsageError, "Did you mean 'scenes-captions'?")
    for scheme in CAPTIONED:
        refused(f"{scheme}:", UsageError, "nothing follows the colon")


def test_captioned_scenes_are_the_scenes() -> None:
    """The same pixels as synthetic:scenes, each with two captions of its class, place and background; the text is pinned."""
    found = open_captioned("synthetic:scenes-captions")
    scenes = open_source("synthetic:scenes")
    assert [sample.data for sample in found.source.read([0, 7, 999])] == [sample.data for sample in scenes.read([0, 7, 999])]
    assert (len(found.source), set(found.source.labels.tolist()), found.source.classnames) == (1000, {-1}, ())
    assert [captions_of(index)[1] for index in (0, 59, 999)] == [
        "a solid red square at the bottom on a gradient background.",
        "a checkered purple ring at the bottom right on a banded background.",
        "a striped purple cross on the left on a banded background.",
    ]
    for index in (0, 123, 999):
        name = scenes.classnames[index % len(scenes.classnames)]
        assert all(name in caption for caption in found.captions[index])
        assert found.captions[index] == captions_of(index)
    assert len(set(found.captions)) > 700
