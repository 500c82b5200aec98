"""Rounding to a grid in the forward pass, learned step size gradients in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clipq.methods import levels


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that a number may become.

    Attributes:
        least: The smallest.
        most: The largest.
    """

    least: int
    most: int


def weight_grid(bits: int) -> Grid:
    """Return the grid of weights: symmetric.

    >>> weight_grid(4)
    Grid(least=-7, most=7)
    """
    return Grid(-levels(bits), levels(bits))


def activation_grid(bits: int) -> Grid:
    """Return the grid of activations, as the graph computes it: QuantizeLinear saturates at -128, and below 8 bits a Clip stands before it.

    >>> activation_grid(8), activation_grid(4)
    (Grid(least=-128, most=127), Grid(least=-7, most=7))
    """
    return Grid(-128 if bits == 8 else -levels(bits), levels(bits))


class _Round(torch.autograd.Function):
    """Rounding to a grid whose gradients are those of LSQ."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, step: torch.Tensor, grid: Grid, factor: float) -> torch.Tensor:
        ctx.save_for_backward(values, step)
        ctx.grid, ctx.factor = grid, factor
        return torch.clamp(torch.round(values / step), grid.least, grid.most) * step

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (gradient,) = gradients
        values, step = ctx.saved_tensors
        ratio = values / step
        inside = (ratio >= ctx.grid.least) & (ratio <= ctx.grid.most)
        of_step = None
        if ctx.needs_input_grad[1]:
            rounded = torch.clamp(torch.round(ratio), ctx.grid.least, ctx.grid.most)
            each = gradient * (rounded - torch.where(inside, ratio, 0.0))
            of_step = each.sum_to_size(step.shape) * ctx.factor
        return gradient * inside, of_step, None, None


def round_to(values: torch.Tensor, step: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return ``values`` rounded to multiples of ``step`` inside a grid, half to even, as QuantizeLinear and DequantizeLinear do.

    The gradient of a value passes where it is inside the grid and is zero beyond it. That of the step is the one of LSQ (Esser et al.
    2020, arXiv 1902.08153, equation 3): ``round(v / s) - v / s`` inside, the end of the grid beyond it, summed, times
    ``1 / sqrt(n * most)`` with ``n`` the number of values that share a step.

    Args:
        values: Any shape.
        step: Positive; a shape that broadcasts to that of ``values``: a scalar, or one step per channel.
        grid: The integers.
    """
    shared = values.numel() // max(step.numel(), 1)
    rounded: torch.Tensor = _Round.apply(values, step, grid, (shared * grid.most) ** -0.5)  # type: ignore[no-untyped-call]
    return rounded


class _Saturate(torch.autograd.Function):
    """Rounding between minus and plus a bound whose gradients are those of PACT."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, bound: torch.Tensor, grid: Grid) -> torch.Tensor:
        ctx.save_for_backward(values, bound)
        step = bound / grid.most
        return torch.clamp(torch.round(values / step), grid.least, grid.most) * step

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (gradient,) = gradients
        values, bound = ctx.saved_tensors
        beyond = (values >= bound).to(gradient.dtype) - (values <= -bound).to(gradient.dtype)
        return gradient * (beyond == 0), (gradient * beyond).sum_to_size(bound.shape), None


def saturate_to(values: torch.Tensor, bound: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return ``values`` between minus and plus ``bound``, rounded to the grid that ends there.

    The gradient of the bound is 1 above it, as in PACT (Choi et al. 2018, arXiv 1805.06085, equation 3), -1 below its negative, because
    this grid has two sides, and 0 between; that of a value passes between and is zero beyond.

    Args:
        values: Any shape.
        bound: A positive scalar.
        grid: The integers; ``bound`` is the largest of them times the step.
    """
    rounded: torch.Tensor = _Saturate.apply(values, bound, grid)  # type: ignore[no-untyped-call]
    return rounded
