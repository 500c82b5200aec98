"""The data ids of natural shifts and spurious correlations: read from the layouts they are published in, refused with the way out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_protocol import check_protocol

from clipq.calib_data.imagenet import imagenet_classes, imagenet_templates, objectnet_classes
from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.errors import ClipqError, DataError, MissingDataError, UsageError

WNIDS = [known.wnid for known in imagenet_classes()]
R = [known.wnid for known in imagenet_classes() if known.in_r]
A = [known.wnid for known in imagenet_classes() if known.in_a]


def class_folders(root: Path, names: Iterable[str], images: int = 1) -> Path:
    """Write files of a few bytes, which no test decodes, into one folder per class."""
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            (root / name / f"{number}.jpg").write_bytes(f"{name} {number}".encode())
    return root


def refused(data_id: str, kind: type[ClipqError], *words: str) -> None:
    """Assert that a data id is refused with one line that holds these words."""
    with pytest.raises(kind) as caught:
        open_source(data_id)
    assert type(caught.value) is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)


def png(pixels: np.ndarray) -> bytes:
    """Return pixels (height, width, 3) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


# --- facts -------------------------------------------------------------------------------------------------------------


def test_classes_of_imagenet() -> None:
    """The classes stand in the order of their sorted wnids, 200 each in R and A, with names everyone knows by number."""
    assert sorted(WNIDS) == WNIDS
    assert [known.index for known in imagenet_classes()] == list(range(1000))
    assert (len(R), len(A)) == (200, 200)
    named = {0: "tench", 1: "goldfish", 134: "crane bird", 207: "Golden Retriever", 517: "construction crane", 999: "toilet paper"}
    assert {index: imagenet_classes()[index].name for index in named} == named
    assert (WNIDS[0], WNIDS[999]) == ("n01440764", "n15075141")


def test_templates_of_imagenet() -> None:
    """There are 80 templates, all different, each with one place for the name."""
    templates = imagenet_templates()
    assert (len(templates), len(set(templates))) == (80, 80)
    assert all(template.count("{c}") == 1 for template in templates)
    assert (templates[0], templates[-1]) == ("a bad photo of a {c}.", "a tattoo of the {c}.")


def test_classes_of_objectnet() -> None:
    """113 folders in sorted order; none of their ImageNet classes stands for two of them."""
    classes = objectnet_classes()
    indices = [index for known in classes for index in known.imagenet]
    assert len(classes) == 113
    assert [known.folder for known in classes] == sorted(known.folder for known in classes)
    assert len(indices) == len(set(indices))
    by_folder = {known.folder: known for known in classes}
    assert [imagenet_classes()[index].name for index in by_folder["alarm_clock"].imagenet] == ["analog clock", "digital clock"]
    assert by_folder["full_sized_towel"].name == "bath towel"
    assert [imagenet_classes()[index].name for index in by_folder["chair"].imagenet] == ["barber chair", "folding chair", "rocking chair"]


# --- ImageNet and its relatives -----------------------------------------------------------------------------------------


def test_imagenet_is_read_by_wnid(tmp_path: Path) -> None:
    """Labels are ImageNet's indices, names OpenAI's, templates the 80 of OpenAI."""
    class_folders(tmp_path / "val", WNIDS)
    source = open_source(f"imagenet:{tmp_path}/val")
    assert source.id == f"imagenet:{tmp_path}/val"
    assert source.labels.tolist() == list(range(1000))
    assert (source.classnames[207], source.templates) == ("Golden Retriever", imagenet_templates())
    assert [sample.id for sample in source.read([0, 999])] == ["n01440764/0.jpg", "n15075141/0.jpg"]
    check_protocol(source.id)


@pytest.mark.parametrize(("subset", "wnids"), [("r", R), ("a", A)])
def test_subset_of_imagenet(subset: str, wnids: list[str], tmp_path: Path) -> None:
    """A named subset takes its 200 classes, from a whole copy or one that has no others; the same ones as the shifted set has."""
    whole, part = class_folders(tmp_path / "whole", WNIDS), class_folders(tmp_path / "part", wnids)
    for root in (whole, part):
        source = open_source(f"imagenet:{root}:{subset}")
        assert source.id == f"imagenet:{root}:{subset}"
        assert [sample.id.split("/")[0] for sample in source.read()] == wnids
        assert source.classnames == open_source(f"imagenet-{subset}:{part}").classnames
    check_protocol(f"imagenet:{part}:{subset}")


@pytest.mark.parametrize(
    ("scheme", "folders"),
    [
        ("imagenet-r", R),
        ("imagenet-a", A),
        ("imagenet-sketch", WNIDS),
        ("imagenet-v2", WNIDS),
        ("imagenet-v2", [str(index) for index in range(1000)]),
    ],
)
def test_shifted_sets_are_read(scheme: str, folders: list[str], tmp_path: Path) -> None:
    """Each has its own classes only, in the order of ImageNet; numbered folders are not sorted as words."""
    class_folders(tmp_path / "set", folders)
    source = open_source(f"{scheme}:{tmp_path}/set")
    assert source.labels.tolist() == list(range(len(folders)))
    assert [sample.id.split("/")[0] for sample in source.read()] == folders
    assert len(source.classnames) == len(folders)
    check_protocol(source.id)


def test_templates_beside_the_images_win(tmp_path: Path) -> None:
    """One line in the file of templates is the single prompt."""
    class_folders(tmp_path, R)
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    assert open_source(f"imagenet-r:{tmp_path}").templates == ("a photo of a {c}.",)


def test_partial_copy_is_refused(tmp_path: Path) -> None:
    """Fewer classes are another task: the line counts them, names one, and says what to do."""
    root = class_folders(tmp_path / "part", WNIDS[:998])
    refused(f"imagenet:{root}", DataError, "998 of 1000", WNIDS[998], "and 1 more", "imagenet:PATH:r", "imagefolder:PATH")
    refused(f"imagenet-sketch:{root}", DataError, "only a part of ImageNet-Sketch", "Unpack")
    class_folders(tmp_path / "r", R[:199])
    refused(f"imagenet-r:{tmp_path}/r", DataError, "199 of 200", f"no {R[199]}")


def test_class_without_images_is_refused(tmp_path: Path) -> None:
    """An empty class folder is named by its class."""
    root = class_folders(tmp_path / "set", A)
    next((root / A[3]).iterdir()).unlink()
    refused(f"imagenet-a:{root}", DataError, "has no images", "199")


def test_unknown_folder_is_refused(tmp_path: Path) -> None:
    """A folder that is no class of the set is named: another data set, or another kind of id."""
    root = class_folders(tmp_path / "set", [*R, "n99999999"])
    refused(f"imagenet-r:{root}", DataError, "n99999999", "no class of ImageNet-R")
    refused(f"imagenet:{root}:r", DataError, "n99999999", "no class of ImageNet")
    whole = class_folders(tmp_path / "whole", WNIDS)
    refused(f"imagenet-r:{whole}", DataError, "n01440764", "799 more", "Check the kind of data id")


def test_wrong_level_is_told(tmp_path: Path) -> None:
    """The parent, a class folder and an unsorted folder each get the path that would be right."""
    root = class_folders(tmp_path / "data" / "val", WNIDS)
    refused(f"imagenet:{tmp_path}/data", UsageError, "one level deeper, in val", f"Give {root}")
    refused(f"imagenet:{root}/n01440764", UsageError, "one class of it", f"Give {root}.")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    refused(f"imagenet:{tmp_path}/flat", UsageError, "one folder per class", "n01440764")
    refused(f"imagenet:{tmp_path}/nowhere", MissingDataError, "nothing there")
    refused(f"imagenet:{root}:rr", UsageError, "subset", "'r'")


# --- ObjectNet ----------------------------------------------------------------------------------------------------------


def _objectnet(root: Path) -> Path:
    """Write a tiny ObjectNet: each picture green, inside a red border of two pixels, and one folder that ImageNet has no class for."""
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[2:-2, 2:-2] = (0, 255, 0)
    for folder in [*(known.folder for known in objectnet_classes()), "squeegee"]:
        (root / "images" / folder).mkdir(parents=True)
        (root / "images" / folder / "one.png").write_bytes(png(pixels))
    return root


def test_objectnet_loses_its_border(tmp_path: Path) -> None:
    """No red pixel reaches a model, not even by resizing; the same files as imagefolder: keep it, and the digests tell them apart."""
    root = _objectnet(tmp_path / "objectnet-1.0")
    source = open_source(f"objectnet:{root}")
    assert (len(source), len(source.classnames), source.classnames[0]) == (113, 113, "alarm clock")
    plain = Preprocess((8, 8), "shortest", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    (batch,) = batches(source, build_index(source), plain, batch_size=113)
    assert np.array_equal(batch.pixels, np.broadcast_to(np.array([0, 1, 0], np.float32)[:, None, None], (113, 3, 8, 8)))
    (root / "images" / "squeegee" / "one.png").unlink()
    (root / "images" / "squeegee").rmdir()
    folders = open_source(f"imagefolder:{root}/images")
    assert [sample.id for sample in folders.read()] == [sample.id for sample in source.read()]
    assert build_index(folders).sha256 == build_index(source).sha256
    assert build_index(folders).digest != build_index(source).digest
    check_protocol(f"objectnet:{root}/images")


def test_objectnet_layout_is_checked(tmp_path: Path) -> None:
    """The folder of the images is found below the one that is unpacked; a missing class and a foreign folder are told."""
    root = _objectnet(tmp_path / "objectnet-1.0")
    assert open_source(f"objectnet:{root}").id == f"objectnet:{root}/images"
    (root / "images" / "wok" / "one.png").unlink()
    refused(f"objectnet:{root}", DataError, "wok", "no images")
    (root / "images" / "wok").rmdir()
    refused(f"objectnet:{root}", DataError, "112 of 113", "no wok")
    refused(f"objectnet:{tmp_path}", UsageError, "no class folders of ObjectNet")


def test_border_of_a_tiny_image_is_unreadable(tmp_path: Path) -> None:
    """An image that is all border is counted as unreadable, not resized from nothing."""
    root = _objectnet(tmp_path / "objectnet-1.0")
    (root / "images" / "wok" / "one.png").write_bytes(png(np.zeros((4, 9, 3), np.uint8)))
    source = open_source(f"objectnet:{root}")
    (batch,) = batches(source, build_index(source), Preprocess((8, 8), "squash", "bicubic", (0.0,) * 3, (1.0,) * 3), batch_size=113)
    assert [(skipped.id, "all border" in skipped.reason) for skipped in batch.skipped] == [("wok/one.png", True)]


# --- Waterbirds ---------------------------------------------------------------------------------------------------------

BIRDS = [  # file, y, split, place
    ("1.Albatross/a.jpg", 1, 2, 1),
    ("1.Albatross/b.jpg", 1, 2, 0),
    ("2.Bunting/c.jpg", 0, 2, 0),
    ("2.Bunting/d.jpg", 0, 2, 1),
    ("2.Bunting/e.jpg", 0, 0, 0),
    ("2.Bunting/f.jpg", 0, 1, 1),
    ("2.Bunting/g.jpg", 0, 2, 0),
]


def _waterbirds(root: Path, rows: list[tuple[object, ...]] | None = None) -> Path:
    root.mkdir(parents=True)
    with (root / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        for number, (name, *rest) in enumerate(rows or BIRDS):
            table.writerow([number, name, *rest, "/o/ocean/00002082.jpg"])
            (root / str(name)).parent.mkdir(exist_ok=True)
            (root / str(name)).write_bytes(str(name).encode())
    return root


@pytest.mark.parametrize(("group", "files"), [("", "abcdg"), (":all", "abcdg"), (":common", "acg"), (":counter", "bd")])
def test_groups_of_waterbirds(group: str, files: str, tmp_path: Path) -> None:
    """Only the test split; common is land before land and water before water."""
    root = _waterbirds(tmp_path / "waterbirds_v1.0")
    source = open_source(f"waterbirds:{root}{group}")
    assert [Path(sample.id).stem for sample in source.read()] == list(files)
    assert [int(label) for label in source.labels] == [int(file in "ab") for file in files]
    assert source.classnames == ("landbird", "waterbird")
    assert source.templates == ("a photo of a {c}.",)
    assert source.id == f"waterbirds:{root}" + group.replace(":all", "")
    check_protocol(source.id)


def test_waterbirds_layout_is_checked(tmp_path: Path) -> None:
    """A missing table, column or image, a wrong value and a path that leads out are told."""
    root = _waterbirds(tmp_path / "birds")
    refused(f"waterbirds:{tmp_path}", UsageError, "no metadata.csv")
    refused(f"waterbirds:{root}:other", UsageError, "group of Waterbirds")
    (root / "1.Albatross" / "a.jpg").unlink()
    refused(f"waterbirds:{root}:common", DataError, "1 of 3 images", "a.jpg")
    (root / "metadata.csv").write_text("img_filename,y,split\na.jpg,0,2\n")
    refused(f"waterbirds:{root}", DataError, "no place")
    refused(f"waterbirds:{_waterbirds(tmp_path / 'three', [('a.jpg', 2, 2, 0)])}", DataError, "y '2'", "line 2")
    (root / "metadata.csv").write_text("img_filename,y,split,place\n../a.jpg,0,2,0\n")
    refused(f"waterbirds:{root}", DataError, "../a.jpg")


# --- CounterAnimal ------------------------------------------------------------------------------------------------------


def _animals(root: Path) -> Path:
    for folder in ("296 ice bear", "9 ostrich"):
        class_folders(root / "LAION-final" / folder, ["common-snow"], images=3)
        class_folders(root / "LAION-final" / folder, ["counter-grass"], images=2)
    (root / "LAION-final" / "imagenet_names.txt").write_text("0\ttench\n")
    return root


@pytest.mark.parametrize(("group", "each"), [("", 5), (":common", 3), (":counter", 2)])
def test_groups_of_counteranimal(group: str, each: int, tmp_path: Path) -> None:
    """Labels are the numbers of the folders, told apart from all 1,000 names; most classes have no image, which is no error here."""
    root = _animals(tmp_path)
    source = open_source(f"counteranimal:{root}{group}")
    assert source.labels.tolist() == [9] * each + [296] * each
    assert (len(source.classnames), source.classnames[9]) == (1000, "ostrich")
    assert source.templates == imagenet_templates()
    kinds = {"": "c", ":common": "common-snow", ":counter": "counter-grass"}
    assert all(sample.id.split("/")[1].startswith(kinds[group]) for sample in source.read())
    assert source.id == f"counteranimal:{root}/LAION-final{group}"
    check_protocol(source.id)


def test_counteranimal_layout_is_checked(tmp_path: Path) -> None:
    """A class without one of its groups, two folders of a class, an empty group and no class at all are told."""
    root = _animals(tmp_path / "animals") / "LAION-final"
    refused(f"counteranimal:{root}:easy", UsageError, "group of CounterAnimal")
    refused(f"counteranimal:{tmp_path}", UsageError, "no class folders of CounterAnimal", "296 ice bear")
    (root / "9 bird").mkdir()
    refused(f"counteranimal:{root}", DataError, "two folders", "class 9")
    (root / "9 bird").rename(root / "10 bird")
    refused(f"counteranimal:{root}", DataError, "10 bird", "common-BACKGROUND")
    (root / "10 bird" / "common-sky").mkdir()
    (root / "10 bird" / "counter-hand").mkdir()
    refused(f"counteranimal:{root}:counter", DataError, "no images of '10 bird'")
