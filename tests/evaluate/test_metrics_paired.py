"""Disagreement, flips, JS divergence and cosine drift against scipy, by hand, and at their bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cosine, jensenshannon

from clipq.errors import DataError
from clipq.evaluate.metrics import paired
from clipq.evaluate.metrics.probabilities import softmax

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
    assert paired.js_divergence(first, second) == pytest.approx(np.mean(jensenshannon(first, second, axis=1) ** 2), rel=1e-9)
    assert paired.js_divergence(first, second) == pytest.approx(paired.js_divergence(second, first))


def test_js_divergence_bounds():
    """Equal distributions give 0, disjoint ones log 2, zeros included."""
    eye = np.eye(3)
    assert paired.js_divergence(eye, eye) == 0.0
    assert paired.js_divergence(eye, eye[[1, 2, 0]]) == pytest.approx(np.log(2))


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
        paired.js_divergence(np.eye(2), np.eye(3))
    with pytest.raises(DataError, match="length 0; found the first at row 1"):
        paired.cosine_drift(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]]))
