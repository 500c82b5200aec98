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
from clipq.export.transform.smooth import ALPHAS, FOLDABLE, scale_input, scales_of
from clipq.methods import Bits

# Beyond 0.6 all channels end at the calibration images' largest values together, and what other images have beyond them is cut off.
_ALPHAS = ALPHAS[:7:2]
_TAIL = 0.001  # share of the rows that the inner middle leaves out at either end


class Shifted(torch.nn.Module):
    """Takes a constant from what it is given: the one operator that centring behind an activation function costs."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = _constant(offset)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values minus the offset, one per channel or one for all."""
        return values - self.offset


class Scaled(torch.nn.Module):
    """Multiplies what it is given by a constant per channel: the operator that a scale behind an activation function costs."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = _constant(factor)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values times the factor."""
        return values * self.factor


def _constant(values: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.detach().clone().to(torch.float32), requires_grad=False)


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


def scale_activation(block: Block, scale: Tensor) -> None:
    """Let ``fc2`` read its input divided by a scale per channel, in place; what the block computes stays the same.

    A scale does not pass an activation function, so an operator behind it divides. It comes before the shift, which is divided too.

    Args:
        block: The block.
        scale: ``(channels,)``, positive.
    """
    weight, mlp = block.weight("fc2"), block.module.mlp
    (by_channel,) = double(scale)
    write(weight, double(weight)[0] * by_channel)
    known = _operators(mlp.gelu)
    before = double(known["scale"].factor)[0] if "scale" in known else 1.0
    known["scale"] = Scaled(before / by_channel)
    if "shift" in known:
        known["shift"] = Shifted(double(known["shift"].offset)[0] / by_channel)
    _put(mlp, known)


def _shift_activation(mlp: Any, offset: Tensor) -> None:
    known = _operators(mlp.gelu)
    before = double(known["shift"].offset)[0] if "shift" in known else 0.0
    known["shift"] = Shifted(before + double(offset)[0])
    _put(mlp, known)


def _operators(gelu: Any) -> dict[str, Any]:
    """Return an activation function and what stands behind it, by name."""
    return dict(gelu.named_children()) if isinstance(gelu, torch.nn.Sequential) else {"function": gelu}


def _put(mlp: Any, operators: dict[str, Any]) -> None:
    present = [(name, operators[name]) for name in ("function", "scale", "shift") if name in operators]
    mlp.gelu = torch.nn.Sequential(OrderedDict(present)).eval()


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

    Offset and SmoothQuant's alpha are those of least output error in integers together (``best_of``) but for its mean: the engine's
    biases must be corrected, because the rounding of a weight times a large offset is a constant error, which can be larger
    than all that the offset saves. Only ``fc2`` pays for its offset with an operator; a scale there would cost another one and is left
    out (``equalize`` has it).

    Args:
        blocks: The blocks.
        seen: What their layers read.
        bits: Of the engine to be.
    """
    return _centred(blocks, seen, bits, FOLDABLE)


def equalize(blocks: Iterable[Block], seen: Mapping[Key, Seen], bits: Bits) -> dict[str, Any]:
    """Centre and balance the input of every linear layer, that of ``fc2`` too, in place; return what was chosen, as ``shift`` does.

    What ``fc2`` reads is where most of the error of a static graph arises: one range has to hold channels of very different sizes, and
    neither a LayerNorm nor a weight before it can take a scale. One Mul and one Sub behind the activation function do.
    """
    return _centred(blocks, seen, bits, PARTS)


def _centred(blocks: Iterable[Block], seen: Mapping[Key, Seen], bits: Bits, scaled: tuple[Part, ...]) -> dict[str, Any]:
    chosen = {}
    for block in blocks:
        for part in PARTS:
            chosen[f"{block.name}:{part}"] = _centre(block, part, seen[block.name, part], bits, scale=part in scaled)
    paid = [one for name, one in chosen.items() if name.endswith(":fc2")]
    added = {"Sub": sum(one["offset"] != "none" for one in paid), "Mul": sum(one.get("alpha") is not None for one in paid)}
    return {"bits": str(bits), "layers": chosen, "added_operators": {name: count for name, count in added.items() if count}}


def _centre(block: Block, part: Part, seen: Seen, bits: Bits, *, scale: bool) -> dict[str, Any]:
    weight, offsets = block.weight(part).detach().clone(), offsets_of(seen)
    candidates: dict[tuple[str, float | None], tuple[Tensor, Tensor]] = {}
    for way, offset in offsets.items():
        candidates[way, None] = (offset, torch.ones_like(offset))
        if scale:
            scales = scales_of(seen, offset, weight)
            candidates |= {(way, alpha): (offset, scales[alpha]) for alpha in _ALPHAS}
    (way, alpha), ratio = best_of(candidates, seen, weight, bits, corrected=True)
    offset, by_channel = candidates[way, alpha]
    if way != "none":
        shift_input(block, part, offset)
    if alpha is not None:
        _scale(block, part, by_channel)
    return {"offset": way, "error_ratio": ratio, **({"alpha": alpha} if scale else {})}


def _scale(block: Block, part: Part, scale: Tensor) -> None:
    if part == "fc2":
        scale_activation(block, scale)
    else:
        scale_input(block, part, scale)
