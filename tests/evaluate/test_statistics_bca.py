"""BCa intervals against scipy's on the same resamples, their jackknife against leaving samples out, and the p-value that inverts them."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits
from clipq.evaluate.statistics.bca import acceleration, bca_interval, bca_p_value, bias_correction
from clipq.evaluate.statistics.bootstrap import bootstrap_p_value, compare, percentile_interval, resample_counts
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.statistics.ood import resample_ood


def _scipy_bca(samples, statistic, draws):
    """Return scipy's BCa interval of draws that were made elsewhere."""
    given_draws = type("Given", (), {"bootstrap_distribution": draws})()
    ends = scipy.stats.bootstrap(
        samples, statistic, n_resamples=0, bootstrap_result=given_draws, method="BCa", vectorized=False
    ).confidence_interval
    return ends.low, ends.high


def _outcomes(n, seed, noise=0.0):
    rng = np.random.default_rng(seed)
    logits, labels = 1.5 * rng.standard_normal((n, 6)), rng.integers(0, 6, n)
    logits[np.arange(n), labels] += 1.0
    return outcomes_from_logits(logits + noise * np.random.default_rng(seed + 1).standard_normal(logits.shape), labels)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(["acc1", "nll", "brier", "signed_gap"]))
def test_paired_means_equal_scipy(seed, name):
    """The interval of a paired difference of means is scipy's BCa interval of the differences."""
    before, after = _outcomes(40, seed), _outcomes(40, seed, noise=0.7)
    first, second = (resample_classification(outcomes, resamples=300, metrics=[name]) for outcomes in (before, after))
    columns = [
        {"acc1": o.correct.astype(float), "nll": o.nll, "brier": o.brier, "signed_gap": o.confidence - o.correct}[name]
        for o in (before, after)
    ]
    estimate = compare(first, second)[name]
    draws = (second.draws[name] - first.draws[name]).round(12)  # scipy takes accuracies that differ in the last bit as different
    expected = _scipy_bca((columns[1] - columns[0],), lambda x: np.mean(x).round(12), draws)
    assert estimate.delta_interval == "bca"
    assert estimate.delta_ci95 == pytest.approx(expected, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_paired_auroc_equals_scipy(seed):
    """Two independent sets of samples: scipy leaves out ID and OOD samples one by one, we take the placements."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.standard_normal((2, 14)), rng.standard_normal((2, 11)) + 0.7
    first, second = (resample_ood(inside[side], outside[side], resamples=200, metrics=["auroc"]) for side in (0, 1))
    estimate = compare(first, second)["auroc"]

    def delta(known, foreign):
        rows = known.astype(int), foreign.astype(int)
        return np.round(auroc(inside[1][rows[0]], outside[1][rows[1]]) - auroc(inside[0][rows[0]], outside[0][rows[1]]), 12)

    draws = (second.draws["auroc"] - first.draws["auroc"]).round(12)
    expected = _scipy_bca((np.arange(14.0), np.arange(11.0)), delta, draws)
    assert estimate.delta_ci95 == pytest.approx(expected, abs=1e-9)
    assert estimate.delta_interval == "bca"


def test_influence_is_what_leaving_out_shows():
    """(n - 1) (mean of the leave-one-out values - leave-one-out value), each value computed anew."""
    outcomes = _outcomes(25, 3)
    columns = {"acc1": outcomes.correct, "nll": outcomes.nll, "brier": outcomes.brier}
    for name, column in columns.items():
        left_out = np.array([np.delete(column, row).mean() for row in range(25)])
        ours = resample_classification(outcomes, resamples=2).influence[name]
        assert ours[0] == pytest.approx(24 * (left_out.mean() - left_out), abs=1e-12)
    rng = np.random.default_rng(0)
    inside, outside = rng.standard_normal(9).round(1), rng.standard_normal(7).round(1) + 0.5
    by_id = np.array([auroc(np.delete(inside, row), outside) for row in range(9)])
    by_ood = np.array([auroc(inside, np.delete(outside, row)) for row in range(7)])
    ours = resample_ood(inside, outside, resamples=2).influence["auroc"]
    for part, left_out in zip(ours, (by_id, by_ood), strict=True):
        assert part == pytest.approx((len(part) - 1) * (left_out.mean() - left_out), abs=1e-12)


def test_acceleration_and_bias_by_hand():
    """(-1, -1, 2): 6/27 over 6 (6/9)^1.5; the mirror image is negative; one of four draws below and one equal: Phi^-1(3/8)."""
    skewed = np.array([-1.0, -1.0, 2.0])
    assert acceleration([skewed]) == pytest.approx((6 / 27) / (6 * (6 / 9) ** 1.5))
    assert acceleration([-skewed]) == -acceleration([skewed])
    assert acceleration([skewed, skewed]) == pytest.approx(acceleration([skewed]) / np.sqrt(2))
    assert acceleration([np.zeros(3)]) == 0.0
    assert bias_correction(np.array([1.0, 2.0, 3.0, 4.0]), 2.0) == pytest.approx(scipy.stats.norm.ppf(3 / 8))


def test_without_bias_and_skewness_it_is_the_percentile_interval():
    """Symmetric resamples around the value and a symmetric influence: nothing to correct, in the interval and in the p-value."""
    draws, symmetric = np.arange(-499.0, 502.0), [np.array([-1.0, 0.0, 1.0])]
    assert bca_interval(draws, 1.0, symmetric) == pytest.approx(percentile_interval(draws))
    assert bca_p_value(draws + 450, 451.0, symmetric) == pytest.approx(bootstrap_p_value(draws + 450))


def test_undefined_cases_fall_back():
    """Resamples on one side of the value, or nearly and very skewed: no BCa interval. One sample: no spread, a point."""
    draws = np.arange(1.0, 101.0)
    assert bca_interval(draws, 0.5, [np.array([-1.0, 1.0])]) is None
    assert bca_p_value(draws, 0.5, [np.array([-1.0, 1.0])]) is None
    assert bca_interval(draws, 99.5, [np.array([-1.0, -1.0, 2.0])]) == pytest.approx((99.9, 100.0), abs=0.5)
    assert bca_interval(np.arange(1e5), 99_998.5, [np.array([-1.0] * 9999 + [9999.0])]) is None
    assert bca_p_value(np.arange(1e5), 99_998.5, [np.array([-1.0] * 9999 + [9999.0])]) is None
    one = Outcomes(np.array([0]), np.array([0]), np.array([0.9]))
    assert compare(None, resample_classification(one, resamples=9))["acc1"].ci95 == (1.0, 1.0)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_units_and_order_do_not_matter(seed, scale, shift):
    """Scaling, shifting and mirroring the data moves the ends alike; the order of resamples and samples is of no account."""
    rng = np.random.default_rng(seed)
    sample = rng.exponential(size=30)
    draws = np.array([np.average(sample, weights=counts) for counts in resample_counts(30, 200, seed)])
    influence = sample - sample.mean()
    low, high = bca_interval(draws, sample.mean(), [influence])
    assert draws.min() <= low <= high <= draws.max()
    moved = bca_interval(scale * draws + shift, scale * sample.mean() + shift, [scale * influence])
    mirrored = bca_interval(-draws, -sample.mean(), [-influence])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)
    assert bca_interval(rng.permutation(draws), sample.mean(), [rng.permutation(influence)]) == pytest.approx((low, high))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), end=st.sampled_from([0, 1]))
def test_the_p_value_is_the_level_at_which_the_interval_touches_zero(seed, end):
    """Move a delta until one end of its interval lies at 0: p is 0.05, as near as the resamples can tell; beyond it is smaller."""
    rng = np.random.default_rng(seed)
    sample = rng.exponential(size=40)
    draws = np.array([np.average(sample, weights=counts) for counts in resample_counts(40, 4000, 0)])
    influence = [sample - sample.mean()]
    touching = bca_interval(draws, sample.mean(), influence)[end]
    assert bca_p_value(draws - touching, sample.mean() - touching, influence) == pytest.approx(0.05, abs=0.008)
    further = touching + (-0.2 if end == 0 else 0.2)
    assert bca_p_value(draws - further, sample.mean() - further, influence) < 0.05


def test_which_interval_is_said():
    """Means and AUROC say bca, what is binned, sorted or a quantile says percentile; without a baseline there is no delta_interval."""
    before, after = _outcomes(300, 1), _outcomes(300, 1, noise=0.5)
    first, second = (resample_classification(outcomes, resamples=200) for outcomes in (before, after))
    estimates = compare(first, second)
    said = {name: (estimate.interval, estimate.delta_interval) for name, estimate in estimates.items() if estimate.ci95 is not None}
    bca = {name for name, methods in said.items() if methods == ("bca", "bca")}
    assert bca == {"acc1", "acc5", "nll", "brier", "signed_gap"}
    assert {methods for name, methods in said.items() if name not in bca} == {("percentile", "percentile")}
    assert compare(None, second)["nll"].delta_interval is None
    rng = np.random.default_rng(0)
    detection = resample_ood(rng.standard_normal(60), rng.standard_normal(50) + 1, resamples=200)
    methods = {name: estimate.interval for name, estimate in compare(None, detection).items()}
    assert methods == {name: "bca" if name == "auroc" else "percentile" for name in methods}
