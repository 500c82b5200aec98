"""How far a linear layer's output moves when its input and weight become integers, on a sample of its inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from clipq.export.quantize.ranges import PERCENTILE
from clipq.methods import Bits

_TINY = float(torch.finfo(torch.float32).tiny)


def fake_quantized(values: Tensor, clip: Tensor, limit: int) -> Tensor:
    """Return values rounded to the symmetric grid of ``2 limit + 1`` numbers up to ``clip``, saturating; 0 where the clip is 0.

    >>> fake_quantized(torch.tensor([0.4, 3.0, -9.0]), torch.tensor(7.0), 7).tolist()
    [0.0, 3.0, -7.0]
    """
    step = (clip / limit).clamp_min(_TINY)
    return (values / step).round_().clamp_(-limit, limit).mul_(step)


def rounded_weight(weight: Tensor, limit: int) -> Tensor:
    """Return a weight ``(out, in)`` rounded with one scale per output channel, as engines store it."""
    return fake_quantized(weight, weight.abs().amax(dim=1, keepdim=True), limit)


def percentile_of(values: Tensor) -> Tensor:
    """Return the absolute value that 99.99 % of the values stay within, a scalar."""
    flat = values.abs().flatten()
    return flat.kthvalue(max(1, round(len(flat) * PERCENTILE / 100))).values


def output_error(rows: Tensor, weight: Tensor, clips: Iterable[Tensor], bits: Bits) -> float:
    """Return the mean squared error of ``rows @ weight.T`` in integers, summed over some clips of the input.

    Args:
        rows: Inputs, float32 ``(rows, in)``.
        weight: float32 ``(out, in)``.
        clips: Scalars; each is one way to choose the range of the input.
        bits: Of input and weight.
    """
    exact, integers = rows @ weight.T, rounded_weight(weight, bits.weight_limit)
    found = (fake_quantized(rows, clip, bits.activation_limit) @ integers.T for clip in clips)
    return sum(float((one - exact).square().mean()) for one in found)
