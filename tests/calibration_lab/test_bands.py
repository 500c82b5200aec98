"""Bands over draws against hand-computed cases and slow loops: what is spread over draws, and what over test images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipq.calibration_lab.bands import METRICS, bands, enough, levels, mean_over_draws, resampled, shift
from clipq.calibration_lab.cells import Answered
from clipq.evaluate.metrics.calibration import ece
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.statistics.bootstrap import Resampled, resample_counts

Array = np.ndarray[Any, Any]
LABELS = np.array([0, 1, 2, 0])
FP32 = [0, 1, 2, 2]


def _answered(predictions: list[int], confidence: float = 0.5, cosine: float = 1.0, ood: Array | None = None) -> Answered:
    n = len(predictions)
    scores = np.linspace(-0.9, -0.5, n)
    return Answered(np.array(predictions), np.full(n, confidence), np.full(n, cosine), scores, np.empty(0) if ood is None else ood)


def _resampled(found: Answered, *, resamples: int = 200, labels: Array = LABELS, fp32: Answered | None = None) -> Resampled:
    return resampled(found, fp32 or _answered(FP32), labels, resamples=resamples, seed=3)


def test_a_band_by_hand() -> None:
    """Three draws with 1, 2 and 0 of 4 predictions changed: mean, ends, standard deviation and difference from FP32 by hand."""
    draws = [_answered([1, 1, 2, 2], 0.6, 0.9), _answered([1, 0, 2, 2], 0.7, 0.8), _answered(FP32, 0.8)]
    found = bands([_resampled(draw) for draw in draws], _resampled(_answered(FP32)))
    assert list(found) == [name for name in METRICS if name != "auroc"]
    moved = found["disagreement"]
    assert moved["values"] == [0.25, 0.5, 0.0]
    assert (moved["mean"], moved["min"], moved["max"], moved["sd"], moved["delta"]) == (0.25, 0.0, 0.5, 0.25, 0.25)
    right = found["acc1"]
    assert right["values"] == [0.5, 0.25, 0.75]
    assert (right["mean"], right["delta"], right["sd"]) == (0.5, -0.25, 0.25)
    assert found["signed_gap"]["values"] == pytest.approx([0.1, 0.45, 0.05])
    assert found["signed_gap"]["delta"] == pytest.approx(0.2 - (0.5 - 0.75))
    assert found["cosine_centred"]["values"] == pytest.approx([0.9, 0.8, 1.0])
    assert found["cosine_centred"]["delta"] == pytest.approx(-0.1)


def test_whether_a_band_lies_within_the_interval() -> None:
    """The rule of three alone makes an interval of 0 to 3 of 4 images here: a draw with one change is inside it, one with all is not."""
    before = _resampled(_answered(FP32))
    inside = bands([_resampled(_answered(FP32)), _resampled(_answered(FP32))], before)["disagreement"]
    assert (inside["ci95"], inside["band_within_interval"]) == ([0.0, 0.75], True)
    labels = np.zeros(400, np.int64)
    first, second = [0] * 400, [1] * 400
    fp32 = _answered([0] * 400)
    wide = bands(
        [_resampled(_answered(part), labels=labels, fp32=fp32) for part in (first, second)], _resampled(fp32, labels=labels, fp32=fp32)
    )
    assert wide["disagreement"]["ci95"] == pytest.approx([0.5 - 3 / 400, 0.5 + 3 / 400])
    assert not wide["disagreement"]["band_within_interval"]


def test_the_mean_over_draws_by_a_slow_loop() -> None:
    """On every resample the mean of each metric over the draws, computed from repeated images one by one."""
    rng = np.random.default_rng(0)
    n, n_ood, resamples = 60, 25, 12
    labels = rng.integers(0, 3, n)
    fp32 = Answered(rng.integers(0, 3, n), rng.uniform(0.3, 1, n), np.ones(n), rng.normal(size=n), rng.normal(1, 1, n_ood))
    draws = [
        Answered(rng.integers(0, 3, n), rng.uniform(0.3, 1, n), rng.uniform(0.8, 1, n), rng.normal(size=n), rng.normal(1, 1, n_ood))
        for _ in range(3)
    ]
    mean = mean_over_draws([_resampled(draw, resamples=resamples, labels=labels, fp32=fp32) for draw in draws])
    pairs = zip(resample_counts(n, resamples, 3, stream=0), resample_counts(n_ood, resamples, 3, stream=1), strict=True)
    for number, (inside, outside) in enumerate(pairs):
        rows, other = np.repeat(np.arange(n), inside), np.repeat(np.arange(n_ood), outside)
        right = [draw.predictions[rows] == labels[rows] for draw in draws]
        expected = {
            "disagreement": [np.mean(draw.predictions[rows] != fp32.predictions[rows]) for draw in draws],
            "acc1": [np.mean(flags) for flags in right],
            "ece15": [ece(draw.confidence[rows], flags) for draw, flags in zip(draws, right, strict=True)],
            "signed_gap": [np.mean(draw.confidence[rows]) - np.mean(flags) for draw, flags in zip(draws, right, strict=True)],
            "auroc": [auroc(draw.id_scores[rows], draw.ood_scores[other]) for draw in draws],
            "cosine_centred": [np.mean(draw.cosines[rows]) for draw in draws],
        }
        for name, values in expected.items():
            assert mean.draws[name][number] == pytest.approx(np.mean(values), abs=1e-12), name


def test_levels_are_those_of_fp32() -> None:
    """FP32 has an accuracy of its own, but no disagreement with itself."""
    found = levels(_resampled(_answered(FP32, ood=np.array([-0.4, -0.95]))))
    assert list(found) == ["acc1", "ece15", "signed_gap", "auroc"]
    assert found["acc1"]["value"] == 0.75
    assert found["auroc"]["value"] == 0.5
    assert all(low <= found[name]["value"] <= high for name in ("acc1", "signed_gap") for low, high in [found[name]["ci95"]])


def test_what_foreign_images_change() -> None:
    """The difference of the means, and whether the draws of both overlap."""
    own = [_resampled(_answered(part)) for part in (FP32, [1, 1, 2, 2])]
    foreign = [_resampled(_answered(part)) for part in ([1, 0, 2, 2], [1, 0, 0, 2])]
    moved = shift(own, foreign)["disagreement"]
    assert (moved["delta"], moved["bands_apart"]) == (0.5, True)
    assert moved["delta_ci95"][0] <= 0.5 <= moved["delta_ci95"][1]
    overlapping = shift(own, [own[1], foreign[0]])["disagreement"]
    assert (overlapping["delta"], overlapping["bands_apart"]) == (0.25, False)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [({16: 0.3, 64: 0.12, 256: 0.1}, 64), ({16: 0.1, 64: 0.3, 256: 0.1}, 256), ({16: 0.1, 256: 0.1}, 16), ({16: 0.1, 256: 0.16}, None)],
)
def test_how_many_are_enough(largest: dict[int, float], expected: int | None) -> None:
    """With an interval that ends at 15 %: every larger number must hold too, and the largest may fail itself."""
    rows = {n: {"disagreement": {"max": value, "ci95": [0.05, 0.15]}} for n, value in largest.items()}
    assert enough(rows) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_draws_does_not_matter(predictions: list[list[int]], random: Any) -> None:
    """Shuffled draws have the same band, which holds its mean and is as wide as its ends say; equal draws have no width."""
    parts = [_resampled(_answered(part), resamples=20) for part in predictions]
    before = _resampled(_answered(FP32), resamples=20)
    found = bands(parts, before)
    random.shuffle(parts)
    again = bands(parts, before)
    for name, band in found.items():
        assert band["min"] - 1e-12 <= band["mean"] <= band["max"] + 1e-12
        assert sorted(again[name].pop("values")) == sorted(band.pop("values"))
        for part, value in band.items():
            assert again[name][part] == pytest.approx(value)
    equal = bands([parts[0], parts[0]], before)["disagreement"]
    assert (equal["sd"], equal["min"]) == (0.0, equal["max"])
