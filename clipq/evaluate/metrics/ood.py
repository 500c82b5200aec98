"""Out-of-distribution scores, all as ``ood_score``: HIGHER = MORE OOD, the only sign in the house.

Softmax models (CLIP): every function applies, with logits = logit_scale * cosine.
Sigmoid models (SigLIP): ``mcm``, ``maxlogit`` and ``energy`` apply as they are (a bias moves every score alike, so no AUROC changes);
``msp`` becomes ``max_sigmoid``, which ranks exactly as ``maxlogit`` does; entropy is ``entropy_from_probabilities`` of
``normalised_sigmoid(logits)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from clipq.evaluate.metrics.arrays import Float64, Matrix, as_probabilities, as_rows, blocks
from clipq.evaluate.metrics.probabilities import log_sigmoid


def mcm(cosines: Matrix, temperature: float = 1.0) -> Float64:
    """Return minus the maximum softmax of the cosines themselves (Ming et al. 2022, arXiv 2211.13445), in [-1, -1/classes].

    No ``logit_scale``: at temperature 1 the softmax is nearly flat, so the scores differ in late digits only and are kept in float64.

    Args:
        cosines: ``(n, classes)`` in [-1, 1].
        temperature: tau of the paper.

    >>> mcm(np.array([[0.3, 0.3], [0.4, 0.2]])).round(4).tolist()
    [-0.5, -0.5498]
    """
    return _blockwise(cosines, "cosines", lambda block: -_max_softmax(block / temperature))


def msp(logits: Matrix) -> Float64:
    """Return minus the maximum softmax probability (Hendrycks & Gimpel 2017, arXiv 1610.02136), in [-1, -1/classes].

    >>> msp(np.array([[0.0, np.log(3.0)]])).round(6).tolist()
    [-0.75]
    """
    return _blockwise(logits, "logits", lambda block: -_max_softmax(block))


def max_sigmoid(logits: Matrix) -> Float64:
    """Return minus the logarithm of the highest sigmoid: SigLIP's counterpart of ``msp``, in [0, infinity).

    The logarithm keeps apart what a sigmoid near 0 or 1 would round together.

    >>> max_sigmoid(np.array([[-9.0, 0.0]])).round(4).tolist()
    [0.6931]
    """
    return _blockwise(logits, "logits", lambda block: -log_sigmoid(block.max(axis=1, keepdims=True))[:, 0])


def maxlogit(logits: Matrix) -> Float64:
    """Return minus the highest logit (Hendrycks et al. 2022, arXiv 1911.11132).

    >>> maxlogit(np.array([[1.0, 4.0]])).tolist()
    [-4.0]
    """
    return _blockwise(logits, "logits", lambda block: -block.max(axis=1))


def energy(logits: Matrix, temperature: float = 1.0) -> Float64:
    """Return the free energy ``-T log sum exp(logit / T)`` (Liu et al. 2020, arXiv 2010.03759), here of logits, not of cosines.

    MCM's repository applies it to cosines: that is ``energy(cosines)``, another score with another AUROC.

    >>> energy(np.array([[0.0, 0.0]])).round(4).tolist()
    [-0.6931]
    """
    return _blockwise(logits, "logits", lambda block: -temperature * _logsumexp(block / temperature))


def entropy(logits: Matrix) -> Float64:
    """Return the entropy of the softmax in nats, ``-sum_k p_k log p_k``, in [0, log classes] (as an OOD score Chan et al. 2021).

    >>> entropy(np.array([[0.0, 0.0], [0.0, 900.0]])).round(4).tolist()
    [0.6931, 0.0]
    """
    return _blockwise(logits, "logits", _entropy)


def msp_from_probabilities(probabilities: Matrix) -> Float64:
    """Return minus the highest probability: ``msp`` of stored probabilities.

    >>> msp_from_probabilities(np.array([[0.25, 0.75]])).tolist()
    [-0.75]
    """
    return _blockwise(as_probabilities(probabilities), "probabilities", lambda block: -block.max(axis=1))


def entropy_from_probabilities(probabilities: Matrix) -> Float64:
    """Return the entropy in nats of stored probabilities; a probability of 0 adds nothing.

    >>> entropy_from_probabilities(np.array([[0.0, 1.0], [0.5, 0.5]])).round(4).tolist()
    [0.0, 0.6931]
    """
    return _blockwise(as_probabilities(probabilities), "probabilities", lambda block: entr(block).sum(axis=1))


def _blockwise(values: Matrix, name: str, score: Callable[[Float64], Float64]) -> Float64:
    matrix = as_rows(values, name)
    return np.concatenate([score(matrix[rows].astype(np.float64)) for rows in blocks(*matrix.shape)])


def _max_softmax(block: Float64) -> Float64:
    return np.asarray(1.0 / np.exp(block - block.max(axis=1, keepdims=True)).sum(axis=1))


def _logsumexp(block: Float64) -> Float64:
    top = block.max(axis=1)
    return np.asarray(top + np.log(np.exp(block - top[:, None]).sum(axis=1)))


def _entropy(block: Float64) -> Float64:
    shifted = block - block.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1)
    return np.asarray(np.maximum(0.0, np.log(total) - np.einsum("ij,ij->i", exponentials, shifted) / total))
