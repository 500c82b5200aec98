"""The index of a data set: sampling, hashes, digest; and the calibration list with its leak check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.calib_data.index import DataIndex, build_index, choose_positions
from clipq.calib_data.sampling import read_calibration_list, refuse_overlap, write_calibration_list
from clipq.calib_data.source import Sample
from clipq.calib_data.table import open_source
from clipq.errors import DataError, UsageError
from clipq.files import sha256_bytes

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


class ListSource:
    """A source of given samples."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.id, self.classnames, self.templates = "list", ("a", "b", "c"), ("{c}",)
        self.samples = samples
        self.labels = np.asarray([sample.label for sample in samples], np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        return iter([self.samples[position] for position in (range(len(self)) if positions is None else positions)])


def index_of(n: int, *, limit: int | None = None, seed: int = 0) -> DataIndex:
    """Return the index of n short samples."""
    return build_index(ListSource([Sample(f"i{k}", k % 3, bytes([k])) for k in range(n)]), limit=limit, seed=seed)


@given(LABELS, st.integers(1, 80), st.integers(0, 3), st.sampled_from(["random", "balanced"]))
def test_positions_are_ascending_unique_and_repeatable(labels: list[int], limit: int, seed: int, sampling: str) -> None:
    """A choice has the size asked for, is a set in order, and the seed alone decides it."""
    array = np.asarray(labels, np.int64)
    chosen = choose_positions(array, limit=limit, seed=seed, sampling=sampling)
    assert len(chosen) == min(limit, len(labels))
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < len(labels)
    np.testing.assert_array_equal(chosen, choose_positions(array, limit=limit, seed=seed, sampling=sampling))


@given(LABELS, st.integers(1, 60), st.integers(0, 3))
def test_balanced_is_as_even_as_the_classes_allow(labels: list[int], limit: int, seed: int) -> None:
    """No class has two images more than another that still has unused ones."""
    chosen = choose_positions(np.asarray(labels, np.int64), limit=limit, seed=seed, sampling="balanced")
    taken, there = Counter(np.asarray(labels)[chosen].tolist()), Counter(labels)
    unfinished = [taken[label] for label in there if taken[label] < there[label]]
    assert not unfinished or max(taken.values()) <= min(unfinished) + 1


def test_random_differs_by_seed() -> None:
    """Another seed chooses other images, and every image is chosen about equally often."""
    labels = np.zeros(20, np.int64)
    choices = [choose_positions(labels, limit=5, seed=seed, sampling="random") for seed in range(400)]
    assert len({tuple(choice) for choice in choices}) > 300
    counts = np.bincount(np.concatenate(choices), minlength=20)
    assert counts.min() > 60
    assert counts.max() < 140


def test_wrong_choices_are_refused() -> None:
    """A limit below 1, an unknown sampling and balance without labels are one line each."""
    labels = np.asarray([0, 1, -1], np.int64)
    with pytest.raises(UsageError, match="found 0; expected at least 1"):
        choose_positions(labels, limit=0, seed=0, sampling="random")
    with pytest.raises(UsageError, match="Did you mean 'balanced'"):
        choose_positions(labels, limit=1, seed=0, sampling="balansed")
    with pytest.raises(DataError, match="balanced sampling needs labels"):
        choose_positions(labels, limit=1, seed=0, sampling="balanced")


def test_index_describes_the_chosen_images(make_wds: Callable[..., Path]) -> None:
    """Ids, labels and hashes are those of the samples at the positions."""
    source = open_source(f"wds:{make_wds(shards=((0, 1, 2, 0), (1, 2, 0, 1)))}")
    index = build_index(source, limit=5, seed=3)
    samples = list(source.read(index.positions.tolist()))
    assert len(index) == 5
    assert index.data_id == source.id
    assert index.ids == tuple(sample.id for sample in samples)
    assert index.labels.tolist() == [sample.label for sample in samples]
    assert index.sha256 == tuple(sha256_bytes(sample.data) for sample in samples)


def test_digest_is_over_the_lines() -> None:
    """The digest is the hash of the documented lines."""
    index = index_of(3)
    lines = "".join(f"{i}\t{h}\t{k}\n" for i, h, k in zip(index.ids, index.sha256, index.labels, strict=True))
    assert index.digest == sha256_bytes(lines.encode())
    assert index.digest == index_of(3).digest


@pytest.mark.parametrize("changed", [Sample("x", 0, b"0"), Sample("i0", 1, b"0"), Sample("i0", 0, b"1")])
def test_digest_sees_every_change(changed: Sample) -> None:
    """Another id, label or byte gives another digest."""
    assert build_index(ListSource([changed])).digest != build_index(ListSource([Sample("i0", 0, b"0")])).digest


def test_duplicate_ids_are_refused(make_imagefolder: Callable[..., Path]) -> None:
    """An image that stands twice in a list is named."""
    folder = make_imagefolder({"cat": ["a.jpg", "b.jpg"]})
    (folder / "list.txt").write_text("cat/a.jpg 0\ncat/b.jpg 0\ncat/a.jpg 0\n")
    with pytest.raises(DataError, match=r"share the id 'cat/a\.jpg'") as caught:
        build_index(open_source(f"imglist:{folder}/list.txt"))
    assert caught.value.exit_code == 1


def test_calibration_list_round_trip(tmp_path: Path) -> None:
    """Ids with commas, quotes and line breaks survive."""
    index = build_index(ListSource([Sample(name, 0, name.encode()) for name in ("a,b", 'say "x"', "two\nlines", "ü")]))
    path = tmp_path / "calibration.csv"
    write_calibration_list(path, index)
    assert path.read_text().splitlines()[0] == "image_id,sha256"
    assert read_calibration_list(path) == dict(zip(index.ids, index.sha256, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a calibration list"),
        ("id,hash\n", "not a calibration list"),
        ("image_id,sha256\na,123\n", "wrong row 2"),
        ("image_id,sha256\na\n", "wrong row 2"),
    ],
)
def test_a_broken_calibration_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """A list that is not one is refused, so that the leak check cannot pass by accident."""
    path = tmp_path / "calibration.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_calibration_list(path)
    with pytest.raises(DataError, match="cannot read"):
        read_calibration_list(tmp_path / "none.csv")


def test_overlap_is_refused_by_content() -> None:
    """An evaluation image that was calibrated on is found by its bytes, whatever it is called, and the first are named."""
    evaluation = index_of(10)
    refuse_overlap([sha256_bytes(b"other")], evaluation)
    with pytest.raises(DataError) as caught:
        refuse_overlap([sha256_bytes(bytes([k])) for k in range(2, 7)], evaluation)
    line = str(caught.value)
    assert line.startswith("5 of 10 images of list were used for calibration; found i2, i3, i4, …; expected none.")
    assert "Evaluate on another split" in line
    assert caught.value.exit_code == 1
