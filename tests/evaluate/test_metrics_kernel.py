"""The kernel calibration error against the sum over all pairs, by hand, and by its properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.errors import DataError
from clipq.evaluate.metrics.kernel import CELLS, SMALLEST_BANDWIDTH, ece_kde, kde_bandwidth

PAIRS = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 1 / 15, 0.2, 0.6, 1.0]), st.floats(0, 1)), st.integers(0, 1)), min_size=2, max_size=60
)


def _arrays(pairs):
    confidence, correct = zip(*pairs, strict=True)
    return np.array(confidence), np.array(correct)


def _all_pairs(confidence, correct):
    """Every sample against every other, each with its mirror images at 0 and 1; samples without a neighbour left out."""
    h = kde_bandwidth(confidence)
    gaps = []
    for j, c in enumerate(confidence):
        weights = np.zeros(len(confidence))
        for shift in range(-6, 7, 2):
            weights += np.exp(-(((confidence - c + shift) / h) ** 2) / 2) + np.exp(-(((confidence + c + shift) / h) ** 2) / 2)
        own, weights[j] = weights[j], 0.0
        if weights.sum() > 1e-6 * own:
            gaps.append(abs(weights @ correct / weights.sum() - c))
    return np.mean(gaps)


def _drawn(n, seed):
    rng = np.random.default_rng(seed)
    confidence = 1 - (1 - rng.beta(4, 1.2, n)) ** 2
    return confidence, (rng.uniform(0, 1, n) < confidence**1.3).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_is_exact_for_confidences_on_it(seed):
    """With every confidence at the centre of a cell the cosine transform is the sum over all pairs."""
    confidence, correct = _drawn(400, seed)
    confidence = (np.floor(confidence * (CELLS - 1)) + 0.5) / CELLS
    assert ece_kde(confidence, correct) == pytest.approx(_all_pairs(confidence, correct), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_grid_is_near_the_sum_over_all_pairs(seed):
    """Elsewhere the two differ by no more than is said."""
    confidence, correct = _drawn(1500, seed)
    assert ece_kde(confidence, correct) == pytest.approx(_all_pairs(confidence, correct), abs=3e-4)


def test_by_hand():
    """Two samples judge each other: |0 - 0.75| and |1 - 0.25|; three tied ones, one wrong, see 1, 1/2 and 1/2 right."""
    assert ece_kde(np.array([0.75, 0.25]), np.array([1, 0])) == pytest.approx(0.75)
    assert ece_kde(np.full(3, 0.5), np.array([0, 1, 1])) == pytest.approx(1 / 6)


def test_perfect_confidence_counts():
    """All at exactly 1: 10 % wrong is an error of 0.1 (the left-out sample moves nobody by more than 1/99), none wrong is 0."""
    assert ece_kde(np.ones(100), np.array([0] * 10 + [1] * 90)) == pytest.approx(0.1, abs=1e-9)
    assert ece_kde(np.ones(100), np.ones(100)) == pytest.approx(0.0, abs=1e-12)
    assert ece_kde(np.zeros(100), np.ones(100)) == pytest.approx(1.0, abs=1e-3)


def test_a_known_curve_is_found():
    """Confidences spread evenly that are right with probability c^2 err by the integral of c - c^2, 1/6."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 200_000)
    assert ece_kde(confidence, rng.uniform(0, 1, 200_000) < confidence**2) == pytest.approx(1 / 6, abs=0.005)


def test_calibrated_data_is_biased_as_documented():
    """Perfectly calibrated data shows about 0.022 at n = 1,000."""
    rng = np.random.default_rng(1)
    confidence = rng.beta(4, 1.2, (100, 1000))
    correct = rng.uniform(0, 1, (100, 1000)) < confidence
    assert np.mean([ece_kde(c, y) for c, y in zip(confidence, correct, strict=True)]) == pytest.approx(0.022, abs=0.003)


def test_bandwidth_rule():
    """1.06 std n^-1/5, and never below the floor."""
    confidence, _ = _drawn(500, 0)
    assert kde_bandwidth(confidence) == pytest.approx(1.06 * np.std(confidence) * 500**-0.2)
    assert kde_bandwidth(np.ones(9)) == SMALLEST_BANDWIDTH


def test_a_sample_far_from_all_others_is_left_out():
    """One at 0 among a thousand near 1 has no neighbour to learn from; the others are as without it."""
    confidence = np.append(np.full(1000, 0.99), 0.0)
    correct = np.append(np.tile([1, 1, 1, 0], 250), 1)
    assert ece_kde(confidence, correct) == pytest.approx(0.24, abs=1e-3)


@given(PAIRS, st.randoms())
def test_order_does_not_matter_and_bounds(pairs, random):
    """Any order gives the same number, from 0 to 1, with ties and confidences of exactly 0 and 1."""
    shuffled = list(pairs)
    random.shuffle(shuffled)
    value = ece_kde(*_arrays(pairs))
    assert 0 <= value <= 1
    assert ece_kde(*_arrays(shuffled)) == pytest.approx(value, abs=1e-9)


def test_repetition_tends_to_the_error_without_leaving_out():
    """Repeated often, a sample's own copies are its neighbours: all at 0.5, half of them right, tends to 0."""
    values = [ece_kde(np.full(2 * times, 0.5), np.tile([0, 1], times)) for times in (1, 10, 100)]
    assert values == pytest.approx([0.5, 0.5 / 19, 0.5 / 199])


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples(n):
    """None is no array of samples, one has nobody to learn from."""
    with pytest.raises(DataError, match=r"wrong shape|too few samples for the kernel calibration error; found 1; expected at least 2"):
        ece_kde(np.full(n, 0.5), np.ones(n))
