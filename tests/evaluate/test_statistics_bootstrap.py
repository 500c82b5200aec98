"""The bootstrap: resampled statistics equal the plain metrics, intervals cover, pairing narrows, seeds repeat."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipq.errors import DataError
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits, outcomes_from_predictions, outcomes_from_probabilities
from clipq.evaluate.statistics.bootstrap import bootstrap_p_value, compare, percentile_interval, resample_counts
from clipq.evaluate.statistics.classification import (
    _statistics,
    classification_estimates,
    classification_values,
    resample_classification,
)
from clipq.evaluate.statistics.ood import METRICS, _Plan, ood_estimates, resample_ood
from clipq.evaluate.statistics.significance import mcnemar

NOT_RESAMPLED = {
    "ece15_by_chance", "ece_sweep", "ece_classwise", "ece_classwise_above_1", "temperature", "ece_kde", "ece_kde_bandwidth",
    "brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within",
}  # fmt: skip


def _outcomes(n, classes, scale, seed, *, rounded=False):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((n, classes))
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.0
    return outcomes_from_logits(logits.round() if rounded else logits, labels)


def _repeated(outcomes: Outcomes, counts: np.ndarray) -> Outcomes:
    """Return the resampled data set itself."""
    index = np.repeat(np.arange(len(counts)), counts)
    columns = {field.name: getattr(outcomes, field.name) for field in dataclasses.fields(outcomes)}
    return Outcomes(**{name: value[index] if isinstance(value, np.ndarray) else value for name, value in columns.items()})


@settings(max_examples=60, deadline=None)  # the first example imports scipy
@given(
    n=st.integers(1, 90),
    classes=st.integers(2, 8),
    scale=st.sampled_from([0.1, 1.0, 40.0]),
    rounded=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_every_resampled_metric_is_the_plain_metric_on_the_resampled_data(n, classes, scale, rounded, seed):
    """With ties, saturated confidences, absent classes and all sizes: counts in, or samples repeated, the same numbers."""
    outcomes = _outcomes(n, classes, scale, seed, rounded=rounded)
    counts = next(resample_counts(n, 1, seed))
    ours = {name: value for statistic in _statistics(outcomes).values() for name, value in statistic(counts).items()}
    plain = classification_values(_repeated(outcomes, counts))
    for name in plain.keys() - NOT_RESAMPLED:
        assert ours[name] == pytest.approx(plain[name], abs=1e-9), name


@settings(max_examples=60)
@given(n_id=st.integers(1, 60), n_ood=st.integers(1, 60), rounded=st.booleans(), seed=st.integers(0, 10**6))
def test_every_resampled_ood_metric_is_the_plain_metric_on_the_resampled_data(n_id, n_ood, rounded, seed):
    """The same for detection, both sides resampled apart."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.standard_normal(n_id), rng.standard_normal(n_ood) + 0.5
    if rounded:
        inside, outside = inside.round(), outside.round()
    id_counts, ood_counts = next(resample_counts(n_id, 1, seed)), next(resample_counts(n_ood, 1, seed, stream=1))
    ours = _Plan(inside, outside, METRICS).metrics(id_counts, ood_counts)
    for name, metric in METRICS.items():
        assert ours[name] == pytest.approx(metric(np.repeat(inside, id_counts), np.repeat(outside, ood_counts)), abs=1e-9), name


def test_values_are_the_full_sample_metrics():
    """Resampling never touches the value; every metric but the named ones has an interval around plausible values."""
    outcomes = _outcomes(600, 10, 1.5, 0)
    estimates = classification_estimates(None, outcomes, resamples=200)
    assert {name: estimate.value for name, estimate in estimates.items()} == classification_values(outcomes)
    assert {name for name, estimate in estimates.items() if estimate.ci95 is None} == NOT_RESAMPLED
    assert {estimate.n for estimate in estimates.values()} == {600}
    assert all(estimate.delta is None and estimate.p_value is None for estimate in estimates.values())


def test_the_interval_of_accuracy_is_the_binomial_one():
    """For a mean the bootstrap's width is the known 1.96 standard errors."""
    estimate = classification_estimates(None, _outcomes(2000, 10, 1.0, 1), resamples=2000)["acc1"]
    error = 1.96 * np.sqrt(estimate.value * (1 - estimate.value) / 2000)
    assert estimate.ci95 == pytest.approx((estimate.value - error, estimate.value + error), abs=0.1 * error)


def test_the_interval_of_auroc_is_delongs():
    """For AUROC the bootstrap's width is DeLong's (1988), computed from the placements."""
    rng = np.random.default_rng(3)
    inside, outside = rng.standard_normal(800), rng.standard_normal(500) + 1
    above = np.array([(inside < score).mean() for score in outside])
    below = np.array([(outside > score).mean() for score in inside])
    error = 1.96 * np.sqrt(above.var(ddof=1) / 500 + below.var(ddof=1) / 800)
    low, high = ood_estimates(None, (inside, outside), resamples=2000)["auroc"].ci95
    assert high - low == pytest.approx(2 * error, rel=0.08)


def test_the_95_percent_interval_covers():
    """Over 200 data sets the interval of NLL holds the true mean in about 95 %."""
    rng = np.random.default_rng(4)
    hits = 0
    for seed in range(200):
        values = rng.exponential(size=150)
        draws = np.array([np.average(values, weights=counts) for counts in resample_counts(150, 400, seed)])
        low, high = percentile_interval(draws)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_an_engine_equal_to_its_baseline_has_no_delta():
    """Every delta is exactly 0 with an interval of [0, 0] and p = 1: the resamples are the same."""
    outcomes = _outcomes(300, 5, 1.0, 0)
    for name, estimate in classification_estimates(outcomes, outcomes, resamples=100).items():
        assert estimate.delta == 0.0
        if name not in NOT_RESAMPLED:
            assert (estimate.delta_ci95, estimate.p_value) == ((0.0, 0.0), 1.0)
    scores = np.arange(20.0), np.arange(10.0, 40.0)
    assert {e.delta_ci95 for e in ood_estimates(scores, scores, resamples=100).values()} == {(0.0, 0.0)}


def test_pairing_narrows_the_interval_of_the_delta():
    """An engine that differs a little: the paired interval is far narrower than two independent ones, and accuracy's p is McNemar's."""
    rng = np.random.default_rng(6)
    logits, labels = rng.standard_normal((2000, 10)), rng.integers(0, 10, 2000)
    logits[np.arange(2000), labels] += 2
    before, after = outcomes_from_logits(logits, labels), outcomes_from_logits(logits + 0.1 * rng.standard_normal(logits.shape), labels)
    estimates = classification_estimates(before, after, resamples=500)
    for name in ("acc1", "nll", "brier", "aurc"):
        low, high = estimates[name].delta_ci95
        assert high - low < 0.5 * (estimates[name].ci95[1] - estimates[name].ci95[0])
        assert low <= estimates[name].delta <= high
    assert estimates["acc1"].p_value == mcnemar(before.correct, after.correct)
    assert estimates["acc5"].p_value == mcnemar(before.in_top5, after.in_top5)


def test_p_values_are_uniform_without_a_difference():
    """Two engines with equally good noise: a p-value below 0.05 comes up about one time in twenty."""
    rng = np.random.default_rng(7)
    small = 0
    for _ in range(200):
        truth = rng.standard_normal(120)
        first, second = truth + rng.standard_normal(120), truth + rng.standard_normal(120)
        deltas = np.array([np.average(first - second, weights=counts) for counts in resample_counts(120, 200, 0)])
        small += bootstrap_p_value(deltas) < 0.05
    assert 0.01 <= small / 200 <= 0.12


def test_seeds_repeat_and_differ():
    """The same seed gives the same draws whatever the engine, another seed or stream gives others; each sums to n."""
    first = np.stack(list(resample_counts(50, 20, 1)))
    assert (first == np.stack(list(resample_counts(50, 20, 1)))).all()
    assert (first.sum(axis=1) == 50).all()
    assert (first != np.stack(list(resample_counts(50, 20, 2)))).any()
    assert (first != np.stack(list(resample_counts(50, 20, 1, stream=1)))).any()


def test_resampling_once_and_comparing_equals_the_short_cut():
    """The road for many engines and the road for one pair give the same estimates."""
    before = _outcomes(200, 4, 1.0, 0)
    after = dataclasses.replace(before, confidence=before.confidence**2)
    first, second = (resample_classification(outcomes, resamples=50, seed=3) for outcomes in (before, after))
    assert compare(first, second) == classification_estimates(before, after, resamples=50, seed=3)


def test_chosen_metrics_are_those_of_the_whole_set():
    """Resampling a few metrics only gives the same draws as resampling all."""
    outcomes = _outcomes(200, 4, 1.0, 0)
    few, every = (resample_classification(outcomes, resamples=20, metrics=metrics) for metrics in (("ece15", "aurc"), None))
    assert set(few.draws) == {"ece15", "aurc"}
    assert all((few.draws[name] == every.draws[name]).all() for name in few.draws)
    scores = np.arange(20.0), np.arange(10.0, 40.0)
    assert set(resample_ood(*scores, resamples=20, metrics=["auroc"]).draws) == {"auroc"}


def test_other_samples_cannot_be_paired():
    """Another order of the labels, another number of samples or another seed is refused."""
    first = _outcomes(100, 5, 1.0, 0)
    with pytest.raises(DataError, match="cannot be paired"):
        classification_estimates(first, _outcomes(100, 5, 1.0, 1), resamples=10)
    with pytest.raises(DataError, match="cannot be paired"):
        ood_estimates((np.zeros(3), np.zeros(4)), (np.zeros(3), np.zeros(5)), resamples=10)
    with pytest.raises(DataError, match="cannot be paired"):
        compare(resample_classification(first, resamples=10, seed=0), resample_classification(first, resamples=10, seed=1))
    with pytest.raises(DataError, match="needs resamples; found 0"):
        resample_classification(first, resamples=0)


def test_an_infinite_nll_stays_alone():
    """A label with probability 0 makes NLL infinite, without interval or delta, and spoils no other metric."""
    outcomes = outcomes_from_probabilities(np.array([[0.0, 1.0], [0.5, 0.5], [0.9, 0.1]]), np.array([0, 0, 0]))
    estimates = classification_estimates(outcomes, outcomes, resamples=20)
    assert (estimates["nll"].value, estimates["nll"].ci95, estimates["nll"].delta) == (np.inf, None, None)
    assert all(estimate.ci95 is not None for name, estimate in estimates.items() if name not in {"nll", *NOT_RESAMPLED})


def test_predictions_alone_give_what_they_allow():
    """Without a distribution there is no acc5, NLL, Brier, classwise error or temperature; below 30 samples no debiased error."""
    outcomes = outcomes_from_predictions(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0.9, 0.4, 0.6]))
    assert set(classification_estimates(None, outcomes, resamples=10)) == {
        "acc1", "mean_per_class_recall", "ece15", "ece_em15", "ece_sweep", "ece_kde", "ece_kde_bandwidth", "mce", "rmsce", "signed_gap",
        "ece15_after_isotonic", "aurc", "eaurc", "augrc", "risk_at_80", "risk_at_90", "risk_at_95", "coverage_at_risk_1",
        "coverage_at_risk_5", "ece15_by_chance",
    }  # fmt: skip
