"""Shift: the inputs of linear layers centred, the shift in their bias (Outlier Suppression+, Wei et al. 2023, arXiv 2304.09145).

A range around zero wastes levels on a channel whose values lie to one side of it, GELU's above all, whose result is never below -0.17.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from clipq.export.transform.blocks import Block, Part, double, write


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
