"""What the errors of a corrupted copy need of its embeddings, and no more: no fits, no OOD scores, memory in blocks."""

from __future__ import annotations

import numpy as np

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.evaluate.metrics.arrays import Int64, blocks
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.metrics.probabilities import log_sigmoid, log_softmax
from clipq.evaluate.zeroshot import cosines, logits


def light_outcomes(embeddings: Float32, classes: Float32, model: ModelEntry, labels: Int64, what: str) -> Outcomes:
    """Return predictions, confidences, NLL and Brier scores.

    Args:
        embeddings: Raw image embeddings, ``(n, dim)``.
        classes: The engine's zero-shot classifier, unit vectors, ``(classes, dim)``.
        model: Logit scale and bias, and so which kind of model it is.
        labels: ``(n,)``.
        what: Names the engine and data in an error.

    Raises:
        EngineError: An embedding has no direction.
    """
    predictions = np.empty(len(labels), np.int64)
    columns = np.empty((3, len(labels)))
    for rows in blocks(len(labels), len(classes)):
        logit = logits(cosines(embeddings[rows], classes, what), model)
        scores = logit if model.logit_bias is None else log_sigmoid(logit)
        log_p = log_softmax(scores)
        own, p = log_p[np.arange(len(log_p)), labels[rows]], np.exp(log_p)
        predictions[rows] = scores.argmax(axis=1)
        columns[:, rows] = p.max(axis=1), -own, np.einsum("ij,ij->i", p, p) - 2.0 * np.exp(own) + 1.0
    confidence, nll, brier = columns
    return Outcomes(labels, predictions, np.minimum(confidence, 1.0), nll=nll, brier=brier)
