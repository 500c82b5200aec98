"""How far an engine's answers moved from the baseline's on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Matrix, as_labels, as_probabilities, as_rows, blocks
from clipq.evaluate.metrics.probabilities import log_softmax


@dataclass(frozen=True, slots=True)
class Flips:
    """Shares of all samples whose prediction changed, by what that did; they sum to the disagreement.

    Attributes:
        correct_to_wrong: The baseline was right, the engine is wrong.
        wrong_to_correct: The baseline was wrong, the engine is right.
        wrong_to_other_wrong: Both are wrong, with different classes.
    """

    correct_to_wrong: float
    wrong_to_correct: float
    wrong_to_other_wrong: float

    @property
    def flips(self) -> float:
        """Share that changed between right and wrong (Dutta et al. 2024, arXiv 2407.09141)."""
        return self.correct_to_wrong + self.wrong_to_correct


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the engine's distributions q are from the baseline's p, means over samples in nats (natural logarithms).

    Attributes:
        js: Jensen-Shannon divergence ``KL(p || m) / 2 + KL(q || m) / 2``, ``m = (p + q) / 2`` (Lin 1991), in [0, log 2].
        kl: Kullback-Leibler divergence ``KL(p || q) = sum_k p_k log(p_k / q_k)`` (Kullback & Leibler 1951; as in Dutta et al. 2024,
            arXiv 2407.09141), 0 or more; infinite where the engine gives 0 to what the baseline does not.
    """

    js: float
    kl: float


@dataclass(frozen=True, slots=True)
class CosineDrift:
    """Cosine between the baseline's and the engine's embedding of the same sample, in [-1, 1]; 1 is no drift.

    Attributes:
        mean: Mean over samples.
        p1: First percentile: one sample in a hundred drifts more.
        min: The worst sample.
        centred_mean: Mean after the baseline's mean embedding is taken from both: embeddings share a large mean, which hides drift.
    """

    mean: float
    p1: float
    min: float
    centred_mean: float


def disagreement(baseline: Array, engine: Array) -> float:
    """Return the share of samples whose predicted class differs, in [0, 1]: the churn of Milani Fard et al. 2016.

    >>> disagreement(np.array([0, 1, 2]), np.array([0, 1, 1]))
    0.3333333333333333
    """
    first = as_labels(baseline, "baseline predictions")
    return float(np.mean(first != as_labels(engine, "engine predictions", len(first))))


def flips(labels: Array, baseline: Array, engine: Array) -> Flips:
    """Return where the changed predictions went.

    Args:
        labels: ``(n,)``.
        baseline: ``(n,)`` predicted classes.
        engine: ``(n,)`` predicted classes.

    >>> flips(np.array([0, 0, 0]), np.array([0, 1, 1]), np.array([1, 0, 2])).flips
    0.6666666666666666
    """
    targets = as_labels(labels, "labels")
    first = as_labels(baseline, "baseline predictions", len(targets))
    second = as_labels(engine, "engine predictions", len(targets))
    before, after = first == targets, second == targets
    return Flips(
        correct_to_wrong=float(np.mean(before & ~after)),
        wrong_to_correct=float(np.mean(~before & after)),
        wrong_to_other_wrong=float(np.mean(~before & ~after & (first != second))),
    )


def divergence(baseline: Matrix, engine: Matrix) -> Divergence:
    """Return how far two sets of distributions are apart; a probability of 0 is taken as it is, nothing is clipped.

    Of logits: ``divergence_of_logits``.

    Args:
        baseline: Probabilities p ``(n, classes)``.
        engine: Probabilities q ``(n, classes)``.

    >>> round(divergence(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])).kl, 6)
    0.693147
    """
    first, second = as_probabilities(baseline, "baseline probabilities"), as_probabilities(engine, "engine probabilities")

    def both(rows: slice) -> tuple[Float64, Float64]:
        p, q = first[rows].astype(np.float64), second[rows].astype(np.float64)
        with np.errstate(divide="ignore"):
            return np.log(p), np.log(q)

    return _divergence(first, second, both)


def divergence_of_logits(baseline: Matrix, engine: Matrix) -> Divergence:
    """Return the same of the softmax of logits, at temperature 1, finite for finite logits; probabilities are made block by block.

    >>> divergence_of_logits(np.array([[900.0, 0.0]]), np.array([[0.0, 900.0]])).kl
    900.0
    """
    first, second = as_rows(baseline, "baseline logits"), as_rows(engine, "engine logits")
    return _divergence(first, second, lambda rows: (log_softmax(first[rows]), log_softmax(second[rows])))


def cosine_drift(baseline: Matrix, engine: Matrix) -> CosineDrift:
    """Return how far embeddings moved.

    Args:
        baseline: Embeddings ``(n, dim)``, normalised or not; cosines are of the normalised ones.
        engine: Embeddings of the same samples.

    Raises:
        DataError: The shapes differ, a value is not finite, or an embedding has length 0.

    >>> cosine_drift(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 3.0]])).mean
    1.0
    """
    cosines, centred = sample_cosines(baseline, engine)
    return CosineDrift(float(cosines.mean()), float(np.percentile(cosines, 1)), float(cosines.min()), float(centred.mean()))


def sample_cosines(baseline: Matrix, engine: Matrix) -> tuple[Float64, Float64]:
    """Return each sample's cosine between its two embeddings, plain and centred (see ``CosineDrift``), both ``(n,)`` in [-1, 1].

    Raises:
        DataError: As in ``cosine_drift``.

    >>> [values.round(6).tolist() for values in sample_cosines(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]))]
    [[0.707107, 1.0], [0.0, 1.0]]
    """
    first, second = as_rows(baseline, "baseline embeddings"), as_rows(engine, "engine embeddings")
    _same_shape(first, second)
    centre = sum(_unit(first[rows], rows.start).sum(axis=0) for rows in blocks(*first.shape)) / len(first)
    plain, centred = np.empty(len(first)), np.empty(len(first))
    for rows in blocks(*first.shape):
        units = _unit(first[rows], rows.start), _unit(second[rows], rows.start)
        plain[rows] = np.einsum("ij,ij->i", *units)
        centred[rows] = _cosines(units[0] - centre, units[1] - centre)
    return plain, centred


def _divergence(first: Matrix, second: Matrix, logarithms: Callable[[slice], tuple[Float64, Float64]]) -> Divergence:
    _same_shape(first, second)
    js = kl = 0.0
    for rows in blocks(*first.shape):
        log_p, log_q = logarithms(rows)
        p, q = np.exp(log_p), np.exp(log_q)
        middle = (p + q) / 2
        js += float((_p_log_ratio(p, middle) + _p_log_ratio(q, middle)).sum()) / 2
        kl += float((p * np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)).sum())
    return Divergence(max(0.0, js / len(first)), max(0.0, kl / len(first)))


def _p_log_ratio(p: Float64, middle: Float64) -> Float64:
    ratio = np.divide(p, middle, out=np.ones_like(p), where=p > 0)
    return np.asarray(p * np.log(ratio), dtype=np.float64)


def _unit(embeddings: Array, start: int) -> Float64:
    values = embeddings.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise DataError("an embedding has length 0", found=f"the first at row {start + int(np.flatnonzero(lengths[:, 0] == 0)[0])}")
    return np.asarray(values / lengths)


def _cosines(first: Float64, second: Float64) -> Float64:
    """Return row-wise cosines; rows that both are exactly at the centre count as equal."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    dots = np.einsum("ij,ij->i", first, second)
    return np.asarray(np.divide(dots, lengths, out=np.ones_like(dots), where=lengths > 0))


def _same_shape(first: Matrix, second: Matrix) -> None:
    if first.shape != second.shape:
        raise DataError(
            "baseline and engine differ in shape", found=f"{first.shape} and {second.shape}", expected="the same samples and classes"
        )
