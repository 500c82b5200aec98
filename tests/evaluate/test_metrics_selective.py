"""AURC and E-AURC against slow loops and torch-uncertainty's definition, by hand, and with ties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.evaluate.metrics.selective import aurc, eaurc, optimal_aurc

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
