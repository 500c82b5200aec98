"""How far a linear layer's output moves when its input and weight become integers, on a sample of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from clipq.export.quantize.ranges import PERCENTILE
from clipq.export.transform.capture import Seen
from clipq.methods import Bits

_TINY = float(torch.finfo(torch.float32).tiny)
Name = TypeVar("Name")


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
    beyond = len(flat) - max(1, round(len(flat) * PERCENTILE / 100))
    return flat.topk(beyond + 1).values[-1]


def output_error(  # noqa: PLR0913 - a layer, its input and how both are rounded
    rows: Tensor, weight: Tensor, exact: Tensor, clips: Iterable[Tensor], bits: Bits, *, corrected: bool = False
) -> float:
    """Return the mean squared error of ``rows @ weight.T`` in integers, summed over some clips of the input.

    Args:
        rows: Inputs, float32 ``(rows, in)``.
        weight: float32 ``(out, in)``.
        exact: ``rows @ weight.T``, float32 ``(rows, out)``.
        clips: Scalars; each is one way to choose the range of the input.
        bits: Of input and weight.
        corrected: Leave out the mean error of every output channel, which a corrected bias takes away.
    """
    integers = rounded_weight(weight, bits.weight_limit)
    errors = (fake_quantized(rows, clip, bits.activation_limit) @ integers.T - exact for clip in clips)
    return sum(float((error - error.mean(dim=0) if corrected else error).square().mean()) for error in errors)


def best_of(
    candidates: Mapping[Name, tuple[Tensor, Tensor]], seen: Seen, weight: Tensor, bits: Bits, *, corrected: bool = False
) -> tuple[Name, float]:
    """Return the best of some ways to shift and scale a layer's input, and its error as a share of the first's.

    The error is that of the output in integers on the sampled rows, once with the range that holds 99.99 % of the input and once with
    that of the largest value, one added to the other: either way to calibrate is served, and an offset that saturates more of what the
    calibration images showed does not win by it.

    Args:
        candidates: Name to offset and scale, each ``(channels,)``: the layer would read ``(x - offset) / scale``. The first is that of
            the layer as it is.
        seen: What it read.
        weight: float32 ``(out, channels)``.
        bits: Of the engine to be.
        corrected: The engine's biases will be corrected: only what is left of the error then counts.
    """
    errors = {}
    product = seen.rows @ weight.T
    for name, (offset, scale) in candidates.items():
        rows, scaled = (seen.rows - offset) / scale, weight * scale
        clips = percentile_of(rows), (seen.largest(offset) / scale).max()
        errors[name] = output_error(rows, scaled, product - weight @ offset, clips, bits, corrected=corrected)
    best, first = min(errors, key=lambda name: errors[name]), next(iter(errors.values()))
    return best, round(errors[best] / first, 6) if first else 1.0
