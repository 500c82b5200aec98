"""What every classification metric needs of each sample, taken from the logits in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.evaluate.metrics.accuracy import block_ranks
from clipq.evaluate.metrics.arrays import (
    Array,
    Bool,
    Float64,
    Int64,
    Lazy,
    Matrix,
    as_confidence,
    as_labels,
    as_probabilities,
    as_rows,
    blocks,
)
from clipq.evaluate.metrics.classwise import SMALL, ClassBins
from clipq.evaluate.metrics.decomposition import BrierParts, brier_parts
from clipq.evaluate.metrics.isotonic import cross_fitted_isotonic
from clipq.evaluate.metrics.temperature import cross_fitted_confidence


@dataclass(frozen=True, slots=True)
class Outcomes:
    """One engine on one data set; every column is ``(n,)`` in the order of the samples.

    Attributes:
        labels: The right class.
        predictions: The class of the highest logit; the lowest index where several are equal.
        confidence: The probability of the prediction, in [0, 1].
        in_top5: Whether the label is among the five highest; None where only predictions are known, like all that follow.
        nll: ``-log p[label]`` in nats.
        brier: ``sum_k (p_k - y_k)^2``, in [0, 2].
        tempered_confidence: Confidence after a temperature fitted on the other half of the samples.
        temperature: That temperature; None where it cannot be fitted.
        ece_classwise: The classwise calibration error, for all samples together.
        ece_classwise_above_1: The same of the probabilities above 1 % alone.
        brier_parts: The decomposition of the Brier score, for all samples together.
        isotonic_confidence: Confidence after an isotonic regression fitted on the other half; None with fewer than two samples.
    """

    labels: Int64
    predictions: Int64
    confidence: Float64
    in_top5: Bool | None = None
    nll: Float64 | None = None
    brier: Float64 | None = None
    tempered_confidence: Float64 | None = None
    temperature: float | None = None
    ece_classwise: float | None = None
    ece_classwise_above_1: float | None = None
    brier_parts: BrierParts | None = None
    isotonic_confidence: Float64 | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Bool:
        """Whether each prediction is the label."""
        return np.asarray(self.predictions == self.labels)


def outcomes_from_logits(logits: Matrix, labels: Array) -> Outcomes:
    """Return the outcomes of a model trained with a softmax loss; float64 inside, memory in blocks.

    For SigLIP use ``outcomes_from_probabilities(normalised_sigmoid(logits), labels)``.

    Args:
        logits: ``(n, classes)``, ``logit_scale * cosine``.
        labels: ``(n,)``.

    Raises:
        DataError: A shape is wrong, a label is out of range, or a logit is NaN or infinite.

    >>> outcomes_from_logits(np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([0, 1])).confidence.round(4).tolist()
    [0.8808, 0.5]
    """
    matrix = as_rows(logits, "logits")
    return _outcomes(matrix, as_labels(labels, "labels", *matrix.shape), probabilities=False)


def outcomes_from_probabilities(probabilities: Matrix, labels: Array) -> Outcomes:
    """Return the outcomes of stored probabilities; nothing is rescaled or clipped, so a label's probability of 0 gives an infinite NLL.

    Args:
        probabilities: ``(n, classes)`` in [0, 1], rows sum to 1.
        labels: ``(n,)``.

    Raises:
        DataError: A shape is wrong, a label is out of range, or the rows are not probabilities.
    """
    matrix = as_probabilities(probabilities)
    return _outcomes(matrix, as_labels(labels, "labels", *matrix.shape), probabilities=True)


def outcomes_from_predictions(labels: Array, predictions: Array, confidence: Array) -> Outcomes:
    """Return the outcomes of which only the predicted class and its confidence are known.

    Raises:
        DataError: The lengths differ, a class is negative, or a confidence leaves [0, 1].
    """
    targets = as_labels(labels, "labels")
    guesses = as_labels(predictions, "predictions", len(targets))
    values, _ = as_confidence(confidence, guesses == targets)
    return Outcomes(targets, guesses, values, isotonic_confidence=_isotonic(values, guesses == targets))


def _outcomes(matrix: Matrix, labels: Int64, *, probabilities: bool) -> Outcomes:
    n, classes = matrix.shape
    columns = np.empty((3, n))
    predictions, ranks = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    table = ClassBins(classes, threshold=SMALL)
    for rows in blocks(n, classes):
        block = matrix[rows].astype(np.float64)
        predictions[rows], ranks[rows] = block.argmax(axis=1), block_ranks(block, labels[rows])
        own, p = _log_own(block, labels[rows], probabilities=probabilities)
        squares = np.einsum("ij,ij->i", p, p)
        columns[:, rows] = p.max(axis=1), -own, squares - 2.0 * np.exp(own) + 1.0
        table.add(p, labels[rows])
    zeros = probabilities and not all((matrix[rows] > 0).all() for rows in blocks(n, classes))
    tempered, temperature = (None, None) if zeros or n < 2 else _tempered(matrix, labels, probabilities=probabilities)
    confidence, nll, brier = columns
    return Outcomes(
        labels,
        predictions,
        confidence,
        ranks < 5,
        nll,
        brier,
        tempered,
        temperature,
        table.value(),
        table.value_above(),
        brier_parts(table, float(brier.mean())),
        _isotonic(confidence, predictions == labels),
    )


def _log_own(block: Float64, labels: Int64, *, probabilities: bool) -> tuple[Float64, Float64]:
    """Return the log-probability of each label and the probabilities of the block (which is overwritten)."""
    rows = np.arange(len(labels))
    if probabilities:
        with np.errstate(divide="ignore"):
            return np.log(block[rows, labels]), block
    block -= block.max(axis=1, keepdims=True)
    own = block[rows, labels]
    np.exp(block, out=block)
    total = block.sum(axis=1)
    block /= total[:, None]
    return own - np.log(total), block


def _isotonic(confidence: Float64, correct: Bool) -> Float64 | None:
    return cross_fitted_isotonic(confidence, correct) if len(confidence) > 1 else None


def _tempered(matrix: Matrix, labels: Int64, *, probabilities: bool) -> tuple[Float64, float]:
    logits = Lazy(matrix.shape, lambda rows: np.asarray(np.log(matrix[rows])), "logarithms of probabilities") if probabilities else matrix
    return cross_fitted_confidence(logits, labels)
