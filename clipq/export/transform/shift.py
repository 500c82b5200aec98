"""Shift: the inputs of linear layers centred, the shift in their bias (Outlier Suppression+, Wei et al. 2023, arXiv 2304.09145).

A range around zero wastes levels on a channel whose values lie to one side of it, GELU's above all, whose result is never below -0.17.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from clipq.export.transform.blocks import PARTS, Block, Part, double, write
from clipq.export.transform.capture import Key, Seen
from clipq.export.transform.error import best_of
from clipq.export.transform.smooth import FOLDABLE, scale_input, scales_of
from clipq.methods import Bits

_TAIL = 0.001  # share of the rows that the inner middle leaves out at either end


class Shifted(torch.nn.Module):
    """Takes a constant from what it is given: the one operator that centring behind an activation function costs."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(offset.detach().clone().to(torch.float32), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values minus the offset, one per channel or one for all."""
        return values - self.offset


def shift_input(block: Block, part: Part, offset: Tensor) -> None:
    """Let a part of a block read its input minus an offset, in place; what the block computes stays the same.

    ``W x + b = W (x - c) + (b + W c)``. The input of ``qkv`` and ``fc1`` is made by a LayerNorm, whose offset takes the shift. That of
    ``out_proj`` is a mean of values, weighted by numbers that sum to 1, so the bias of the values takes it. That of ``fc2`` needs an
    operator behind the activation function.

    Args:
        block: The block.
        part: Which of its linear layers.
        offset: ``()`` or ``(channels,)``, what is taken from every channel of the layer's input.
    """
    weight, bias = block.weight(part), block.bias(part)
    matrix, constant = double(weight, bias)
    by_channel = offset.detach().to(torch.float64).expand(matrix.shape[1])
    write(bias, constant + matrix @ by_channel)
    if part == "fc2":
        _shift_activation(block.module.mlp, offset)
        return
    source = block.bias("qkv")[2 * block.width :] if part == "out_proj" else block.norm(part).bias
    write(source, double(source)[0] - by_channel)


def _shift_activation(mlp: Any, offset: Tensor) -> None:
    known = getattr(mlp.gelu, "shift", None)
    if known is not None:
        known.offset = Shifted(double(known.offset)[0] + offset).offset
        return
    mlp.gelu = torch.nn.Sequential(OrderedDict([("function", mlp.gelu), ("shift", Shifted(offset))])).eval()


def offsets_of(seen: Seen) -> dict[str, Tensor]:
    """Return ways to centre a layer's input, float32 ``(channels,)``: the first leaves it as it is.

    ``channel``: the middle between the extremes of each channel. ``inner``: the same without the outer 0.1 % of the sampled rows.
    ``tensor``: one middle for all channels, so that zero stays a number like any other.
    """
    middle = (seen.lowest + seen.highest) / 2
    outer = max(1, round(len(seen.rows) * _TAIL))
    low = seen.rows.topk(outer, dim=0, largest=False).values[-1]
    high = seen.rows.topk(outer, dim=0).values[-1]
    whole = (seen.lowest.min() + seen.highest.max()) / 2
    return {"none": torch.zeros_like(middle), "channel": middle, "inner": (low + high) / 2, "tensor": whole.expand_as(middle)}


def shift(blocks: Iterable[Block], seen: Mapping[Key, Seen], bits: Bits) -> dict[str, Any]:
    """Centre the input of every linear layer, and balance its channels where a scale can be folded, in place; return what was chosen.

    First the offset and then SmoothQuant's alpha, each the one of least output error in integers (``best_of``). Only ``fc2`` pays for its
    offset with an operator; a scale there would cost another one and is left out.

    Args:
        blocks: The blocks.
        seen: What their layers read.
        bits: Of the engine to be.
    """
    chosen = {}
    for block in blocks:
        for part in PARTS:
            chosen[f"{block.name}:{part}"] = _centre(block, part, seen[block.name, part], bits)
    operators = sum(name.endswith(":fc2") and one["offset"] != "none" for name, one in chosen.items())
    return {"bits": str(bits), "layers": chosen, "added_operators": {"Sub": operators}}


def _centre(block: Block, part: Part, seen: Seen, bits: Bits) -> dict[str, Any]:
    weight, offsets = block.weight(part).detach().clone(), offsets_of(seen)
    ones = torch.ones(weight.shape[1])
    way, ratio = best_of({way: (offset, ones) for way, offset in offsets.items()}, seen, weight, bits)
    said: dict[str, Any] = {"offset": way, "error_ratio": ratio}
    if way != "none":
        shift_input(block, part, offsets[way])
    if part in FOLDABLE:
        scales = scales_of(seen, offsets[way], weight)
        said["alpha"], gained = best_of({alpha: (offsets[way], scale) for alpha, scale in scales.items()}, seen, weight, bits)
        said["error_ratio"] = round(ratio * gained, 6)
        scale_input(block, part, scales[said["alpha"]])
    return said
