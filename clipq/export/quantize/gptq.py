"""GPTQ: weights rounded one input after the other, the error of each carried by the weights still to come.

Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clipq.errors import ExportError
from clipq.export.quantize.weights import round_weight

Float64 = npt.NDArray[np.float64]
_BLOCK = 128  # inputs whose errors are carried on together
_DAMPING = 0.01  # of the mean diagonal, as in the paper


def gptq(weight: npt.NDArray[np.float32], gram: Float64, scales: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.int8]:
    """Return integers in [-limit, limit] of a weight such that what it makes of its inputs changes little.

    Algorithm 1 of the paper, with the inputs in descending order of their energy ("act-order") and fixed scales. An input that was
    never seen (zero on the diagonal) is rounded to the nearest. A channel whose error on the inputs would be larger than that of
    rounding every weight to the nearest is rounded so: the result is never worse than that.

    Args:
        weight: ``(inputs, outputs)``.
        gram: Second moments of the inputs, ``X^T X`` up to a factor, ``(inputs, inputs)``, symmetric.
        scales: Steps ``(outputs,)``, positive.
        limit: Largest integer.

    Raises:
        ExportError: The second moments are not finite.
    """
    if not np.isfinite(gram).all():
        raise ExportError("NaN or infinity in the second moments of a layer's inputs", fix="Check the checkpoint and the images.")
    nearest = round_weight(weight, scales, 1, limit)
    order = np.argsort(-np.diag(gram), kind="stable")
    factor = inverse_factor(gram[np.ix_(order, order)])
    rounded = np.empty_like(nearest)
    rounded[order] = _carried(weight[order].astype(np.float64), factor, scales.astype(np.float64), limit)
    better = output_error(weight, rounded, scales, gram) <= output_error(weight, nearest, scales, gram)
    return np.where(better, rounded, nearest)


def inverse_factor(gram: Float64) -> Float64:
    """Return the upper triangular ``U`` with ``U^T U`` the inverse of the damped second moments.

    The damping is 1 % of the mean diagonal, ten times more as long as the matrix is not positive definite to working precision. Inputs
    that were never seen get the mean diagonal. All zeros count as the identity.
    """
    from scipy.linalg import solve_triangular

    mean = float(np.mean(np.diag(gram))) or 1.0
    damped = gram + np.diag(np.where(np.diag(gram) > 0, 0.0, mean))
    damping = _DAMPING
    while (reverse := _reverse_cholesky(damped + damping * mean * np.eye(len(gram)))) is None:
        damping *= 10  # ends: with enough on it, the diagonal dominates
    factor: Float64 = solve_triangular(reverse, np.eye(len(gram)))
    return factor


def _reverse_cholesky(matrix: Float64) -> Float64 | None:
    """Return the upper triangular ``R`` with ``R R^T`` the matrix, whose inverse is the factor; None where there is none."""
    from scipy.linalg import cholesky

    try:  # with both axes reversed, lower becomes upper
        factor: Float64 = cholesky(matrix[::-1, ::-1], lower=True)[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None
    return factor


def output_error(
    weight: npt.NDArray[np.float32], integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], gram: Float64
) -> Float64:
    """Return the squared error ``||X (W - Q)||^2`` of each output ``(outputs,)``, up to the factor of ``gram``."""
    error = weight.astype(np.float64) - integers * scales.astype(np.float64)
    return np.einsum("io,io->o", gram @ error, error)


def _carried(weight: Float64, factor: Float64, scales: Float64, limit: int) -> npt.NDArray[np.int8]:
    """Round row after row of ``weight``, which is overwritten; inside a block errors are carried at once, beyond it block by block."""
    integers = np.empty(weight.shape, np.int8)
    for start in range(0, len(weight), _BLOCK):
        stop = min(start + _BLOCK, len(weight))
        errors = np.empty((stop - start, weight.shape[1]))
        for row in range(start, stop):
            integers[row] = np.clip(np.rint(weight[row] / scales), -limit, limit)
            errors[row - start] = (weight[row] - integers[row] * scales) / factor[row, row]
            weight[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        weight[stop:] -= factor[start:stop, stop:].T @ errors
    return integers
