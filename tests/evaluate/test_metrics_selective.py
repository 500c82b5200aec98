"""Risk over coverage against slow loops, scikit-learn and known definitions, by hand, and with ties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clipq.errors import DataError
from clipq.evaluate.metrics.selective import augrc, aurc, coverage_at_risk, eaurc, optimal_aurc, risk_at_coverage

PAIRS = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0]), st.integers(0, 1)), min_size=1, max_size=40)
TINY = st.lists(st.tuples(st.sampled_from([0.2, 0.6, 1.0]), st.integers(0, 1)), min_size=1, max_size=6)


def _arrays(pairs):
    confidence, correct = zip(*pairs, strict=True)
    return np.array(confidence), np.array(correct)


def _slow(ordered_errors):
    return sum(sum(ordered_errors[:k]) / k for k in range(1, len(ordered_errors) + 1)) / len(ordered_errors)


def test_aurc_by_hand():
    """Right, wrong, right: risks 0, 1/2, 1/3."""
    assert aurc(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_aurc_equals_a_slow_loop_without_ties():
    """The mean of the running error rate over a plain sort."""
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0, 1, 300), rng.integers(0, 2, 300)
    assert aurc(confidence, correct) == pytest.approx(_slow((1 - correct)[np.argsort(-confidence)].tolist()))


@given(TINY)
def test_ties_are_the_mean_over_all_orders(pairs):
    """Every order of the samples that respects the confidences, averaged."""
    orders = [order for order in itertools.permutations(pairs) if all(a[0] >= b[0] for a, b in itertools.pairwise(order))]
    expected = np.mean([_slow([1 - y for _, y in order]) for order in orders])
    assert aurc(*_arrays(pairs)) == pytest.approx(expected, abs=1e-12)


@given(PAIRS, st.randoms())
def test_order_does_not_matter(pairs, random):
    """Shuffling tied samples changes nothing."""
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert aurc(*_arrays(shuffled)) == pytest.approx(aurc(*_arrays(pairs)), abs=1e-12)


@given(PAIRS)
def test_bounds_and_monotone_transform(pairs):
    """0 <= E-AURC <= AURC <= 1; only the order of the confidences counts."""
    confidence, correct = _arrays(pairs)
    assert -1e-12 <= eaurc(confidence, correct) <= aurc(confidence, correct) + 1e-12 <= 1 + 1e-12
    assert aurc(confidence**3 / 2, correct) == pytest.approx(aurc(confidence, correct), abs=1e-12)


def test_extremes():
    """All right is 0, all wrong is 1 with nothing to gain, and perfect ranking has no excess."""
    confidence = np.linspace(0.1, 0.9, 9)
    assert aurc(confidence, np.ones(9)) == 0.0
    assert (aurc(confidence, np.zeros(9)), eaurc(confidence, np.zeros(9))) == (1.0, 0.0)
    assert eaurc(confidence, confidence > 0.5) == pytest.approx(0.0, abs=1e-12)


def test_optimum_is_the_slow_loop_and_near_its_limit():
    """The closed sum equals the loop, and e + (1 - e) ln(1 - e) is its limit."""
    assert optimal_aurc(20, 5) == pytest.approx(_slow([0] * 15 + [1] * 5))
    assert optimal_aurc(100_000, 30_000) == pytest.approx(0.3 + 0.7 * math.log(0.7), abs=1e-4)


def test_augrc_by_hand():
    """Right, wrong, right: errors so far 0, 0, 1, 1 of 3; the trapezoids are 0, 1/6 and 1/3, each a third wide."""
    assert augrc(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])) == pytest.approx((0 + 1 / 6 + 1 / 3) / 3)


def test_augrc_equals_its_closed_form_by_sklearn():
    """(1 - AUROC) a e + e^2 / 2 with scikit-learn's AUROC, many ties included."""
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0, 1, 2000).round(2)
    correct = rng.uniform(0, 1, 2000) < confidence
    error = 1 - correct.mean()
    expected = (1 - roc_auc_score(correct, confidence)) * (1 - error) * error + error**2 / 2
    assert augrc(confidence, correct) == pytest.approx(expected, abs=1e-12)


@given(TINY)
def test_augrc_of_ties_is_the_mean_over_all_orders(pairs):
    """Every order of the samples that respects the confidences, by plain trapezoids, averaged."""
    n, values = len(pairs), []
    for order in itertools.permutations(pairs):
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order)):
            errors = np.cumsum([0, *(1 - y for _, y in order)])
            values.append(sum((errors[k] + errors[k + 1]) / 2 for k in range(n)) / n**2)
    assert augrc(*_arrays(pairs)) == pytest.approx(np.mean(values), abs=1e-12)


def _answer(pairs, share):
    """Return the expected error rate of the most confident part, each sample written 20 times and tied ones replaced by their mean."""
    ordered = sorted(pairs, reverse=True)
    risk = {c: np.mean([1 - y for other, y in pairs if other == c]) for c, _ in pairs}
    spread = np.repeat([risk[c] for c, _ in ordered], 20)
    return spread[: round(share * len(spread))].mean()


@given(PAIRS)
def test_risk_at_coverage_equals_a_slow_loop(pairs):
    """Shares that are a multiple of 1/20 cut the repeated samples exactly."""
    for share in (0.05, 0.8, 0.9, 0.95, 1.0):
        assert risk_at_coverage(*_arrays(pairs), share) == pytest.approx(_answer(pairs, share), abs=1e-9)


@given(PAIRS)
def test_coverage_at_risk_equals_a_slow_loop(pairs):
    """Every threshold tried, in whole numbers."""
    for percent in (0, 1, 5, 25, 100):
        best = 0
        for threshold in {c for c, _ in pairs}:
            answered = [y for c, y in pairs if c >= threshold]
            if 100 * answered.count(0) <= percent * len(answered):
                best = max(best, len(answered))
        assert coverage_at_risk(*_arrays(pairs), percent / 100) == best / len(pairs)


def test_coverage_at_risk_by_hand_and_at_its_edge():
    """3 wrong of 60 are 5 %, not more; a tied block is taken whole or not at all; nothing may be taken."""
    assert coverage_at_risk(np.linspace(1, 0.5, 60), np.arange(60) < 57, 0.05) == 1.0
    assert coverage_at_risk(np.linspace(1, 0.5, 60), np.arange(60) < 56, 0.05) == pytest.approx(58 / 60)
    assert coverage_at_risk(np.array([1.0, 0.5, 0.5]), np.array([1, 1, 0]), 0.05) == pytest.approx(1 / 3)
    assert coverage_at_risk(np.array([1.0, 0.5]), np.array([0, 1]), 0.05) == 0.0


@given(PAIRS, st.randoms())
def test_order_and_repetition_do_not_matter_for_the_rest(pairs, random):
    """Any order, the whole set repeated, or another scale of confidence: the same; and each within its range."""
    shuffled = list(pairs)
    random.shuffle(shuffled)
    measures = [
        (augrc, 0.5),
        (lambda confidence, correct: risk_at_coverage(confidence, correct, 0.9), 1.0),
        (lambda confidence, correct: coverage_at_risk(confidence, correct, 0.05), 1.0),
    ]
    confidence, correct = _arrays(pairs)
    for measure, most in measures:
        value = measure(confidence, correct)
        assert 0 <= value <= most + 1e-12
        for other in (_arrays(shuffled), _arrays(pairs * 3), (confidence**3 / 2, correct)):
            assert measure(*other) == pytest.approx(value, abs=1e-12)


def test_one_class():
    """All right: no risk, all covered. All wrong: half the square, all risk, nothing covered."""
    confidence = np.array([0.0, 0.3, 1.0, 1.0])
    for correct, expected in ((np.ones(4), (0.0, 0.0, 1.0)), (np.zeros(4), (0.5, 1.0, 0.0))):
        assert (
            augrc(confidence, correct),
            risk_at_coverage(confidence, correct, 0.8),
            coverage_at_risk(confidence, correct, 0.01),
        ) == expected


@pytest.mark.parametrize("measure", [aurc, augrc, lambda c, y: risk_at_coverage(c, y, 0.8), lambda c, y: coverage_at_risk(c, y, 0.05)])
def test_empty_is_an_error(measure):
    """No samples have no risk."""
    with pytest.raises(DataError, match="wrong shape"):
        measure(np.array([]), np.array([]))


def test_shares_outside_their_range_are_refused():
    """Coverage 0 has no risk, and a risk above 1 does not exist."""
    with pytest.raises(DataError, match="no such coverage; found 0"):
        risk_at_coverage(np.ones(2), np.ones(2), 0)
    with pytest.raises(DataError, match=r"no such risk; found 1.5; expected 0 to 1"):
        coverage_at_risk(np.ones(2), np.ones(2), 1.5)
