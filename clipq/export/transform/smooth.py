"""SmoothQuant: outliers of activations moved into weights, channel by channel (Xiao et al. 2023, arXiv 2211.10438)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from clipq.export.transform.blocks import Block, Part, double, write
from clipq.export.transform.capture import Key, Seen
from clipq.export.transform.error import best_of
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


def scales_of(seen: Seen, offset: Tensor, weight: Tensor) -> dict[float | None, Tensor]:
    """Return the scales of each alpha for inputs minus an offset; None leaves the channels as they are."""
    largest = seen.largest(offset)
    return {None: torch.ones_like(largest), **{alpha: smoothing_scale(largest, weight, alpha) for alpha in ALPHAS}}


def smooth(blocks: Iterable[Block], seen: Mapping[Key, Seen], bits: Bits) -> dict[str, Any]:
    """Balance every layer of a tower whose input a scale can be folded into, in place; return what was chosen, by layer.

    Alpha is that of least output error of the layer in integers (``best_of``); leaving a layer as it is takes part, as alpha None.
    What reads the activation function (``fc2``) stays as it is: a scale does not pass a GELU.

    Args:
        blocks: The blocks.
        seen: What their layers read.
        bits: Of the engine to be.
    """
    chosen = {}
    for block in blocks:
        for part in FOLDABLE:
            one, weight = seen[block.name, part], block.weight(part).detach()
            none = torch.zeros(weight.shape[1])
            scales = scales_of(one, none, weight)
            alpha, ratio = best_of({alpha: (none, scale) for alpha, scale in scales.items()}, one, weight, bits)
            scale_input(block, part, scales[alpha])
            chosen[f"{block.name}:{part}"] = {"alpha": alpha, "error_ratio": ratio}
    return {"bits": str(bits), "layers": chosen}
