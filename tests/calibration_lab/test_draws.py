"""Draws and their pixels: nested, repeatable, never a test image, decoded once and as the pipeline decodes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.calibration_lab.draws import describe_pool, draw_pool
from clipq.calibration_lab.options import LabOptions
from clipq.calibration_lab.pixels import Decoder
from clipq.errors import DataError, UsageError
from clipq.files import sha256_json

PREPROCESS = Preprocess((16, 16), "shortest", "bicubic", (0.5,) * 3, (0.25,) * 3)
CALIBRATION = "synthetic:scenes:calibration"
OPTIONS = LabOptions((CALIBRATION,), "synthetic:scenes", calib_n=(16, 4, 4), seeds=3, seed=5)


def test_draws_are_those_of_an_export_with_the_same_seed() -> None:
    """Each draw has the images that ``clipq-export --calib-n N --seed S`` would take, and a smaller one is part of the larger."""
    pool = draw_pool(CALIBRATION, OPTIONS, [])
    assert list(pool.rows) == [(4, 5), (4, 6), (4, 7), (16, 5), (16, 6), (16, 7)]
    for (n, seed), rows in pool.rows.items():
        expected = build_index(pool.source, limit=n, seed=seed)
        assert [pool.index.ids[row] for row in rows] == list(expected.ids)
        assert pool.digest(rows) == sha256_json(list(expected.sha256))
    assert all(set(pool.rows[4, seed]) < set(pool.rows[16, seed]) for seed in OPTIONS.draws)


def test_what_draws_share_by_a_loop() -> None:
    """The mean share of images that two draws have in common; all of them where the source has no more."""
    source = open_source(CALIBRATION)
    options = replace(OPTIONS, calib_n=(500, len(source)))
    pool = draw_pool(CALIBRATION, options, [])
    sets = [set(pool.rows[500, seed].tolist()) for seed in options.draws]
    assert pool.shared(500) == pytest.approx(np.mean([len(one & other) / 500 for one, other in combinations(sets, 2)]))
    assert pool.shared(len(source)) == 1.0
    readable = np.ones(len(pool.index), np.bool_)
    readable[pool.rows[500, 5][0]] = False
    said = describe_pool(pool, readable, options)
    assert said["draws"][0] == {"n": 500, "seed": 5, "images": 499, "sha256": pool.digest(pool.rows[500, 5][1:])}
    assert said["skipped"] == [pool.index.ids[pool.rows[500, 5][0]]]


def test_more_images_than_there_are() -> None:
    """A number that the source cannot give is refused, with what it has."""
    with pytest.raises(UsageError, match=r"found 2001; expected at most 2000"):
        draw_pool(CALIBRATION, replace(OPTIONS, calib_n=(16, 2001)), [])


def test_a_drawn_image_is_never_a_test_image() -> None:
    """One drawn image among the test images ends the run."""
    pool = draw_pool(CALIBRATION, OPTIONS, [build_index(open_source("synthetic:scenes"), limit=50)])
    tested = build_index(open_source(CALIBRATION), limit=4, seed=6)
    with pytest.raises(DataError, match="4 of 4 images of synthetic:scenes:calibration were used for calibration"):
        draw_pool(CALIBRATION, OPTIONS, [tested])
    assert not set(pool.index.sha256) & set(build_index(open_source("synthetic:scenes")).sha256)


def _folder(path: Path, count: int, broken: int) -> Any:
    """Write images of the synthetic set as files, some of them broken, and return their source."""
    for number, sample in enumerate(open_source("synthetic:scenes").read(range(count))):
        target = path / "a" / f"{number:03d}.ppm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"P6 broken" if number < broken else sample.data)
    return open_source(f"imagefolder:{path}")


def test_pixels_are_those_of_the_pipeline(tmp_path: Path) -> None:
    """Rows read in any order are what the pipeline yields, bit for bit; an unreadable image is told apart."""
    source = _folder(tmp_path / "images", 120, 1)
    index = build_index(source)
    decoder = Decoder(PREPROCESS, 2, tmp_path / "pixels", tmp_path / "kept")
    readable = decoder.readable(source, index)
    assert np.flatnonzero(~readable).tolist() == [0]
    expected = np.concatenate([batch.pixels for batch in batches(source, index, PREPROCESS)])
    rows = np.array([119, 3, 7, 1])
    found = list(decoder.pixels(source, index).batches(rows, 3))
    assert [len(part) for part in found] == [3, 1]
    assert np.array_equal(np.concatenate(found), expected[rows - 1])


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reader takes the file; without the pixels the list of readable images alone is still there."""
    source = _folder(tmp_path / "images", 8, 0)
    index = build_index(source)
    Decoder(PREPROCESS, 1, tmp_path / "pixels", tmp_path / "kept").pixels(source, index)
    monkeypatch.setattr("clipq.calibration_lab.pixels.pixels_of", None)
    again = Decoder(PREPROCESS, 1, tmp_path / "pixels", tmp_path / "kept")
    assert len(again.pixels(source, index).stored) == 8
    shutil.rmtree(tmp_path / "pixels")
    assert again.readable(source, index).all()


def test_too_many_unreadable_images(tmp_path: Path) -> None:
    """More than one in a hundred ends the run with their number and the first name, and leaves no file."""
    source = _folder(tmp_path / "images", 120, 2)
    decoder = Decoder(PREPROCESS, 1, tmp_path / "pixels", tmp_path / "kept")
    with pytest.raises(DataError, match=r"more than 1 % of the 120 images .* found 2, the first a/000\.ppm"):
        decoder.pixels(source, build_index(source))
    assert not list((tmp_path / "pixels").iterdir())


def test_data_that_changed_under_way(tmp_path: Path) -> None:
    """Images that are not those that were hashed are refused."""
    source = _folder(tmp_path / "images", 4, 0)
    index = build_index(source)
    decoder = Decoder(PREPROCESS, 1, tmp_path / "pixels", tmp_path / "kept")
    with pytest.raises(DataError, match="changed while it was read"):
        decoder.pixels(source, replace(index, ids=(*index.ids[:3], "another")))
