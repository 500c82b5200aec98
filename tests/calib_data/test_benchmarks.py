"""The data ids of published benchmarks: read from their own layouts, and refused with the way out where something is wrong."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_protocol import check_protocol

from clipq.calib_data.cifar_names import CIFAR10, CIFAR100, TEMPLATES
from clipq.calib_data.source import DEFAULT_TEMPLATES
from clipq.calib_data.table import open_source
from clipq.errors import ClipqError, DataError, MissingDataError, RefusedError, UsageError

RNG = np.random.default_rng(0)


def refused(data_id: str, kind: type[ClipqError], *words: str) -> None:
    """Assert that a data id is refused with one line that holds these words."""
    with pytest.raises(kind) as caught:
        open_source(data_id)
    assert type(caught.value) is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)


def _records(labels: list[int], before: int = 0) -> tuple[np.ndarray, bytes]:
    """Return images uint8 (n, 32, 32, 3) and their binary form: other label bytes, the label, three colour planes."""
    images = RNG.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    packed = [bytes(before) + bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in zip(labels, images, strict=True)]
    return images, b"".join(packed)


def _decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


# --- CIFAR ---


@pytest.mark.parametrize("parent", [True, False])
def test_cifar10_is_read_from_the_binary_version(tmp_path: Path, *, parent: bool) -> None:
    """Pixels, labels, names and prompts, whether the folder or the one above it is named."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images, packed = _records([*range(10), 3])
    (folder / "test_batch.bin").write_bytes(packed)
    source = open_source(f"cifar10:{tmp_path if parent else folder}")
    assert source.id == f"cifar10:{folder}:test"
    assert (source.classnames, source.templates) == (CIFAR10, TEMPLATES)
    samples = list(source.read())
    assert [sample.label for sample in samples] == source.labels.tolist() == [*range(10), 3]
    assert all((_decoded(sample.data) == image).all() for sample, image in zip(samples, images, strict=True))
    assert list(source.read([2, 10])) == [samples[2], samples[10]]
    check_protocol(source.id)


def test_cifar10_train_spans_five_files(tmp_path: Path) -> None:
    """The training images come file by file; positions across files give the same samples."""
    parts = []
    for number in range(1, 6):
        images, packed = _records([(number * 2 + shift) % 10 for shift in range(2)])
        (tmp_path / f"data_batch_{number}.bin").write_bytes(packed)
        parts.append(images)
    (tmp_path / "test_batch.bin").write_bytes(packed)
    source = open_source(f"cifar10:{tmp_path}:train")
    everything = list(source.read())
    assert source.labels.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert all((_decoded(sample.data) == image).all() for sample, image in zip(everything, np.concatenate(parts), strict=True))
    assert list(source.read([1, 2, 9])) == [everything[1], everything[2], everything[9]]
    check_protocol(source.id)
    refused(f"cifar10:{tmp_path}:trian", UsageError, "Did you mean 'train'?")


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    """The second of two label bytes counts."""
    (tmp_path / "cifar-100-binary").mkdir()
    images, packed = _records(list(range(100)), before=1)
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(packed)
    source = open_source(f"cifar100:{tmp_path}")
    assert source.labels.tolist() == list(range(100))
    assert source.classnames == CIFAR100
    assert (_decoded(next(source.read([57])).data) == images[57]).all()


def test_pickled_cifar_is_refused_unread(tmp_path: Path) -> None:
    """The Python version would run code: exit code 5, and the line names the download that is read."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": []}))
    for path in (tmp_path, folder):
        refused(f"cifar10:{path}", RefusedError, "pickled", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz")
    assert RefusedError.exit_code == 5


def test_cifar_that_is_not_whole(tmp_path: Path) -> None:
    """An empty folder says what to download; a cut file and a label out of range are named."""
    refused(f"cifar10:{tmp_path}", MissingDataError, "no cifar10", "cifar-10-binary.tar.gz")
    refused(f"cifar100:{tmp_path}/none", MissingDataError, "no data set")
    _, packed = _records(list(range(10)))
    (tmp_path / "test_batch.bin").write_bytes(packed[:-1])
    refused(f"cifar10:{tmp_path}", DataError, "not whole", f"found {10 * 3073 - 1} bytes")
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + packed[1:])
    refused(f"cifar10:{tmp_path}", DataError, "label outside range", "found 10")
    refused(f"cifar10:{tmp_path}:train", MissingDataError, "data_batch_1.bin")


def test_names_of_cifar_are_in_the_order_of_its_labels() -> None:
    """Both sets number their classes alphabetically."""
    assert list(CIFAR10) == sorted(set(CIFAR10))
    assert list(CIFAR100) == sorted(set(CIFAR100))
    assert (len(CIFAR10), len(CIFAR100), len(set(TEMPLATES))) == (10, 100, 18)


# --- CIFAR-10-C ---


def _corrupted(folder: Path, n: int = 10) -> np.ndarray:
    images = RNG.integers(0, 256, (5 * n, 32, 32, 3), np.uint8)
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.tile(np.arange(n) % 10, 5).astype(np.uint8))
    return images


def test_cifar_c_takes_the_images_of_one_severity(tmp_path: Path) -> None:
    """Severity s stands in the s-th fifth of the array, with the labels of its images."""
    images = _corrupted(tmp_path)
    for severity in (1, 3, 5):
        source = open_source(f"cifar10-c:{tmp_path}:fog/{severity}")
        assert source.id == f"cifar10-c:{tmp_path}:fog/{severity}"
        samples = list(source.read())
        own = images[(severity - 1) * 10 : severity * 10]
        assert all((_decoded(sample.data) == image).all() for sample, image in zip(samples, own, strict=True))
        assert [sample.label for sample in samples] == list(range(10))
        assert samples[0].id == f"fog/{severity}/000000.ppm"
        check_protocol(source.id)


def test_cifar_c_bad_input(tmp_path: Path) -> None:
    """Severities, names, forms and pickles that are wrong, each told in one line."""
    refused(f"cifar10-c:{tmp_path}:fog/1", MissingDataError, "labels.npy")
    _corrupted(tmp_path)
    for text in ("fog", "fog/0", "fog/6", "fog/x", "/1"):
        refused(f"cifar10-c:{tmp_path}:{text}", UsageError, "NAME/SEVERITY")
    refused(f"cifar10-c:{tmp_path}:fig/1", UsageError, "Did you mean 'fog'?")
    np.save(tmp_path / "fog.npy", np.zeros((50, 3, 32, 32), np.uint8))
    refused(f"cifar10-c:{tmp_path}:fog/1", DataError, "do not fit", "(50, 3, 32, 32)")
    np.save(tmp_path / "fog.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(f"cifar10-c:{tmp_path}:fog/1", RefusedError, "pickled")
    (tmp_path / "fog.npy").write_bytes(pickle.dumps([1]))
    refused(f"cifar10-c:{tmp_path}:fog/1", RefusedError, "pickled")
    (tmp_path / "fog.npy").write_bytes(b"\x93NUMPY\x01\x00")
    refused(f"cifar10-c:{tmp_path}:fog/1", DataError, "cannot read")


# --- OpenOOD and plain folders ---


@pytest.fixture
def openood(tmp_path: Path, image: Callable[..., bytes]) -> Path:
    """Return an OpenOOD folder with two large sets, textures among the classic ones, and CIFAR-10 as ID."""
    lists = {
        "imagenet/test_imagenet": [f"imagenet_1k/val/a.jpg {label}" for label in range(1000)],
        "imagenet200/test_imagenet200": ["imagenet_1k/val/a.jpg 0", "imagenet_1k/val/a.jpg 1"],
        "imagenet/test_ninco": ["ninco/x/a.jpg -1", "ninco/y/b.jpg -1"],
        "imagenet/test_textures": ["texture/dotted/a.jpg -1"],
        "imagenet/test_ssb_hard": ["ssb_hard/n1/a.jpg -1"],
        "cifar10/test_cifar10": [f"cifar10/test/{name}/a.jpg {label}" for label, name in enumerate(CIFAR10)],
        "cifar10/test_cifar100": ["cifar100/test/apple/a.jpg 3"],
    }
    for name, lines in lists.items():
        file = tmp_path / "benchmark_imglist" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        kind = "images_classic" if name.startswith("cifar10") or "texture" in name else "images_largescale"
        for number, line in enumerate(lines[:10] if "ssb" not in name else []):
            path = tmp_path / kind / line.split()[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(number))
    return tmp_path


def test_openood_lists_find_their_images(openood: Path, image: Callable[..., bytes]) -> None:
    """Large and classic images, with and without the prefix of the list's file."""
    for name in ("imagenet/ninco", "imagenet/test_ninco", "imagenet/test_ninco.txt"):
        source = open_source(f"openood:{openood}:{name}")
        assert source.id == f"openood:{openood}:imagenet/test_ninco"
        assert [(sample.id, sample.label, sample.data) for sample in source.read()] == [
            ("ninco/x/a.jpg", -1, image(0)),
            ("ninco/y/b.jpg", -1, image(1)),
        ]
    assert len(open_source(f"openood:{openood}:imagenet/textures")) == 1
    check_protocol(f"openood:{openood}:imagenet/ninco")


def test_openood_id_lists_have_class_names(openood: Path) -> None:
    """CIFAR-10 can be classified; foreign labels and benchmarks without names make OOD data."""
    known = open_source(f"openood:{openood}:cifar10/cifar10")
    assert (known.classnames, known.templates, known.labels.tolist()) == (CIFAR10, TEMPLATES, list(range(10)))
    large = open_source(f"openood:{openood}:imagenet/imagenet")
    assert (len(large.classnames), large.classnames[0], len(large.templates)) == (1000, "tench", 80)
    for name in ("cifar10/cifar100", "imagenet200/imagenet200"):
        other = open_source(f"openood:{openood}:{name}")
        assert (other.classnames, other.templates, set(other.labels.tolist())) == ((), DEFAULT_TEMPLATES, {-1})


def test_openood_says_what_is_missing(openood: Path) -> None:
    """No list, no image at all, or some images: each has its own line."""
    refused(f"openood:{openood}:imagenet/nincu", MissingDataError, "no list imagenet/nincu", "Did you mean imagenet/test_ninco?")
    refused(f"openood:{openood}:imagenet/ssb_hard", MissingDataError, "no image of", "images_largescale")
    (openood / "images_largescale/ninco/y/b.jpg").unlink()
    refused(f"openood:{openood}:imagenet/ninco", DataError, "1 of 2 images", "no ninco/y/b.jpg")
    refused(f"openood:{openood}/none:imagenet/ninco", MissingDataError, "no data set")
    for text in (str(openood), f"{openood}:ninco", f"{openood}:../x"):
        refused(f"openood:{text}", UsageError, "BENCHMARK/LIST")


def test_folder_takes_images_at_any_depth(tmp_path: Path, image: Callable[..., bytes]) -> None:
    """Folders mean nothing: no labels, no names, sorted by path, other files left out."""
    refused(f"folder:{tmp_path}", DataError, "no images")
    for name in ("b/deep/c.png", "a.jpg", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image(len(name)))
    source = open_source(f"folder:{tmp_path}")
    assert [sample.id for sample in source.read()] == ["a.jpg", "b/deep/c.png"]
    assert (source.labels.tolist(), source.classnames, source.id) == ([-1, -1], (), f"folder:{tmp_path}")
    check_protocol(source.id)
    refused(f"folder:{tmp_path}/none", MissingDataError, "no data set")
