"""Proper scores: negative log-likelihood and the Brier score."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, as_labels, as_probabilities
from clipq.evaluate.metrics.probabilities import log_softmax


def nll_from_logits(logits: Array, labels: Array) -> float:
    """Return the mean of ``-log softmax(logits)[label]`` in nats, 0 or more, finite for finite logits.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)``.

    >>> round(nll_from_logits(np.array([[0.0, 0.0]]), np.array([1])), 6)
    0.693147
    """
    log_probabilities = log_softmax(logits)
    targets = as_labels(labels, "labels", *log_probabilities.shape)
    return float(-log_probabilities[np.arange(len(targets)), targets].mean())


def nll_from_probabilities(probabilities: Array, labels: Array) -> float:
    """Return the mean of ``-log p[label]`` in nats; infinite when a label's probability is exactly 0, because nothing is clipped.

    >>> nll_from_probabilities(np.array([[1.0, 0.0]]), np.array([1]))
    inf
    """
    matrix = as_probabilities(probabilities)
    own = matrix[np.arange(len(matrix)), as_labels(labels, "labels", *matrix.shape)]
    with np.errstate(divide="ignore"):
        return float(-np.log(own.astype(np.float64)).mean())


def brier(probabilities: Array, labels: Array) -> float:
    """Return the mean over samples of ``sum_k (p_k - y_k)^2``, in [0, 2] (Brier 1950); the two-class form of scikit-learn is half of it.

    >>> brier(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    1.0
    """
    matrix = as_probabilities(probabilities)
    own = matrix[np.arange(len(matrix)), as_labels(labels, "labels", *matrix.shape)].astype(np.float64)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    return float(np.mean(squares - 2.0 * own + 1.0))
