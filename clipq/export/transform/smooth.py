"""SmoothQuant: outliers of activations moved into weights, channel by channel (Xiao et al. 2023, arXiv 2211.10438)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipq.export.transform.blocks import Block, Part, double, write
from clipq.export.transform.capture import Key, Seen
from clipq.export.transform.error import output_error, percentile_of
from clipq.methods import Bits

FOLDABLE: tuple[Part, ...] = ("qkv", "out_proj", "fc1")  # fc2 reads an activation function, which no scale passes
ALPHAS = tuple(step / 10 for step in range(11))
_LEAST, _MOST = 1e-4, 1e4


def scale_input(block: Block, part: Part, scale: Tensor) -> None:
    """Let a part of a block read its input divided by a scale per channel, in place; what the block computes stays the same.

    ``W x = (W diag(s)) (x / s)``. The LayerNorm before ``qkv`` and ``fc1`` takes the division, and the values' weight and bias that before
    ``out_proj``: attention mixes tokens, never channels.

    Args:
        block: The block.
        part: ``qkv``, ``out_proj`` or ``fc1``.
        scale: ``(channels,)``, positive.
    """
    weight = block.weight(part)
    (by_channel,) = double(scale)
    write(weight, double(weight)[0] * by_channel)
    if part == "out_proj":
        rows = slice(2 * block.width, None)
        values, offsets = block.weight("qkv")[rows], block.bias("qkv")[rows]
        write(values, double(values)[0] / by_channel[:, None])
    else:
        values, offsets = block.norm(part).weight, block.norm(part).bias
        write(values, double(values)[0] / by_channel)
    write(offsets, double(offsets)[0] / by_channel)


def smoothing_scale(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Return SmoothQuant's scales ``max|x|^alpha / max|w|^(1 - alpha)``, float32 ``(channels,)``, with geometric mean 1.

    A channel without input or without weight (a dead one) has scale 1, and no scale leaves 1e-4 to 1e4.

    Args:
        largest: Largest absolute input of each channel.
        weight: ``(out, channels)``.
        alpha: 0 gives channels of the weight one size, 1 those of the input.
    """
    heaviest = weight.abs().amax(dim=0)
    alive = (largest > 0) & (heaviest > 0)
    logs = alpha * largest.clamp_min(1e-30).log() - (1 - alpha) * heaviest.clamp_min(1e-30).log()
    if not alive.any():
        return torch.ones_like(largest)
    return torch.where(alive, (logs - logs[alive].mean()).exp(), 1.0).clamp(_LEAST, _MOST)


def balance(block: Block, part: Part, seen: Seen, bits: Bits) -> dict[str, Any]:
    """Scale the input of a part with the alpha of least output error, in place; return the alpha and what it gained.

    The error is that of the layer in integers on the sampled rows, with the range that holds 99.99 % of the input and with the largest
    value, one added to the other, so that either way to calibrate is served. Leaving the layer as it is takes part, as alpha None.
    """
    weight = block.weight(part).detach()
    largest = torch.maximum(seen.highest.abs(), seen.lowest.abs())
    scales = {None: torch.ones_like(largest), **{alpha: smoothing_scale(largest, weight, alpha) for alpha in ALPHAS}}
    errors = {alpha: _error(seen, largest, weight, scale, bits) for alpha, scale in scales.items()}
    best = min(errors, key=lambda alpha: errors[alpha])
    if best is not None:
        scale_input(block, part, scales[best])
    return {"alpha": best, "error_ratio": round(errors[best] / errors[None], 6) if errors[None] else 1.0}


def _error(seen: Seen, largest: Tensor, weight: Tensor, scale: Tensor, bits: Bits) -> float:
    rows = seen.rows / scale
    return output_error(rows, weight * scale, (percentile_of(rows), (largest / scale).max()), bits)


def smooth(blocks: tuple[Block, ...], seen: dict[Key, Seen], bits: Bits) -> dict[str, Any]:
    """Balance every layer of a tower whose input a scale can be folded into, in place; return what was chosen, by layer.

    What reads the activation function (``fc2``) stays as it is: a scale does not pass a GELU.
    """
    chosen = {f"{block.name}:{part}": balance(block, part, seen[block.name, part], bits) for block in blocks for part in FOLDABLE}
    return {"bits": str(bits), "layers": chosen}
