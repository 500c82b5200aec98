"""The parts of the Brier score against a slow loop, by hand, and by their properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from clipq.errors import DataError
from clipq.evaluate.metrics.decomposition import brier_decomposition
from clipq.evaluate.metrics.outcomes import outcomes_from_logits, outcomes_from_probabilities
from clipq.evaluate.metrics.probabilities import softmax
from clipq.evaluate.metrics.proper import brier
from clipq.evaluate.statistics.classification import classification_values

SETS = st.tuples(st.integers(1, 40), st.integers(1, 5), st.sampled_from([0.0, 1.0, 5.0, 1000.0]), st.integers(0, 10**6))


def _made(n, classes, scale, seed):
    rng = np.random.default_rng(seed)
    return softmax(scale * rng.standard_normal((n, classes))), rng.integers(0, classes, n)


def _slow(probabilities, labels, bins=15):
    """Reliability, resolution, uncertainty, within, each as its definition says; nothing is a remainder."""
    n, classes = probabilities.shape
    reliability = resolution = uncertainty = within = 0.0
    for k in range(classes):
        p, y = probabilities[:, k], (labels == k).astype(float)
        uncertainty += y.mean() * (1 - y.mean())
        for b in range(bins):
            inside = (b / bins <= p) & ((p < (b + 1) / bins) | (b == bins - 1))
            if inside.any():
                p_b, o_b = p[inside].mean(), y[inside].mean()
                reliability += inside.sum() * (p_b - o_b) ** 2 / n
                resolution += inside.sum() * (o_b - y.mean()) ** 2 / n
                within += np.sum((p[inside] - p_b) ** 2 - 2 * (p[inside] - p_b) * (y[inside] - o_b)) / n
    return reliability, resolution, uncertainty, within


def _tuple(parts):
    return parts.reliability, parts.resolution, parts.uncertainty, parts.within


@given(SETS)
def test_equals_a_slow_loop_and_sums_to_the_score(made):
    """Each part is its definition's, saturated probabilities, absent classes and one class included, and they sum to Brier."""
    probabilities, labels = _made(*made)
    parts = brier_decomposition(probabilities, labels)
    slow = _slow(probabilities, labels)
    assert _tuple(parts) == pytest.approx(slow, abs=1e-9)
    assert slow[0] - slow[1] + slow[2] + slow[3] == pytest.approx(brier(probabilities, labels), abs=1e-9)


def test_two_classes_are_twice_sklearns_score():
    """For two classes the parts sum to twice scikit-learn's Brier score."""
    probabilities, labels = _made(500, 2, 1.0, 0)
    parts = brier_decomposition(probabilities, labels)
    expected = 2 * brier_score_loss(labels, probabilities[:, 1])
    assert parts.reliability - parts.resolution + parts.uncertainty + parts.within == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    """Ten answers of (0.8, 0.2), six right: reliability 2 * 0.2^2, no resolution, uncertainty 2 * 0.24, nothing within."""
    parts = brier_decomposition(np.tile([0.8, 0.2], (10, 1)), np.array([0] * 6 + [1] * 4))
    assert _tuple(parts) == pytest.approx((0.08, 0.0, 0.48, 0.0))


def test_perfect_answers():
    """Always certain and right: all uncertainty is resolved."""
    labels = np.arange(12) % 3
    parts = brier_decomposition(np.eye(3)[labels], labels)
    assert _tuple(parts) == pytest.approx((0.0, 2 / 3, 2 / 3, 0.0), abs=1e-12)


def test_what_lies_within_a_bin():
    """Probabilities 0.50 and 0.52 share a bin: the right one higher, the within term is var - 2 cov, twice."""
    first = np.array([0.52, 0.50])
    parts = brier_decomposition(np.stack([first, 1 - first], axis=1), np.array([0, 1]))
    assert parts.within == pytest.approx(2 * (0.01**2 - 2 * 0.01 * 0.5))


@given(SETS)
def test_order_and_repetition_do_not_matter_and_bounds(made):
    """Reversed or repeated, the same parts; reliability in [0, 2], 0 <= resolution <= uncertainty < 1."""
    probabilities, labels = _made(*made)
    parts = brier_decomposition(probabilities, labels)
    for index in (slice(None, None, -1), np.tile(np.arange(len(labels)), 3)):
        assert _tuple(brier_decomposition(probabilities[index], labels[index])) == pytest.approx(_tuple(parts), abs=1e-9)
    assert 0 <= parts.reliability <= 2
    assert 0 <= parts.resolution <= parts.uncertainty + 1e-12
    assert parts.uncertainty < 1


def test_rows_of_a_report():
    """From logits, from float32 probabilities and over several blocks: the same rows, which sum to the row of the Brier score."""
    rng = np.random.default_rng(5)
    logits, labels = 3 * rng.standard_normal((1000, 400)), rng.integers(0, 400, 1000)
    rows = classification_values(outcomes_from_logits(logits, labels))
    parts = brier_decomposition(softmax(logits), labels)
    names = ["brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within"]
    assert [rows[name] for name in names] == pytest.approx(_tuple(parts), abs=1e-12)
    assert rows[names[0]] - rows[names[1]] + rows[names[2]] + rows[names[3]] == pytest.approx(rows["brier"], abs=1e-12)
    stored = classification_values(outcomes_from_probabilities(softmax(logits).astype(np.float32), labels))
    assert [stored[name] for name in names] == pytest.approx(_tuple(parts), abs=1e-5)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "wrong shape"),
        (np.array([[0.5, 0.6]]), np.array([0]), "do not sum to 1"),
        (np.array([[0.5, 0.5]]), np.array([2]), "outside the range of classes"),
    ],
)
def test_bad_input_is_named(probabilities, labels, message):
    """Empty, unnormalised and mislabelled input each end in one clear line."""
    with pytest.raises(DataError, match=message):
        brier_decomposition(probabilities, labels)
