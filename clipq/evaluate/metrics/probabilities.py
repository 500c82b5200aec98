"""Logits to probabilities: softmax for models trained with it, the normalised sigmoid for SigLIP; never a guess which."""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, as_matrix, blocks


def softmax(logits: Array) -> Float64:
    """Return ``exp(z) / sum exp(z)`` per row in float64, shifted by the row's maximum so that nothing overflows.

    Args:
        logits: ``(n, classes)``, for CLIP ``logit_scale * cosine``; any constant per row (a bias) cancels.

    Returns:
        ``(n, classes)`` in [0, 1], rows sum to 1.

    >>> softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]])).round(6).tolist()
    [[0.5, 0.5], [0.25, 0.75]]
    """
    return np.asarray(np.exp(log_softmax(logits)), dtype=np.float64)


def log_softmax(logits: Array) -> Float64:
    """Return the logarithm of ``softmax`` per row in float64, finite for finite logits.

    >>> log_softmax(np.array([[0.0, 2000.0]])).tolist()
    [[-2000.0, 0.0]]
    """
    matrix = as_matrix(logits, "logits")
    output = np.empty(matrix.shape, dtype=np.float64)
    for rows in blocks(*matrix.shape):
        block = matrix[rows].astype(np.float64)
        block -= block.max(axis=1, keepdims=True)
        output[rows] = block - np.log(np.exp(block).sum(axis=1, keepdims=True))
    return output


def normalised_sigmoid(logits: Array) -> Float64:
    """Return ``sigmoid(z) / sum sigmoid(z)`` per row: the class distribution of a model trained with SigLIP's pairwise loss.

    Its sigmoids are independent and do not sum to 1, so calibration over classes needs this normalisation; the bias matters.

    Args:
        logits: ``(n, classes)``, ``logit_scale * cosine + logit_bias``.

    Returns:
        ``(n, classes)`` in [0, 1], rows sum to 1.

    >>> normalised_sigmoid(np.array([[0.0, 0.0, 0.0, 0.0]])).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    return softmax(log_sigmoid(logits))


def log_sigmoid(logits: Array) -> Float64:
    """Return ``log(sigmoid(z))`` elementwise in float64, finite for finite logits.

    >>> log_sigmoid(np.array([[-800.0, 0.0]])).round(4).tolist()
    [[-800.0, -0.6931]]
    """
    return np.asarray(-np.logaddexp(0.0, -as_matrix(logits, "logits").astype(np.float64)), dtype=np.float64)
