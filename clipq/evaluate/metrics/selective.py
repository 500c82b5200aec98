"""Selective prediction: the risk of answering only the most confident share of the samples."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, as_confidence


def harmonic_numbers(n: int) -> Float64:
    """Return ``H(0), ..., H(n)`` with ``H(k) = 1 + 1/2 + ... + 1/k``.

    >>> harmonic_numbers(2).tolist()
    [0.0, 1.0, 1.5]
    """
    return np.concatenate(([0.0], np.cumsum(1.0 / np.arange(1, n + 1))))


def aurc(confidence: Array, correct: Array) -> float:
    """Return the area under the risk-coverage curve: the mean over k = 1..n of the error rate of the k most confident samples.

    Geifman & El-Yaniv 2017; Geifman, Uziel & El-Yaniv 2019 (arXiv 1805.08206). Inside a block of tied confidences the number of errors
    grows linearly (its mean over all orders of the block), so the order of the samples does not matter.

    Args:
        confidence: ``(n,)`` in [0, 1].
        correct: ``(n,)`` 0 or 1.

    Returns:
        In [0, 1], lower is better.

    >>> aurc(np.array([0.9, 0.8, 0.7]), np.array([1, 1, 0])) == 1 / 9
    True
    """
    values, hits = as_confidence(confidence, correct)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1) + 1
    errors = np.concatenate(([0.0], np.cumsum(1.0 - hits[order])[ends - 1]))
    counts = np.concatenate(([0], ends))
    every = np.arange(1, len(values) + 1)
    return float(np.mean(np.interp(every, counts, errors) / every))


def eaurc(confidence: Array, correct: Array) -> float:
    """Return AURC minus that of the best order of the same predictions (all right ones first); 0 is perfect ranking.

    The optimum is summed exactly; ``e + (1 - e) ln(1 - e)`` of Geifman 2019 is its limit for large n, e = error rate.

    >>> eaurc(np.array([0.9, 0.8, 0.7]), np.array([1, 1, 0]))
    0.0
    """
    _, hits = as_confidence(confidence, correct)
    return aurc(confidence, correct) - optimal_aurc(len(hits), int(len(hits) - hits.sum()))


def optimal_aurc(n: int, errors: int) -> float:
    """Return the AURC of ``n`` samples whose ``errors`` wrong ones all come last.

    >>> optimal_aurc(2, 1)
    0.25
    """
    ranks = np.arange(n - errors + 1, n + 1)
    return float(np.sum((ranks - (n - errors)) / ranks) / n)
