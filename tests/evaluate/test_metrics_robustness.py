"""Relative loss, spurious gap and effective robustness by hand, by slow loops, and against scikit-learn and scipy."""

from __future__ import annotations

import csv
import math
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress
from sklearn.linear_model import LinearRegression

from clipq.errors import DataError
from clipq.evaluate.metrics.robustness import (
    Sides,
    effective_robustness,
    fit_logit_line,
    inside,
    relative_loss,
    relative_spurious_gap,
)
from clipq.evaluate.robustness.pairs import SHIFTED_IMAGENET
from clipq.evaluate.robustness.published import published_line

fractions = st.floats(0.001, 0.999)


def logit(p: float) -> float:
    """The natural logarithm of the odds."""
    return math.log(p / (1 - p))


def test_relative_loss_by_hand() -> None:
    """Of 80 right answers 20 are lost: a quarter. A gain is negative; of nothing no part can be lost."""
    assert float(relative_loss(0.8, 0.6)) == pytest.approx(0.25)
    assert float(relative_loss(0.5, 0.55)) == pytest.approx(-0.1)
    assert math.isnan(float(relative_loss(0.0, 0.3)))
    assert relative_loss(np.array([0.5, 0.0]), np.array([0.25, 0.0])).tolist()[0] == 0.5


def test_spurious_gap_by_hand() -> None:
    """An animal is told in 97.62 % before snow and 70.91 % before grass: 27.36 % of the right answers hang on the snow."""
    assert float(relative_spurious_gap(0.9762, 0.7091)) == pytest.approx(0.27361, abs=1e-5)
    assert float(relative_spurious_gap(0.5, 0.5)) == 0.0


@given(fractions, fractions, fractions, fractions)
def test_added_vulnerability_is_what_the_gap_gains(common: float, counter: float, less: float, lesser: float) -> None:
    """``1 - RSG(q) = (1 - RSG(f)) (1 - delta_C) / (1 - delta_N)``: no added vulnerability, no wider gap, and the other way round."""
    lost_common, lost_counter = float(relative_loss(common, common * less)), float(relative_loss(counter, counter * lesser))
    before, after = (float(relative_spurious_gap(*pair)) for pair in ((common, counter), (common * less, counter * lesser)))
    assert 1 - after == pytest.approx((1 - before) * (1 - lost_counter) / (1 - lost_common), rel=1e-9)
    if abs(lost_counter - lost_common) > 1e-9:
        assert (after > before) == (lost_counter > lost_common)


def test_effective_robustness_by_hand() -> None:
    """From 0.8 to 0.5 the odds fall from 4 to 1, so 0.5 should fall to odds of 1 / 4, which is 0.2; at 0.3 the engine is 0.1 above."""
    engine, baseline = Sides(0.5, 0.3, 1000, 1000), Sides(0.8, 0.5, 1000, 1000)
    assert float(effective_robustness(engine, baseline)) == pytest.approx(0.1)


@given(fractions, fractions, fractions, fractions)
def test_effective_robustness_by_logits(known: float, shifted: float, known_before: float, shifted_before: float) -> None:
    """The definition, one number at a time; the better the shifted accuracy, the better the figure; 0 for the baseline itself."""
    foretold = 1 / (1 + math.exp(-(logit(shifted_before) + logit(known) - logit(known_before))))
    baseline = Sides(known_before, shifted_before, 10**6, 10**6)
    value = float(effective_robustness(Sides(known, shifted, 10**6, 10**6), baseline))
    assert value == pytest.approx(shifted - foretold, abs=1e-12)
    assert -1 < value < 1
    assert float(effective_robustness(baseline, baseline)) == 0.0
    assert float(effective_robustness(Sides(known, min(shifted + 0.01, 1.0), 10**6, 10**6), baseline)) > value


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_ends_have_no_infinite_logit(end: float) -> None:
    """All wrong or all right of ten images is half an image away from it, and equal engines stay equal."""
    same = Sides(end, end, 10, 10)
    assert float(effective_robustness(same, same)) == 0.0
    assert float(inside(end, 10)) == abs(end - 0.05)
    assert np.isfinite(effective_robustness(Sides(end, 0.5, 10, 10), Sides(0.5, end, 10, 10)))
    with pytest.raises(DataError, match="no images"):
        inside(0.5, 0)


def test_arrays_are_taken_element_by_element() -> None:
    """Resamples go through at once, each as it would alone."""
    rng = np.random.default_rng(0)
    columns = rng.uniform(0, 1, (4, 50))
    engine, baseline = Sides(*columns[:2], 40, 30), Sides(*columns[2:], 40, 30)
    slow = [
        float(effective_robustness(Sides(a, b, 40, 30), Sides(c, d, 40, 30)))
        for a, b, c, d in columns.T.tolist()
    ]  # fmt: skip
    assert effective_robustness(engine, baseline).tolist() == pytest.approx(slow, abs=1e-15)


@given(st.lists(st.tuples(fractions, fractions), min_size=3, max_size=20, unique_by=lambda pair: round(pair[0], 3)))
def test_line_against_two_libraries(models: list[tuple[float, float]]) -> None:
    """Slope and intercept of scikit-learn and scipy on the logits; the order of the models means nothing."""
    known, shifted = (np.array(column) for column in zip(*models, strict=True))
    x, y = np.array([logit(p) for p in known]), np.array([logit(p) for p in shifted])
    line = fit_logit_line(known, shifted)
    theirs, other = LinearRegression().fit(x[:, None], y), linregress(x, y)
    assert line.slope == pytest.approx(float(theirs.coef_[0]), rel=1e-6, abs=1e-9)
    assert line.intercept == pytest.approx(float(theirs.intercept_), rel=1e-6, abs=1e-9)
    assert (line.slope, line.intercept) == pytest.approx((other.slope, other.intercept), rel=1e-6, abs=1e-9)
    assert line.foretold(known, 10**6).tolist() == pytest.approx((1 / (1 + np.exp(-theirs.predict(x[:, None])))).tolist(), abs=1e-6)
    assert line.spread == pytest.approx(float(np.sqrt(np.mean((shifted - line.foretold(known, 10**6)) ** 2))), abs=1e-6)
    assert line.models == len(models)
    backwards = fit_logit_line(known[::-1], shifted[::-1])
    assert (backwards.slope, backwards.intercept) == pytest.approx((line.slope, line.intercept), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("known", "shifted"),
    [([0.5, 0.6], [0.4, 0.5]), ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]), ([0.5, 0.6, 1.0], [0.4, 0.5, 0.6]), ([0.5, 0.6, 0.7], [0.4, 0.5])],
)
def test_no_line_without_enough_models(known: list[float], shifted: list[float]) -> None:
    """Two models, models all alike, an accuracy without a logit, and columns of different length are refused."""
    with np.errstate(divide="ignore"), pytest.raises(DataError, match="no line"):
        fit_logit_line(np.array(known), np.array(shifted))


@pytest.mark.parametrize("shifted", SHIFTED_IMAGENET)
def test_published_lines(shifted: str) -> None:
    """Fitted over the shipped table by scipy too; what is better on ImageNet is better on every shifted set."""
    rows = list(csv.DictReader((files("clipq.evaluate.robustness") / "published.csv").read_text().splitlines()))
    known, other = ([float(row[column]) for row in rows] for column in ("imagenet", shifted))
    line = published_line(shifted)
    fitted = linregress([logit(p) for p in known], [logit(p) for p in other])
    assert (line.slope, line.intercept) == pytest.approx((fitted.slope, fitted.intercept))
    assert line.models == len(rows) == len({tuple(row.values()) for row in rows}) > 100
    assert line.slope > 0.5
    assert 0.005 < line.spread < 0.15
    assert fitted.rvalue > 0.8


def test_published_rows_are_the_published_ones() -> None:
    """Figures of OpenAI's ViT-B/32 as everyone quotes them (63.3 % on ImageNet, 55.9 % on V2, 69.3 % on R)."""
    rows = csv.DictReader((files("clipq.evaluate.robustness") / "published.csv").read_text().splitlines())
    (found,) = [row for row in rows if row["weights"] == "openai" and row["model"] in {"ViT-B-32", "ViT-B-32-quickgelu"}]
    assert [round(100 * float(found[name]), 1) for name in ("imagenet", "imagenet-v2", "imagenet-r", "objectnet")] == [
        63.3,
        55.9,
        69.3,
        44.3,
    ]
