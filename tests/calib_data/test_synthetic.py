"""The drawn data sets: the same bytes everywhere, labels that mean what is drawn, splits that share nothing, axes that change one thing."""

import hashlib
import io
import time
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from clipq.calib_data.dice import Dice
from clipq.calib_data.scenes import BACKGROUNDS, SHAPES, SIZE, UNSEEN_SHAPES, Scene, draw
from clipq.calib_data.synthetic import CLASSNAMES, KINDS, UNSEEN_KINDS, open_synthetic, picture, scene_of, usual_background
from clipq.errors import UsageError

COUNTS = {
    "scenes": 4000,
    "scenes:calibration": 2000,
    "scenes-near": 2000,
    "scenes-far": 2000,
    "scenes-noise": 2000,
    "scenes-shift": 2000,
    "scenes-spurious": 2000,
}
PINNED = {
    "scenes": "2eafd5ddb5968ff251778f03dd65f3215dd32faf333395c6d554c5ce0b370019",
    "scenes:calibration": "a69ea624b6f1c54258b7af793598f8a4df397056d586f7c00d8b281a14b9c217",
    "scenes-near": "9313477ac820a256374349c51f47e33bbe0349b50c45ac5447707091849c19e5",
    "scenes-far": "626d14a594dd7f9a392b51ca5efef5d46587169b46d4ae5a7f8c7c733c90d2c3",
    "scenes-noise": "a772f30e4ceccf915d0ab0d91ef5812418d758902e3ab3abbb4322f4e55aa68d",
    "scenes-shift": "116a5fe18c001a741e81a535e1a0bed9e4f588d66eb5afc581730791e8b4bb7f",
    "scenes-spurious": "a4aca672aa223c391a63e2e4154557c58b96e3eb3207232f768fa68634fe5ea8",
}


def _digest(name: str) -> str:
    digest = hashlib.sha256()
    for sample in open_synthetic(name).read([0, 1, 2, 3, 50, 1001, 1999]):
        digest.update(sample.data)
    return digest.hexdigest()


@pytest.mark.parametrize(("name", "digest"), PINNED.items())
def test_drawing_has_pinned_bytes(name, digest):
    """The embedded models were trained on exactly these pictures; another numpy or platform must not change one."""
    assert _digest(name) == digest


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_counts_labels_and_decoding(name, count):
    """Each set has its size, labels from the classes or -1, and images that PIL decodes to the size of the models."""
    source = open_synthetic(name)
    unlabelled = name in ("scenes-near", "scenes-far")
    assert len(source) == len(source.labels) == count
    assert source.classnames == (() if unlabelled else CLASSNAMES)
    samples = list(source.read(range(0, count, 97)))
    assert [sample.label for sample in samples] == source.labels[::97].tolist()
    assert len({sample.id for sample in samples}) == len(samples)
    decoded = Image.open(io.BytesIO(samples[0].data))
    assert (decoded.size, decoded.mode) == ((SIZE, SIZE), "RGB")


def test_positions_give_the_same_samples_as_the_whole():
    """Reading some positions gives what reading everything gives there."""
    source = open_synthetic("scenes")
    assert list(islice(source.read(), 6))[2::3] == list(source.read([2, 5]))


def test_ids_name_the_split_unless_it_is_test():
    """The canonical id leaves out the default split, and a split asked for wins over the one in the name."""
    assert open_synthetic("scenes").id == open_synthetic("scenes:test").id == "synthetic:scenes"
    assert open_synthetic("scenes:test", "calibration").id == "synthetic:scenes:calibration"


def test_splits_share_no_image():
    """Test, calibration and the part of train that the training uses have no picture in common."""
    seen = [{sample.data for sample in open_synthetic("scenes", split).read(range(1500))} for split in ("test", "calibration", "train")]
    assert [len(part) for part in seen] == [1500] * 3
    assert len(set.union(*seen)) == 4500


def test_order_mixes_classes_and_balances_them():
    """Any 60 neighbours hold every class once, so a limit of 60 n images stays balanced."""
    labels = open_synthetic("scenes").labels
    assert sorted(labels[:60]) == sorted(labels[600:660]) == list(range(60))


def test_unseen_kinds_hold_out_combinations_not_words():
    """Every texture, colour and shape is trained on; 12 of the 72 combinations are not."""
    assert (len(KINDS), len(UNSEEN_KINDS)) == (60, 12)
    assert not set(KINDS) & set(UNSEEN_KINDS)
    for part in range(3):
        assert {kind[part] for kind in KINDS} == {kind[part] for kind in UNSEEN_KINDS}
    assert not set(SHAPES) & set(UNSEEN_SHAPES)


def test_training_has_the_correlation_that_spurious_breaks():
    """About half of the shapes stand before their usual background in train and test, none in the spurious set."""
    for split in ("train", "test"):
        scenes = [scene_of(index % 60, f"scenes/{split}/{index}") for index in range(3000)]
        share = np.mean([scene.background == usual_background(scene.shape) for scene in scenes])
        assert 0.46 < share < 0.54
    kept = [np.array_equal(picture("scenes-spurious", "test", index)[1], picture("scenes", "test", index)[1]) for index in range(300)]
    assert np.mean(kept) < 0.2  # only where the background was unusual already and was drawn again


@pytest.mark.parametrize("variant", ["scenes-noise", "scenes-shift", "scenes-spurious"])
def test_robustness_sets_show_the_test_scenes_changed(variant):
    """Image i of an axis has the label of test image i, looks alike, and is not the same."""
    for index in range(0, 300, 7):
        assert picture(variant, "test", index)[0] == picture("scenes", "test", index)[0]
    pairs = [(picture(variant, "test", index)[1], picture("scenes", "test", index)[1]) for index in range(100)]
    changes = [np.abs(changed.astype(int) - plain).mean() for changed, plain in pairs]
    others = [np.abs(pairs[i][0].astype(int) - pairs[i - 30][1]).mean() for i in range(100)]
    assert 1 < np.mean(changes) < 0.8 * np.mean(others)


@pytest.mark.parametrize("shape", [*SHAPES, *UNSEEN_SHAPES])
def test_shape_is_drawn_at_its_place(shape):
    """A shape in the middle changes pixels there and leaves the corners to the background."""
    drawn = draw(Scene(shape, "red", "solid", "plain", 4, "place/9")).astype(int)
    other = draw(Scene(shape, "blue", "solid", "plain", 4, "place/9")).astype(int)
    changed = np.abs(drawn - other).max(axis=-1) > 8
    assert 60 < changed.sum() < 800
    assert not changed[:3].any()
    assert 12 < np.argwhere(changed).mean() < 28


def test_every_background_looks_different():
    """Six backgrounds under one key are six pictures."""
    assert len({draw(Scene("star", "red", "solid", name, 4, "k")).tobytes() for name in BACKGROUNDS}) == 6


def test_far_pictures_vary():
    """No two of 300 pictures of textures are alike, and few are nearly flat."""
    drawn = [picture("scenes-far", "test", index)[1] for index in range(300)]
    assert len({pixels.tobytes() for pixels in drawn}) == 300
    assert np.mean([pixels.std() < 2 for pixels in drawn]) < 0.1


@pytest.mark.parametrize(
    ("rest", "split", "near"), [("scene-near", None, "scenes-near"), ("scenes:tset", None, "test"), ("scenes", "calib", "calibration")]
)
def test_unknown_name_suggests_the_nearest(rest, split, near):
    """A wrong set or split is a usage error that names the nearest right one."""
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        open_synthetic(rest, split)


def test_memory_stays_flat():
    """Reading a set holds one image at a time."""
    tracemalloc.start()
    for _ in open_synthetic("scenes").read(range(600)):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_drawing_is_fast():
    """One picture takes a fraction of a millisecond; the bound leaves room for a busy machine."""
    began = time.process_time()
    for index in range(200):
        picture("scenes", "test", index)
    assert (time.process_time() - began) / 200 < 0.003


def test_dice_repeat_and_fill_their_range():
    """Dice depend on their key only, go on past their first block and reach both ends of a range."""
    first, second = Dice("key"), Dice("key")
    values = [first.between(3, 9) for _ in range(500)]
    assert values == [second.between(3, 9) for _ in range(500)]
    assert set(values) == set(range(3, 10))
    assert values != [Dice("other").between(3, 9) for _ in range(500)]
    assert 120 < Dice("key").field(100, 100).mean() < 135
