"""Accuracy: top-1, top-5 and the mean recall over classes, with ties broken by the lowest class index."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Int64, as_labels, as_matrix, blocks


def label_ranks(scores: Array, labels: Array) -> Int64:
    """Return the rank of each label among the scores of its row, 0 for the best.

    A tie goes to the lower class index, as ``argmax`` breaks it, so that rank 0 and top-1 always agree.

    Args:
        scores: ``(n, classes)``; logits, probabilities or cosines, higher = more likely.
        labels: ``(n,)`` class indices.

    Returns:
        ``(n,)`` from 0 to classes - 1.

    >>> label_ranks(np.array([[0.2, 0.5, 0.2]]), np.array([2])).tolist()
    [2]
    """
    matrix = as_matrix(scores, "scores")
    targets = as_labels(labels, "labels", *matrix.shape)
    ranks = np.empty(len(matrix), dtype=np.int64)
    for rows in blocks(*matrix.shape):
        ranks[rows] = block_ranks(matrix[rows], targets[rows])
    return ranks


def block_ranks(scores: Array, labels: Int64) -> Int64:
    """Return ``label_ranks`` of a block that was checked before."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ranks = np.count_nonzero(scores > own, axis=1)
    equal = scores == own
    tied = np.flatnonzero(np.count_nonzero(equal, axis=1) > 1)
    ranks[tied] += (equal[tied] & (np.arange(scores.shape[1]) < labels[tied, None])).sum(axis=1)
    return np.asarray(ranks, dtype=np.int64)


def acc1(scores: Array, labels: Array) -> float:
    """Return the share of samples whose highest score is their label's, in [0, 1].

    >>> acc1(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
    0.5
    """
    return float(np.mean(label_ranks(scores, labels) < 1))


def acc5(scores: Array, labels: Array) -> float:
    """Return the share of samples whose label is among the five highest scores, in [0, 1]; always 1 with five classes or fewer.

    >>> acc5(np.eye(6)[:2], np.array([0, 5]))
    0.5
    """
    return float(np.mean(label_ranks(scores, labels) < 5))


def mean_per_class_recall(predictions: Array, labels: Array) -> float:
    """Return the unweighted mean over classes of the share found, in [0, 1]; classes without a sample do not count.

    The same as scikit-learn's ``balanced_accuracy_score``.

    >>> mean_per_class_recall(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    0.75
    """
    targets = as_labels(labels, "labels")
    guesses = as_labels(predictions, "predictions", len(targets))
    _, place = np.unique(targets, return_inverse=True)  # labels may be numbers of any size
    return float(np.mean(np.bincount(place, weights=guesses == targets) / np.bincount(place)))
