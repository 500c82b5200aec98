"""Selective prediction: the risk of answering only the most confident share of the samples.

Coverage is the share answered, risk the error rate among them. Inside a block of tied confidences errors grow linearly, which is their
mean over all orders of the block, so the order of the samples does not matter.
"""

from __future__ import annotations

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, as_confidence

ROUNDING = 1e-9  # of a number of errors: 5 % of 60 samples are 3 errors, not 2.9999


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
    counts, errors = _error_curve(confidence, correct)
    every = np.arange(1, counts[-1] + 1)
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


def augrc(confidence: Array, correct: Array) -> float:
    """Return the area under the generalized risk-coverage curve, in [0, 0.5]: the mean rate of undetected errors over all coverages.

    Traub et al. 2024 (arXiv 2407.01032): generalized risk at coverage k/n is (errors among the k most confident)/n, its area by
    trapezoids, which equals ``(1 - AUROC) a e + e^2 / 2`` with accuracy a, error rate e and AUROC of telling right from wrong (mid-ranks
    for ties). Unlike AURC it does not weigh the few most confident errors more than all others. Lower is better; repeating the whole
    set changes nothing.

    >>> augrc(np.array([0.9, 0.8]), np.array([0, 1])), augrc(np.array([0.9, 0.8]), np.array([1, 0]))
    (0.375, 0.125)
    """
    counts, errors = _error_curve(confidence, correct)
    return float((np.diff(counts) * (errors[1:] + errors[:-1])).sum() / (2.0 * counts[-1] ** 2))


def risk_at_coverage(confidence: Array, correct: Array, coverage: float) -> float:
    """Return the error rate of the most confident share ``coverage`` of the samples, in [0, 1], lower is better.

    Geifman & El-Yaniv 2017. A share that ends inside a sample or a tied block takes that part of it.

    Raises:
        DataError: ``coverage`` is not above 0 and at most 1.

    >>> risk_at_coverage(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 1, 1, 0, 0]), 0.8)
    0.25
    """
    if not 0 < coverage <= 1:
        raise DataError("no such coverage", found=coverage, expected="above 0 and at most 1")
    counts, errors = _error_curve(confidence, correct)
    answered = coverage * counts[-1]
    return float(np.interp(answered, counts, errors) / answered)


def coverage_at_risk(confidence: Array, correct: Array, risk: float) -> float:
    """Return the largest share of samples that a threshold on the confidence accepts with an error rate of at most ``risk``, in [0, 1].

    Geifman & El-Yaniv 2017. Higher is better; a tied block is accepted whole or not at all, as a threshold does, and 0 means
    that even the most confident block errs more often. The curve need not rise: an earlier threshold may be beyond ``risk``.

    Raises:
        DataError: ``risk`` is not in [0, 1].

    >>> coverage_at_risk(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), 0.25)
    1.0
    """
    if not 0 <= risk <= 1:
        raise DataError("no such risk", found=risk, expected="0 to 1")
    counts, errors = _error_curve(confidence, correct)
    allowed = errors <= risk * counts + ROUNDING
    return float(counts[allowed].max() / counts[-1])


def _error_curve(confidence: Array, correct: Array) -> tuple[Float64, Float64]:
    """Return how many samples are answered at the end of each tied block, most confident first, and the errors among them, from 0."""
    values, hits = as_confidence(confidence, correct)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1) + 1
    errors = np.cumsum(1.0 - hits[order])[ends - 1]
    return np.concatenate(([0.0], ends)), np.concatenate(([0.0], errors))
