"""Disagreement, flips, JS and KL divergence and cosine drift against scipy, by hand, and at their bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import entropy

from clipq.errors import DataError
from clipq.evaluate.metrics import paired
from clipq.evaluate.metrics.probabilities import softmax

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(4)), elements=st.integers(-60, 60).map(float))
TRIPLES = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40)


@given(TRIPLES)
def test_flips_sum_to_the_disagreement(triples):
    """Each changed prediction is in exactly one group, counted one by one."""
    labels, before, after = (np.array(column) for column in zip(*triples, strict=True))
    found = paired.flips(labels, before, after)
    n = len(triples)
    assert found.correct_to_wrong == sum(b == y != a for y, b, a in triples) / n
    assert found.wrong_to_correct == sum(a == y != b for y, b, a in triples) / n
    assert found.wrong_to_other_wrong == sum(len({y, b, a}) == 3 for y, b, a in triples) / n
    assert found.flips + found.wrong_to_other_wrong == pytest.approx(paired.disagreement(before, after))


def test_js_divergence_equals_scipy():
    """The mean of scipy's squared Jensen-Shannon distance in nats, over more than one block."""
    rng = np.random.default_rng(0)
    first, second = softmax(5 * rng.standard_normal((300, 1000))), softmax(5 * rng.standard_normal((300, 1000)))
    found = paired.divergence(first, second).js
    assert found == pytest.approx(np.mean(jensenshannon(first, second, axis=1) ** 2), rel=1e-9)
    assert found == pytest.approx(paired.divergence(second, first).js)


def test_kl_divergence_equals_scipy():
    """The mean of scipy's relative entropy of the baseline to the engine; the other way round it is another number."""
    rng = np.random.default_rng(3)
    logits = 5 * rng.standard_normal((2, 300, 1000))
    first, second = softmax(logits[0]), softmax(logits[1])
    found = paired.divergence(first, second).kl
    assert found == pytest.approx(entropy(first, second, axis=1).mean(), rel=1e-9)
    assert found == pytest.approx(paired.divergence_of_logits(*logits).kl, rel=1e-9)
    assert found != pytest.approx(paired.divergence(second, first).kl, rel=1e-3)


def test_kl_divergence_by_hand():
    """(3/4, 1/4) to (1/2, 1/2): 3/4 log(3/2) - 1/4 log 2; a zero of the engine costs infinity, a zero of the baseline nothing."""
    assert paired.divergence(np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]])).kl == pytest.approx(0.75 * np.log(1.5) - 0.25 * np.log(2))
    assert paired.divergence(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])).kl == np.inf
    assert paired.divergence(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])).kl == pytest.approx(np.log(2))
    assert paired.divergence_of_logits(np.array([[2000.0, 0.0]]), np.array([[0.0, 2000.0]])).kl == 2000.0


@given(LOGITS, LOGITS, st.integers(1, 4), st.randoms())
def test_divergences_do_not_see_order_or_copies(first, second, copies, random):
    """Neither is below 0, JS is at most log 2 and at most a quarter of KL both ways; any order and any number of copies are alike."""
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    found, back = paired.divergence_of_logits(first, second), paired.divergence_of_logits(second, first)
    assert 0 <= found.js <= np.log(2) + 1e-12
    assert found.js <= (found.kl + back.kl) / 4 + 1e-12
    order = random.sample(range(n), n) * copies
    again = paired.divergence_of_logits(first[order], second[order])
    assert (again.js, again.kl) == pytest.approx((found.js, found.kl), abs=1e-12)


def test_js_divergence_bounds():
    """Equal distributions give 0, disjoint ones log 2, zeros included."""
    eye = np.eye(3)
    assert paired.divergence(eye, eye) == paired.Divergence(0.0, 0.0)
    assert paired.divergence(eye, eye[[1, 2, 0]]).js == pytest.approx(np.log(2))


def test_cosine_drift_equals_scipy():
    """Mean, first percentile and minimum of scipy's cosines; lengths do not matter."""
    rng = np.random.default_rng(1)
    first = rng.standard_normal((200, 16)) + 3
    second = first + 0.5 * rng.standard_normal((200, 16))
    cosines = np.array([1 - cosine(a, b) for a, b in zip(first, second, strict=True)])
    drift = paired.cosine_drift(first, 7 * second)
    assert (drift.mean, drift.min) == pytest.approx((cosines.mean(), cosines.min()))
    assert drift.p1 == pytest.approx(np.percentile(cosines, 1))


def test_centring_shows_what_a_shared_mean_hides():
    """Embeddings around one far point look alike by plain cosine even when unrelated; centred they do not."""
    rng = np.random.default_rng(2)
    centre = np.full(64, 5.0)
    drift = paired.cosine_drift(centre + rng.standard_normal((500, 64)), centre + rng.standard_normal((500, 64)))
    assert drift.mean > 0.95
    assert abs(drift.centred_mean) < 0.05
    same = centre + rng.standard_normal((500, 64))
    assert paired.cosine_drift(same, same).centred_mean == pytest.approx(1.0)


def test_bad_input_is_named():
    """Another number of samples, another shape, an embedding of length 0."""
    with pytest.raises(DataError, match="wrong shape"):
        paired.disagreement(np.array([0, 1]), np.array([0]))
    with pytest.raises(DataError, match="differ in shape"):
        paired.divergence(np.eye(2), np.eye(3))
    with pytest.raises(DataError, match="length 0; found the first at row 1"):
        paired.cosine_drift(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]]))
