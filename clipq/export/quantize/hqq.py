"""Weights in blocks along the input, each block with a scale and a zero point: to the nearest (RTN), or by half-quadratic optimisation.

HQQ: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", the blog and code of mobiusml/hqq.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clipq.export.quantize.weights import SMALLEST_SCALE

Float32 = npt.NDArray[np.float32]
NORM, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20  # of HQQ's own code


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight in blocks: ``(integers - zeros) * scales``.

    Attributes:
        integers: ``(inputs, outputs)``, uint8, from 0 to the largest integer of the bits.
        scales: ``(blocks, outputs)``, positive.
        zeros: ``(blocks, outputs)``, uint8: the integer that means zero.
    """

    integers: npt.NDArray[np.uint8]
    scales: Float32
    zeros: npt.NDArray[np.uint8]


def round_blocks(weight: Float32, bits: int, size: int, *, optimised: bool) -> Blocks:
    """Return a weight ``(inputs, outputs)`` in blocks of ``size`` inputs, the last one shorter where they do not divide.

    Args:
        weight: Finite values.
        bits: 8 or 4.
        size: Inputs of a block.
        optimised: HQQ; else rounding to the nearest in the range of each block.
    """
    whole = len(weight) // size * size
    parts = [weight[:whole].reshape(-1, size, weight.shape[1]), weight[None, whole:]]
    largest = 2**bits - 1
    made = []
    for part in parts:
        if part.size:
            scales, zeros = range_grid(part, largest)
            if optimised:
                scales, zeros = half_quadratic(part, scales, zeros, largest)
            made.append((_integers(part, scales, zeros, largest).reshape(-1, weight.shape[1]), scales[:, 0], zeros[:, 0]))
    integers, scales, zeros = (np.concatenate(values) for values in zip(*made, strict=True))
    return Blocks(integers.astype(np.uint8), scales.astype(np.float32), zeros.astype(np.uint8))


def range_grid(blocks: Float32, largest: int) -> tuple[Float32, Float32]:
    """Return scales and integer zero points ``(blocks, 1, outputs)`` that span each block ``(blocks, size, outputs)`` and zero.

    >>> scales, zeros = range_grid(np.float32([[[-1.0], [2.0]]]), 15)
    >>> scales.item(), zeros.item()
    (0.20000000298023224, 5.0)
    """
    high, low = np.maximum(blocks.max(axis=1, keepdims=True), 0), np.minimum(blocks.min(axis=1, keepdims=True), 0)
    scales = np.where(high > low, np.maximum((high - low) / largest, SMALLEST_SCALE), 1.0).astype(np.float32)
    return scales, np.clip(np.rint(-low / scales), 0, largest)


def half_quadratic(blocks: Float32, scales: Float32, zeros: Float32, largest: int) -> tuple[Float32, Float32]:
    """Return scales and integer zero points of least ``sum |error|^0.7`` that half-quadratic steps find for each block.

    HQQ alternates two steps: the sparse part of the error by a generalised soft threshold, then the zero point that fits what is left.
    Its zero points are real numbers; DequantizeLinear wants integers, so here the scale is fitted to what is left too, in closed form,
    and the zero point is rounded. The best iterate of each block is kept, the first being the range of the block.
    """
    best = np.full(scales.shape, np.inf, np.float32)
    chosen = scales, zeros
    beta = BETA
    for _ in range(ITERATIONS):
        integers = _integers(blocks, scales, zeros, largest)
        error = blocks - (integers - zeros) * scales
        loss = np.power(np.abs(error), NORM).sum(axis=1, keepdims=True)
        better = loss < best
        best = np.where(better, loss, best)
        chosen = np.where(better, scales, chosen[0]), np.where(better, zeros, chosen[1])
        aim = blocks - shrink(error, beta)
        steps = integers - zeros
        energy = np.sum(steps * steps, axis=1, keepdims=True)
        fitted = np.sum(steps * aim, axis=1, keepdims=True) / np.maximum(energy, 1)
        scales = np.where(fitted > SMALLEST_SCALE, fitted, scales).astype(np.float32)
        zeros = np.clip(np.rint(np.mean(integers - aim / scales, axis=1, keepdims=True)), 0, largest)
        beta *= KAPPA
    return chosen


def shrink(error: Float32, beta: float) -> Float32:
    """Return the minimiser of ``|x|^0.7 + beta / 2 (x - error)^2`` as HQQ approximates it: a generalised soft threshold.

    >>> shrink(np.float32([1.0, -0.01]), 10.0).tolist()
    [0.8999999761581421, -0.0]
    """
    size = np.abs(error)
    threshold = np.power(np.maximum(size, np.finfo(np.float32).tiny), np.float32(NORM - 1)) / np.float32(beta)
    return np.sign(error) * np.maximum(size - threshold, 0)


def _integers(blocks: Float32, scales: Float32, zeros: Float32, largest: int) -> Float32:
    return np.clip(np.rint(blocks / scales + zeros), 0, largest)
