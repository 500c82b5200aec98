"""Isotonic regression and its cross-fitting against scikit-learn and netcal, by hand, and by their properties."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from clipq.errors import DataError
from clipq.evaluate.metrics.calibration import ece
from clipq.evaluate.metrics.isotonic import cross_fitted_isotonic, fit_isotonic
from clipq.evaluate.metrics.outcomes import outcomes_from_logits, outcomes_from_predictions
from clipq.evaluate.metrics.temperature import halves
from clipq.evaluate.statistics.classification import classification_values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # netcal's own imports warn
    from netcal.binning import IsotonicRegression as NetcalIsotonic

PAIRS = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.2, 0.6, 1.0]), st.floats(0, 1, allow_subnormal=False)), st.integers(0, 1)),
    min_size=2,
    max_size=60,
)


def _arrays(pairs):
    confidence, correct = zip(*pairs, strict=True)
    return np.array(confidence), np.array(correct)


def _drawn(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 1.2, n).round(2)  # many ties
    return confidence, rng.uniform(0, 1, n) < confidence**2


def test_equals_sklearn():
    """Values at the knots, between them and outside are scikit-learn's, ties and all."""
    confidence, correct = _drawn()
    at = np.linspace(0, 1, 777)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(confidence, correct).predict(at)
    np.testing.assert_allclose(np.interp(at, *fit_isotonic(confidence, correct)), theirs, atol=1e-7)  # theirs holds float32 knots at times


def test_equals_netcal():
    """The same map as netcal's, away from its clipping of confidences at the ends."""
    confidence, correct = _drawn()
    method = NetcalIsotonic()
    method.fit(confidence, correct.astype(int))
    at = np.unique(confidence)
    np.testing.assert_allclose(np.interp(at, *fit_isotonic(confidence, correct)), method.transform(at), atol=1e-6)


def test_by_hand():
    """A wrong one above a right one is pooled to 1/2; two tied ones, one right, are 1/2 before anything else."""
    knots, accuracy = fit_isotonic(np.array([0.1, 0.5, 0.7, 0.9]), np.array([0, 1, 0, 1]))
    assert (knots.tolist(), accuracy.tolist()) == ([0.1, 0.5, 0.7, 0.9], [0.0, 0.5, 0.5, 1.0])
    assert fit_isotonic(np.array([0.3, 0.3, 0.8]), np.array([1, 0, 1]))[1].tolist() == [0.5, 1.0]


@given(PAIRS)
def test_pooling_equals_the_min_max_formula(pairs):
    """The fit at knot k is max over a <= k of min over b >= k of the mean of all samples from knot a to knot b."""
    confidence, correct = _arrays(pairs)
    knots, accuracy = fit_isotonic(confidence, correct)

    def mean(first, last):
        return correct[(confidence >= first) & (confidence <= last)].mean()

    expected = [max(min(mean(a, b) for b in knots[k:]) for a in knots[: k + 1]) for k in range(len(knots))]
    np.testing.assert_allclose(accuracy, expected, atol=1e-9)


@given(PAIRS, st.randoms())
def test_the_map_is_monotone_bounded_and_of_the_set(pairs, random):
    """In [0, 1], never falling; neither the order of the samples nor repeating all of them matters."""
    shuffled = list(pairs)
    random.shuffle(shuffled)
    _, accuracy = fit_isotonic(*_arrays(pairs))
    assert accuracy.min() >= 0
    assert accuracy.max() <= 1
    assert (np.diff(accuracy) >= -1e-12).all()
    for other in (shuffled, pairs * 3):
        np.testing.assert_allclose(fit_isotonic(*_arrays(other))[1], accuracy, atol=1e-9)


def test_each_half_is_mapped_by_the_other():
    """scikit-learn fitted on one half and applied to the other gives the same confidences."""
    confidence, correct = _drawn(501)
    first, second = halves(501)
    expected = np.empty(501)
    for fitted, held_out in ((first, second), (second, first)):
        model = IsotonicRegression(out_of_bounds="clip").fit(confidence[fitted], correct[fitted])
        expected[held_out] = model.predict(confidence[held_out])
    np.testing.assert_allclose(cross_fitted_isotonic(confidence, correct), expected, atol=1e-7)


def test_it_mends_a_bent_curve():
    """Confidences that are right with probability 0.1 below 0.7 and 0.9 above err by 0.2, and a monotone map mends that."""
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0, 1, 20_000)
    correct = rng.uniform(0, 1, 20_000) < 0.5 + 0.4 * np.sign(confidence - 0.7)
    assert ece(confidence, correct) == pytest.approx(0.2, abs=0.01)
    assert ece(cross_fitted_isotonic(confidence, correct), correct) < 0.02


def test_one_class_and_full_confidence():
    """All right is mapped to 1, all wrong to 0, wherever the confidence was."""
    confidence = np.array([0.0, 0.5, 1.0, 1.0])
    assert cross_fitted_isotonic(confidence, np.ones(4)).tolist() == [1.0] * 4
    assert cross_fitted_isotonic(confidence, np.zeros(4)).tolist() == [0.0] * 4


def test_the_row_is_the_ece_of_the_mapped_confidence():
    """Logits and bare predictions give the same row; a single sample gives none."""
    rng = np.random.default_rng(1)
    logits, labels = 2 * rng.standard_normal((400, 5)), rng.integers(0, 5, 400)
    outcomes = outcomes_from_logits(logits, labels)
    bare = outcomes_from_predictions(labels, outcomes.predictions, outcomes.confidence)
    expected = ece(cross_fitted_isotonic(outcomes.confidence, outcomes.correct), outcomes.correct)
    assert classification_values(outcomes)["ece15_after_isotonic"] == classification_values(bare)["ece15_after_isotonic"] == expected
    assert "ece15_after_isotonic" not in classification_values(outcomes_from_logits(logits[:1], labels[:1]))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples(n):
    """None is no array of samples, one cannot be split."""
    with pytest.raises(DataError, match=r"wrong shape|too few samples for a cross-fitted isotonic regression; found 1"):
        cross_fitted_isotonic(np.full(n, 0.5), np.ones(n))
