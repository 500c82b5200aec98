"""DeLong's test against a double loop over all pairs, a case by hand, and its symmetries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from clipq.errors import DataError
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.statistics.bootstrap import compare
from clipq.evaluate.statistics.delong import delong, placements
from clipq.evaluate.statistics.ood import ood_estimates, resample_ood


def _pair_loop(inside, outside):
    """Return V01 and V10 of DeLong et al. 1988, equations as printed: one comparison per pair."""
    psi = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in inside] for x in outside]
    by_ood = [sum(row) / len(inside) for row in psi]
    by_id = [sum(row[j] for row in psi) / len(outside) for j in range(len(inside))]
    return by_id, by_ood


def _slow_delong(baseline, engine):
    """DeLong with the two 2 x 2 covariance matrices S01 and S10 and the contrast (1, -1)."""
    parts = [_pair_loop(*side) for side in (baseline, engine)]
    covariance = sum(np.cov([parts[0][side], parts[1][side]]) / len(parts[0][side]) for side in (0, 1))
    variance = np.array([1, -1]) @ covariance @ np.array([1, -1])
    delta = np.mean(parts[1][0]) - np.mean(parts[0][0])
    return 1.0 if abs(delta) < 1e-12 else 0.0 if variance < 1e-14 else 2 * norm.sf(abs(delta) / np.sqrt(variance))


def _two_engines(seed, n_id, n_ood, *, rounded=False):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(n_id), rng.standard_normal(n_ood) + 0.8
    sides = [tuple(side + 0.6 * rng.standard_normal(len(side)) for side in truth) for _ in range(2)]
    return [tuple(side.round() for side in pair) if rounded else pair for pair in sides]


@settings(max_examples=80)
@given(seed=st.integers(0, 10**6), n_id=st.integers(2, 25), n_ood=st.integers(2, 25), rounded=st.booleans())
def test_delong_equals_the_double_loop(seed, n_id, n_ood, rounded):
    """Ranks and pairs give the same p-value, with and without ties."""
    before, after = _two_engines(seed, n_id, n_ood, rounded=rounded)
    assert delong(before, after) == pytest.approx(_slow_delong(before, after), abs=1e-9)


@given(seed=st.integers(0, 10**6), n_id=st.integers(1, 30), n_ood=st.integers(1, 30), rounded=st.booleans())
def test_placements_are_mid_ranks_and_average_to_auroc(seed, n_id, n_ood, rounded):
    """Sun & Xu's form: the mid-rank among all less that among one's own; both sides average to the AUROC."""
    (inside, outside), _ = _two_engines(seed, n_id, n_ood, rounded=rounded)
    ranks = rankdata(np.concatenate([inside, outside]))
    by_id, by_ood = placements(inside, outside)
    assert by_ood == pytest.approx((ranks[n_id:] - rankdata(outside)) / n_id)
    assert by_id == pytest.approx(1 - (ranks[:n_id] - rankdata(inside)) / n_ood)
    assert by_id.mean() == pytest.approx(auroc(inside, outside))
    assert by_ood.mean() == pytest.approx(auroc(inside, outside))


def test_delong_by_hand():
    """Perfect against one inversion: differences (0, -1/2) on both sides, variance 1/8 / 2 twice, z = -1/4 / sqrt(1/8)."""
    before, after = (np.array([0.0, 1.0]), np.array([2.0, 3.0])), (np.array([0.0, 2.0]), np.array([1.0, 3.0]))
    assert delong(before, after) == pytest.approx(2 * norm.sf(1 / np.sqrt(2)))
    assert delong(before, after) == pytest.approx(0.4795, abs=1e-4)


@given(seed=st.integers(0, 10**6), rounded=st.booleans())
def test_symmetries(seed, rounded):
    """Swapping the engines, reordering the samples, stretching the scores and swapping ID and OOD with the sign change nothing."""
    before, after = _two_engines(seed, 12, 9, rounded=rounded)
    p_value = delong(before, after)
    rng = np.random.default_rng(seed)
    orders = rng.permutation(12), rng.permutation(9)
    shuffled = [tuple(side[order] for side, order in zip(pair, orders, strict=True)) for pair in (before, after)]
    turned = [(-pair[1], -pair[0]) for pair in (before, after)]
    assert 0 <= p_value <= 1
    assert delong(after, before) == pytest.approx(p_value)
    assert delong(*shuffled) == pytest.approx(p_value)
    assert delong(*turned) == pytest.approx(p_value)
    assert delong(tuple(np.exp(side) for side in before), tuple(3 * side - 1 for side in after)) == pytest.approx(p_value)


def test_more_of_the_same_data_is_more_evidence():
    """Every sample three times: the same difference, a smaller p-value."""
    before, after = _two_engines(1, 30, 30)
    thrice = [tuple(np.tile(side, 3) for side in pair) for pair in (before, after)]
    assert delong(*thrice) < delong(before, after)


def test_degenerate_scores():
    """Equal engines: 1. One sample on a side: 1. All separated against all tied: no variance, p = 0."""
    inside, outside = np.arange(5.0), np.arange(10.0, 16.0)
    assert delong((inside, outside), (inside, outside)) == 1.0
    assert delong((inside[:1], outside), (inside[:1] + 20, outside)) == 1.0
    assert delong((inside, outside), (np.zeros(5), np.zeros(6))) == 0.0


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ((np.zeros(3), np.zeros(5)), "differ in number of samples; found 3 and 3 ID, 4 and 5 OOD"),
        ((np.zeros(3), np.zeros(0)), "OOD scores have the wrong shape"),
        ((np.array([0.0, np.nan, 1.0]), np.zeros(4)), "NaN"),
    ],
)
def test_unusable_scores_are_refused(engine, message):
    """Other samples, no samples and NaN are errors."""
    with pytest.raises(DataError, match=message):
        delong((np.zeros(3), np.zeros(4)), engine)


def test_auroc_rows_carry_delong():
    """The p-value of auroc is DeLong's and says so; the other detection metrics keep the bootstrap's."""
    before, after = _two_engines(5, 60, 40)
    estimates = ood_estimates(before, after, resamples=200)
    assert (estimates["auroc"].p_value, estimates["auroc"].test) == (pytest.approx(delong(before, after)), "delong")
    assert {name: estimate.test for name, estimate in estimates.items() if name != "auroc"} == {
        name: "bootstrap" for name in estimates if name != "auroc"
    }
    first, second = (resample_ood(*pair, resamples=200, metrics=["auroc"]) for pair in (before, after))
    assert compare(first, second)["auroc"].test == "delong"


def test_the_level_of_delong_is_kept():
    """Two equally good engines, 3,000 times: p < 0.05 in about one of twenty, at 40 + 30 and at 200 + 150 samples."""
    for n_id, n_ood, repeats in ((40, 30, 3000), (200, 150, 1500)):
        found = np.mean([delong(*_two_engines(seed, n_id, n_ood)) < 0.05 for seed in range(repeats)])
        assert 0.035 <= found <= 0.065, (n_id, n_ood)
