"""NLL, Brier, softmaxes and temperature against scikit-learn, scipy and torch's definitions, with saturated values."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import brier_score_loss, log_loss

from clipq.errors import DataError
from clipq.evaluate.metrics import ood, paired
from clipq.evaluate.metrics import outcomes as built
from clipq.evaluate.metrics.accuracy import acc1, acc5
from clipq.evaluate.metrics.arrays import Lazy
from clipq.evaluate.metrics.classwise import ece_classwise
from clipq.evaluate.metrics.outcomes import outcomes_from_logits, outcomes_from_predictions, outcomes_from_probabilities
from clipq.evaluate.metrics.probabilities import log_sigmoid, log_softmax, normalised_sigmoid, softmax
from clipq.evaluate.metrics.proper import brier, nll_from_logits, nll_from_probabilities
from clipq.evaluate.metrics.temperature import cross_fitted_confidence, fit_temperature, halves

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(2, 7)), elements=st.floats(-1000, 1000))


def _made(n=2000, classes=10, scale=1.5, dtype=np.float64):
    rng = np.random.default_rng(2)
    logits = scale * rng.standard_normal((n, classes))
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.5
    return logits.astype(dtype), labels


@given(LOGITS)
def test_softmax_equals_scipy(logits):
    """softmax, log_softmax and the sigmoids are scipy's, for logits of +- 1,000 too."""
    np.testing.assert_allclose(softmax(logits), scipy.special.softmax(logits, axis=1), atol=1e-12)
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits, axis=1), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(log_sigmoid(logits), scipy.special.log_expit(logits), rtol=1e-12, atol=1e-12)


def test_normalised_sigmoid_by_hand():
    """Sigmoids 1/2 and 3/4 become 0.4 and 0.6; far below 0, where sigmoid is exp, it is the softmax."""
    np.testing.assert_allclose(normalised_sigmoid(np.array([[0.0, np.log(3.0)]])), [[0.4, 0.6]])
    low = np.array([[-700.0, -701.0]])
    np.testing.assert_allclose(normalised_sigmoid(low), softmax(low))


def test_nll_and_brier_equal_sklearn():
    """NLL is scikit-learn's log_loss; Brier over two classes is twice scikit-learn's."""
    logits, labels = _made()
    probabilities = softmax(logits)
    expected = log_loss(labels, probabilities, labels=np.arange(10))
    assert nll_from_logits(logits, labels) == pytest.approx(expected, rel=1e-12)
    assert nll_from_probabilities(probabilities, labels) == pytest.approx(expected, rel=1e-12)
    assert brier(probabilities, labels) == pytest.approx(np.mean(np.sum((probabilities - np.eye(10)[labels]) ** 2, axis=1)))
    two = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
    assert brier(two, labels % 2) == pytest.approx(2 * brier_score_loss(labels % 2, two[:, 1]))


def test_nothing_is_clipped():
    """A label at -2,000 logits costs 2,000 nats; a stored probability of 0 costs infinity."""
    assert nll_from_logits(np.array([[0.0, 2000.0]]), np.array([0])) == 2000.0
    assert nll_from_probabilities(np.array([[0.0, 1.0]]), np.array([0])) == np.inf
    outcomes = outcomes_from_probabilities(np.array([[0.0, 1.0], [0.5, 0.5]]), np.array([0, 0]))
    assert outcomes.nll.tolist() == [np.inf, -np.log(0.5)]
    assert outcomes.temperature is None  # no logit to scale


def test_brier_range():
    """Certain and wrong is 2, certain and right is 0."""
    assert brier(np.array([[1.0, 0.0]]), np.array([1])) == 2.0
    assert brier(np.array([[1.0, 0.0]]), np.array([0])) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_outcomes_equal_the_plain_metrics(dtype):
    """Every column's mean is the metric computed on the whole matrix."""
    logits, labels = _made(dtype=dtype)
    outcomes = outcomes_from_logits(logits, labels)
    probabilities = softmax(logits)
    assert outcomes.correct.mean() == acc1(logits, labels)
    assert outcomes.in_top5.mean() == acc5(logits, labels)
    assert outcomes.nll.mean() == pytest.approx(nll_from_logits(logits, labels), rel=1e-12)
    assert outcomes.brier.mean() == pytest.approx(brier(probabilities, labels), rel=1e-12)
    assert outcomes.ece_classwise == pytest.approx(ece_classwise(probabilities, labels), rel=1e-12)
    assert outcomes.ece_classwise_above_1 == pytest.approx(ece_classwise(probabilities, labels, threshold=0.01), rel=1e-12)
    np.testing.assert_allclose(outcomes.confidence, probabilities.max(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(outcomes.predictions, logits.argmax(axis=1))


def test_outcomes_of_logits_and_of_their_softmax_agree():
    """The two ways in give the same columns."""
    logits, labels = _made()
    first, second = outcomes_from_logits(logits, labels), outcomes_from_probabilities(softmax(logits), labels)
    for name in ("confidence", "nll", "brier", "tempered_confidence", "temperature", "ece_classwise"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(first.in_top5, second.in_top5)


def test_outcomes_over_many_blocks():
    """A matrix wider than a block gives what its rows give one by one."""
    logits, labels = _made(n=40, classes=9000)
    whole = outcomes_from_logits(logits, labels)
    for row in (0, 17, 39):
        alone = built.outcomes_from_logits(logits[row : row + 1], labels[row : row + 1])
        assert (alone.nll[0], alone.brier[0], alone.confidence[0]) == (whole.nll[row], whole.brier[row], whole.confidence[row])


def test_saturated_logits():
    """A lead of 1,000 logits is confidence exactly 1, with no overflow and no NaN."""
    outcomes = outcomes_from_logits(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
    assert (outcomes.confidence.tolist(), outcomes.nll.tolist(), outcomes.brier.tolist()) == ([1.0, 1.0], [0.0, 1000.0], [0.0, 2.0])


def test_predictions_alone():
    """From a CSV's columns there is no top-5, NLL or Brier; lengths are checked."""
    outcomes = outcomes_from_predictions(np.array([0, 1]), np.array([0, 0]), np.array([0.9, 0.4]))
    assert (outcomes.correct.tolist(), outcomes.in_top5, outcomes.nll, len(outcomes)) == ([True, False], None, None, 2)
    with pytest.raises(DataError, match="wrong shape"):
        outcomes_from_predictions(np.array([0, 1]), np.array([0]), np.array([0.9, 0.4]))


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_temperature_is_found_back(factor):
    """Labels drawn from softmax(z) and logits stretched by a factor have that factor as their temperature."""
    rng = np.random.default_rng(5)
    logits = 2 * rng.standard_normal((20_000, 5))
    labels = (rng.uniform(size=(20_000, 1)) > softmax(logits).cumsum(axis=1)).sum(axis=1).clip(max=4)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)
    confidence, temperature = cross_fitted_confidence(factor * logits, labels)
    assert temperature == pytest.approx(factor, rel=0.05)
    np.testing.assert_allclose(confidence, softmax(logits).max(axis=1), atol=0.02)


def test_temperature_minimises_the_nll():
    """No temperature on a fine grid has a lower NLL."""
    logits, labels = _made(n=500)
    best = nll_from_logits(logits / fit_temperature(logits, labels), labels)
    assert best <= min(nll_from_logits(logits / t, labels) for t in np.geomspace(0.05, 20, 200)) + 1e-7


def test_temperature_without_errors_is_tiny():
    """With no errors sharper is always better, until the NLL is 0 in floating point."""
    assert fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_temperature_equals_that_of_a_scalar_search(seed):
    """Against scipy's bounded search over log T on the plain NLL, for logits of every scale and share of errors."""
    _check_temperature(seed)


@pytest.mark.parametrize("seed", range(12))
def test_temperature_equals_that_of_another_search(seed):
    """The same for a few seeds."""
    _check_temperature(seed)


def _check_temperature(seed):
    rng = np.random.default_rng(seed)
    classes, lead = int(rng.integers(2, 8)), rng.uniform(0, 4)
    logits = rng.standard_normal((int(rng.integers(3, 300)), classes))
    labels = rng.integers(0, classes, len(logits))
    logits[np.arange(len(logits)), labels] += lead
    logits *= 10 ** rng.uniform(-1.8, 1.8)
    limits = {"bounds": (np.log(0.01), np.log(100)), "method": "bounded", "options": {"xatol": 1e-9}}
    other = scipy.optimize.minimize_scalar(lambda t: nll_from_logits(logits / np.exp(t), labels), **limits)
    found = fit_temperature(logits, labels)
    assert nll_from_logits(logits / found, labels) <= other.fun + 1e-6
    if 0.05 < np.exp(other.x) < 90 and lead < 3:
        assert found == pytest.approx(np.exp(other.x), rel=2e-3)


def test_a_lead_beyond_floating_point_is_no_minimum():
    """All right with leads of 1,000 logits: slope and curvature are exactly 0, and sharper never hurts; all wrong: only flat helps."""
    logits = np.array([[1000.0, 0.0], [0.0, 1000.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(100.0)


def test_each_half_is_scaled_by_the_other():
    """The cross-fitted confidences are those of two fits of one half each."""
    logits, labels = _made(n=400)
    first, second = halves(400)
    confidence, _ = cross_fitted_confidence(logits, labels)
    for fitted, held_out in ((first, second), (second, first)):
        expected = softmax(logits[held_out] / fit_temperature(logits[fitted], labels[fitted])).max(axis=1)
        np.testing.assert_allclose(confidence[held_out], expected, rtol=1e-4)


def lazy(matrix):
    """The matrix, read again each time from rows of its own."""
    return Lazy(matrix.shape, lambda rows: matrix[rows].copy(), "logits")


def test_lazy_matrices_give_the_same():
    """Whatever walks in blocks takes rows that are made when asked for, and finds in them what is wrong."""
    logits, labels = _made(n=700, classes=300)
    whole, part = outcomes_from_logits(logits, labels), outcomes_from_logits(lazy(logits), labels)
    probabilities = softmax(logits)
    stored, read = outcomes_from_probabilities(probabilities, labels), outcomes_from_probabilities(lazy(probabilities), labels)
    for first, second in ((whole, part), (stored, read)):
        for name in ("predictions", "confidence", "in_top5", "nll", "brier", "tempered_confidence", "isotonic_confidence"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert (first.temperature, first.ece_classwise, first.brier_parts) == (second.temperature, second.ece_classwise, second.brier_parts)
    for score in (ood.mcm, ood.msp, ood.maxlogit, ood.energy, ood.entropy):
        np.testing.assert_array_equal(score(lazy(logits)), score(logits))
    found, plain = paired.divergence_of_logits(lazy(logits), lazy(2 * logits)), paired.divergence(softmax(logits), softmax(2 * logits))
    assert (found.js, found.kl) == pytest.approx((plain.js, plain.kl), rel=1e-9)
    assert paired.cosine_drift(lazy(logits), lazy(logits + 1)) == paired.cosine_drift(logits, logits + 1)
    logits[650, 3] = np.nan
    with pytest.raises(DataError, match="logits hold NaN or infinity; found the first at row 650"):
        outcomes_from_logits(lazy(logits), labels)
    with pytest.raises(DataError, match="wrong shape"):
        outcomes_from_logits(lazy(np.zeros((0, 5))), labels)
    bad = probabilities.copy()
    bad[600] *= 2
    with pytest.raises(DataError, match=r"do not sum to 1.*row 600"):
        outcomes_from_probabilities(lazy(bad), labels)
