"""``corrupt-synth:``: the same images by id, label and hash, other pixels, another digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipq.calib_data.corrupted import CorruptedSource
from clipq.calib_data.corruptions.table import corrupt
from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches, decode
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import refuse_overlap
from clipq.calib_data.table import open_source
from clipq.errors import DataError, UsageError


def test_source_shows_the_same_images(make_imagefolder: Callable[..., Path]) -> None:
    """Ids, labels, names, bytes and positions are those of the images as they are; only the id of the data tells."""
    folder = make_imagefolder()
    inner, source = open_source(f"imagefolder:{folder}"), open_source(f"corrupt-synth:fog/3:imagefolder:{folder}")
    assert source.id == f"corrupt-synth:fog/3:{inner.id}"
    assert (source.classnames, source.templates, len(source)) == (inner.classnames, inner.templates, len(inner))
    assert np.array_equal(source.labels, inner.labels)
    pairs = list(zip(inner.read([0, 2]), source.read([0, 2]), strict=True))
    assert [(plain.id, plain.data) for plain, _ in pairs] == [(changed.id, changed.data) for _, changed in pairs]
    assert {changed.change.name for _, changed in pairs if changed.change} == {"corrupt-synth/1:fog/3"}


def test_digests_differ_and_hashes_stay(make_imagefolder: Callable[..., Path]) -> None:
    """Stores of the images, of each corruption and of each severity have keys of their own; the leak check still finds every image."""
    inner = open_source(f"imagefolder:{make_imagefolder()}")
    plain = build_index(inner)
    indices = [build_index(CorruptedSource(inner, name, severity)) for name in ("fog", "snow") for severity in (1, 5)]
    assert len({plain.digest, *(index.digest for index in indices)}) == 5
    assert all(index.sha256 == plain.sha256 for index in indices)
    with pytest.raises(DataError, match="calibration"):
        refuse_overlap({plain.sha256[0]}, indices[0])


def test_index_needs_no_second_reading(make_imagefolder: Callable[..., Path]) -> None:
    """The index made from that of the images is the one made by reading them."""
    inner = open_source(f"imagefolder:{make_imagefolder()}")
    source = CorruptedSource(inner, "frost", 2)
    made, read = source.index_from(build_index(inner, limit=2, seed=1)), build_index(source, limit=2, seed=1)
    assert (made.data_id, made.ids, made.sha256, made.digest) == (read.data_id, read.ids, read.sha256, read.digest)
    assert np.array_equal(made.positions, read.positions)


@pytest.mark.parametrize("workers", [1, 5])
def test_workers_corrupt_what_the_model_would_see(make_wds: Callable[..., Path], preprocess: Preprocess, workers: int) -> None:
    """Pixels are those of the resized and cropped image, corrupted under its id, then normalised, with any number of threads."""
    inner = open_source(f"wds:{make_wds([[0, 1, 2] * 7, [2, 1, 0] * 5])}")
    source = CorruptedSource(inner, "gaussian_noise", 3)
    found = np.concatenate([batch.pixels for batch in batches(source, build_index(source), preprocess, batch_size=8, workers=workers)])
    expected = [corrupt(preprocess.pixels_u8(decode(sample.data)), "gaussian_noise", 3, sample.id) for sample in inner.read()]
    assert np.array_equal(found, preprocess.normalise(np.stack(expected)))


def test_split_goes_to_the_images(make_wds: Callable[..., Path]) -> None:
    """The split of the inner id is kept, and one that is asked for overrides it."""
    folder = make_wds()
    make_wds(split="train", shards=[[0, 1]], names=("cat", "dog"))
    assert len(open_source(f"corrupt-synth:fog/1:wds:{folder}:train")) == 2
    assert open_source(f"corrupt-synth:fog/1:wds:{folder}", split="train").id == f"corrupt-synth:fog/1:wds:{folder}:train"


@pytest.mark.parametrize(
    ("data_id", "told"),
    [
        ("corrupt-synth:fogg/1:synthetic:scenes", "Did you mean 'fog'"),
        ("corrupt-synth:fog/6:synthetic:scenes", "severity of fog"),
        ("corrupt-synth:fog/0:synthetic:scenes", "severity of fog"),
        ("corrupt-synth:fog:synthetic:scenes", "NAME/SEVERITY:DATA"),
        ("corrupt-synth:fog/x:synthetic:scenes", "NAME/SEVERITY:DATA"),
        ("corrupt-synth:fog/1:", "NAME/SEVERITY:DATA"),
        ("corrupt-synth:fog/1:corrupt-synth:snow/1:synthetic:scenes", "corrupted already"),
        ("corrupt-synth:fog/1:nowhere:scenes", "kind of data id"),
    ],
)
def test_wrong_data_ids_are_told(data_id: str, told: str) -> None:
    """Each slip has its own sentence."""
    with pytest.raises(UsageError, match=told):
        open_source(data_id)
