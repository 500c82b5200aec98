"""NegLabel by hand, against slow loops written from the paper, and by its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.errors import DataError
from clipq.evaluate.metrics.neglabel import choose_negatives, neglabel

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))


def _cosines(shape):
    images, classes, words, seed = shape
    drawn = np.random.default_rng(seed).uniform(-0.4, 0.4, (images, classes + words))
    return drawn[:, :classes], drawn[:, classes:]


def _slow(inside, negative, temperature, groups, seed):
    """Return minus the paper's score, one image, one group and one exponential at a time."""
    each = negative.shape[1] // groups
    order = np.random.default_rng(seed).permutation(each * groups).tolist()
    scores = []
    for own, foreign in zip(inside.tolist(), negative.tolist(), strict=True):
        kept = [foreign[place] for place in order]
        shares = []
        for group in range(groups):
            rivals = kept[group * each : (group + 1) * each]
            weights = [math.exp(cosine / temperature) for cosine in own + rivals]
            shares.append(sum(weights[: len(own)]) / sum(weights))
        scores.append(-sum(shares) / groups)
    return scores


def _unit(rng, rows):
    vectors = rng.standard_normal((rows, 6))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_two_groups_by_hand():
    """Weights 2 and 2 for the classes; groups of weight 4 and 12 leave them 4 / 8 and 4 / 16; the third word is dropped."""
    temperature = 0.5
    inside = temperature * np.log([[2.0, 2.0]])
    negative = temperature * np.log([[4.0, 12.0, 1000.0]])
    assert neglabel(inside, negative, temperature=temperature, groups=2)[0] == pytest.approx(-(4 / 8 + 4 / 16) / 2)


def test_defaults_are_those_of_the_code():
    """Temperature 0.01 on cosines, 100 groups, seed 0; 205 words make groups of two and five are dropped."""
    inside, negative = _cosines((3, 5, 205, 7))
    expected = _slow(inside, negative, 0.01, 100, 0)
    np.testing.assert_allclose(neglabel(inside, negative), expected, rtol=1e-12)
    negative[:, 200:] = 0.9
    np.testing.assert_allclose(neglabel(inside, negative), expected, rtol=1e-12)


@given(SHAPES, st.floats(0.01, 2.0), st.integers(1, 9))
def test_equals_a_loop(shape, temperature, groups):
    """Every shape, temperature and number of groups gives what one loop over images, groups and words gives."""
    inside, negative = _cosines(shape)
    groups = min(groups, negative.shape[1])
    expected = _slow(inside, negative, temperature, groups, shape[3])
    np.testing.assert_allclose(neglabel(inside, negative, temperature=temperature, groups=groups, seed=shape[3]), expected, rtol=1e-9)


@given(SHAPES, st.floats(-0.5, 0.5))
def test_properties(shape, constant):
    """The order of classes and a constant added to all cosines change nothing; images do not see each other; it lies in [-1, 0]."""
    inside, negative = _cosines(shape)
    score = neglabel(inside, negative, temperature=0.1, groups=1)
    assert ((score >= -1) & (score <= 0)).all()
    order = np.random.default_rng(1).permutation(inside.shape[1])
    np.testing.assert_allclose(neglabel(inside[:, order], negative, temperature=0.1, groups=1), score, rtol=1e-12)
    np.testing.assert_allclose(neglabel(inside + constant, negative + constant, temperature=0.1, groups=1), score, rtol=1e-9)
    assert neglabel(inside[:1], negative[:1], temperature=0.1, groups=1)[0] == pytest.approx(score[0], rel=1e-12)


def test_one_group_is_the_plain_formula():
    """With one group the score is minus one softmax summed over the classes, whatever the shuffle."""
    inside, negative = _cosines((50, 10, 300, 3))
    weights = np.exp(np.hstack([inside, negative]) / 0.01)
    plain = -weights[:, :10].sum(axis=1) / weights.sum(axis=1)
    for seed in (0, 1):
        np.testing.assert_allclose(neglabel(inside, negative, groups=1, seed=seed), plain, rtol=1e-9)


def test_higher_is_more_out_of_distribution():
    """Near a class the score is low, near a negative word high; the two sides swapped add up to -1 when there is one group."""
    inside, negative = np.array([[0.30, 0.1], [0.1, 0.1]]), np.array([[0.1, 0.1], [0.30, 0.1]])
    near, far = neglabel(inside, negative, groups=2)
    assert near < far
    np.testing.assert_allclose(neglabel(inside, negative, groups=1) + neglabel(negative, inside, groups=1), -1)


def test_large_matrices_go_in_blocks():
    """More values than one block holds, in float32: the same as row by row."""
    drawn = np.random.default_rng(0).uniform(-0.3, 0.3, (70, 2500)).astype(np.float32)
    rows = [neglabel(drawn[[row], :20], drawn[[row], 20:])[0] for row in range(len(drawn))]
    np.testing.assert_allclose(neglabel(drawn[:, :20], drawn[:, 20:]), rows, rtol=1e-12)


def test_no_exponential_overflows():
    """A tiny temperature gives a step, not infinity or NaN."""
    assert neglabel(np.array([[0.5], [-0.5]]), np.array([[-0.5], [0.5]]), temperature=1e-4, groups=1).tolist() == [-1.0, 0.0]


@given(st.integers(1, 30), st.integers(1, 7), st.floats(0, 1), st.integers(0, 2**31))
def test_mining_equals_a_loop(words, classes, quantile, seed):
    """The words with the smallest quantile of their cosines, quantiles interpolated by hand, nearest last."""
    rng = np.random.default_rng(seed)
    candidates, texts = _unit(rng, words), _unit(rng, classes)
    distances = []
    for word in candidates:
        ordered = sorted(float(sum(a * b for a, b in zip(word, text, strict=True))) for text in texts)
        place = quantile * (classes - 1)
        low = math.floor(place)
        high = min(low + 1, classes - 1)
        distances.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    number = int(rng.integers(1, words + 1))
    chosen = choose_negatives(candidates, texts, number, quantile=quantile)
    assert len(set(chosen.tolist())) == number
    np.testing.assert_allclose([distances[i] for i in chosen], sorted(distances)[:number], atol=1e-12)


def test_mining_ignores_a_single_near_class():
    """At the quantile 0.95 of 40 classes one near class does not spare a word; the maximum would leave it out."""
    texts = np.vstack([np.tile([0.0, 1.0, 0.0], (39, 1)), [[1.0, 0.0, 0.0]]])
    candidates = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, math.sqrt(0.75)]])
    assert choose_negatives(candidates, texts, 1).tolist() == [0]
    assert choose_negatives(candidates, texts, 1, quantile=1.0).tolist() == [1]


@pytest.mark.parametrize(
    ("inside", "negative", "options", "message"),
    [
        (np.zeros((2, 3)), np.zeros((1, 3)), {}, "differ in number"),
        (np.zeros((1, 3)), np.zeros((1, 3)), {"groups": 4}, "3 words in 4 groups"),
        (np.zeros((1, 3)), np.zeros((1, 3)), {"groups": 0}, "cannot be grouped"),
        (np.zeros((1, 3)), np.zeros((1, 3)), {"groups": 1, "temperature": 0.0}, "temperature of NegLabel is wrong"),
        (np.zeros((0, 3)), np.zeros((0, 3)), {}, "ID cosines"),
        (np.full((1, 3), np.nan), np.zeros((1, 3)), {"groups": 1}, "NaN"),
    ],
)
def test_bad_cosines_are_named(inside, negative, options, message):
    """Input that has no score ends in one clear line."""
    with pytest.raises(DataError, match=message):
        neglabel(inside, negative, **options)


@pytest.mark.parametrize(("number", "quantile", "message"), [(0, 0.95, "0 of 3"), (4, 0.95, "4 of 3"), (1, 1.5, "quantile")])
def test_bad_mining_is_named(number, quantile, message):
    """No word, more words than candidates, or a quantile that is none."""
    with pytest.raises(DataError, match=message):
        choose_negatives(np.eye(3), np.eye(3), number, quantile=quantile)
