"""First steps and offsets of a quantizer from what it sees before training: least squared error of rounding and saturation."""

from __future__ import annotations

import torch

from clipq.export.qat.rounding import Grid

SMALLEST = 1e-8  # of a step: a tensor of zeros has one too
_FRACTIONS = tuple(0.3 + 0.02 * index for index in range(36))  # of the largest value, up to 1


def best_steps(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the step of least squared error of each row.

    Args:
        values: ``(rows, n)``.
        grid: The integers.

    Returns:
        ``(rows, 1)``, positive; the largest absolute value ends between 0.3 and 1 times the end of the grid and beyond it.
    """
    largest = values.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST * grid.most)
    best, least = largest / grid.most, torch.full_like(largest, torch.inf)
    for fraction in _FRACTIONS:
        step = fraction * largest / grid.most
        error = squared_error(values, step, grid).sum(dim=1, keepdim=True)
        better = error <= least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return best


def best_offset(values: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step and the offset of least squared error when ``values - offset`` is rounded.

    Both ends of the range are tried at every fraction of the smallest and the largest value; the offset is its middle.

    Args:
        values: ``(n,)``.
        grid: The integers.
    """
    low, high = float(values.min()), float(values.max())
    best, least = (max((high - low) / (2 * grid.most), SMALLEST), (high + low) / 2), torch.inf
    for bottom in _FRACTIONS[::3]:
        for top in _FRACTIONS[::2]:
            first, last = low * bottom if low < 0 else low, high * top if high > 0 else high
            step, offset = max((last - first) / (2 * grid.most), SMALLEST), (first + last) / 2
            error = float(squared_error(values - offset, torch.tensor(step), grid).sum())
            if error < least:
                best, least = (step, offset), error
    return torch.tensor(best[0]), torch.tensor(best[1])


def squared_error(values: torch.Tensor, step: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the squared error of rounding each value to a grid."""
    rounded = torch.clamp(torch.round(values / step), grid.least, grid.most) * step
    return (rounded - values).square()
