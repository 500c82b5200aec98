"""Accuracy against scikit-learn, by hand, and with ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from clipq.errors import DataError
from clipq.evaluate.metrics.accuracy import acc1, acc5, label_ranks, mean_per_class_recall

SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(2, 9)), elements=st.integers(-3, 3).map(float))


def _made(n: int = 400, classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, classes)), rng.integers(0, classes, n)


def test_accuracy_equals_sklearn():
    """Top-1, top-5 and mean recall are scikit-learn's where nothing is tied."""
    scores, labels = _made()
    classes = np.arange(scores.shape[1])
    assert acc1(scores, labels) == accuracy_score(labels, scores.argmax(axis=1))
    assert acc5(scores, labels) == top_k_accuracy_score(labels, scores, k=5, labels=classes)
    assert mean_per_class_recall(scores.argmax(axis=1), labels) == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))


def test_mean_recall_leaves_out_absent_classes():
    """Three classes, one without samples: (1/2 + 1) / 2 by hand, and a prediction of the absent class is only a miss."""
    assert mean_per_class_recall(np.array([0, 1, 2]), np.array([0, 0, 2])) == 0.75


@given(SCORES)
def test_ranks_are_those_of_a_stable_sort(scores):
    """A slow sort by (score descending, index ascending) gives the same rank of every class, ties included."""
    for label in range(scores.shape[1]):
        expected = [sorted(range(len(row)), key=lambda k: (-row[k], k)).index(label) for row in scores]
        assert label_ranks(scores, np.full(len(scores), label)).tolist() == expected


@given(SCORES)
def test_rank_zero_is_argmax(scores):
    """Top-1 and argmax never disagree, even where all scores are equal."""
    labels = scores.argmax(axis=1)
    assert acc1(scores, labels) == 1.0
    assert acc5(scores, labels) == 1.0


def test_blocks_do_not_matter():
    """A matrix of many blocks gives the ranks of its rows one by one."""
    scores, labels = _made(n=300, classes=1500)
    assert label_ranks(scores, labels).tolist() == [int((row > row[label]).sum()) for row, label in zip(scores, labels, strict=True)]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "wrong shape"),
        (np.zeros((2, 3)), np.array([0, 3]), "outside the range of classes; found 0 to 3; expected 0 to 2"),
        (np.zeros((2, 3)), np.array([0, -1]), "outside the range of classes"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "not integers"),
        (np.zeros((2, 3)), np.array([0]), "wrong shape"),
        (np.array([[0.0, np.nan]]), np.array([0]), "NaN or infinity; found the first at row 0"),
        (np.array([["a", "b"]]), np.array([0]), "not numbers"),
        (np.zeros(3), np.array([0]), "wrong shape"),
    ],
)
def test_bad_input_is_named(scores, labels, message):
    """Empty, misshapen, out-of-range and NaN input each end in one clear line."""
    with pytest.raises(DataError, match=message):
        acc1(scores, labels)
