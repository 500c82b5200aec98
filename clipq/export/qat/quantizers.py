"""Fake quantizers of activations and weights: FP32 numbers that an integer grid could hold, with gradients of each method's own kind."""

from __future__ import annotations

import math

import torch

from clipq.export.qat.ranges import SMALLEST, best_offset, best_steps
from clipq.export.qat.rounding import Grid, round_to, saturate_to

MOMENTUM = 0.1  # of a running extreme: how much the newest batch weighs


class Activation(torch.nn.Module):
    """Rounds an activation with one step for the whole tensor and zero point 0.

    Attributes:
        grid: The integers.
        shifts: Whether ``offset`` is taken from the values before they are rounded.
    """

    shifts = False

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def begin(self, values: torch.Tensor, largest: float) -> None:
        """Take the first range from a sample of the values ``(n,)`` and the largest absolute one of all that were seen."""
        raise NotImplementedError

    @property
    def step(self) -> torch.Tensor:
        """The step, a scalar."""
        raise NotImplementedError

    @property
    def offset(self) -> torch.Tensor:
        """What is taken from the values, a scalar."""
        return torch.zeros((), device=self.step.device)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values, without the offset."""
        return round_to(values, self.step, self.grid)


class RunningRange(Activation):
    """The largest absolute value, as a running mean over the batches while training; nothing is learned (``ste``, ``dorefa``)."""

    largest: torch.Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.register_buffer("largest", torch.ones(()))

    def begin(self, values: torch.Tensor, largest: float) -> None:  # noqa: ARG002 - the contract
        """Begin with the largest absolute value."""
        self.largest.fill_(max(largest, SMALLEST * self.grid.most))

    @property
    def step(self) -> torch.Tensor:
        """The running mean over the end of the grid."""
        return self.largest / self.grid.most

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values; in training the range follows them first."""
        if self.training:
            self.largest.lerp_(values.detach().abs().amax(), MOMENTUM)
        return super().forward(values)


class LearnedBound(Activation):
    """A learned bound (``pact``), as ``first * exp(bound)``, so that an update is relative and the bound stays positive."""

    first: torch.Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.register_buffer("first", torch.ones(()))
        self.log_bound = torch.nn.Parameter(torch.zeros(()))

    def begin(self, values: torch.Tensor, largest: float) -> None:  # noqa: ARG002 - the contract
        """Begin with the largest absolute value: nothing saturates yet."""
        self.first.fill_(max(largest, SMALLEST * self.grid.most))

    @property
    def bound(self) -> torch.Tensor:
        """Where values saturate."""
        return self.first * self.log_bound.exp()

    @property
    def step(self) -> torch.Tensor:
        """The bound over the end of the grid."""
        return self.bound / self.grid.most

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values."""
        return saturate_to(values, self.bound, self.grid)


class LearnedStep(Activation):
    """A learned step (``lsq`` and its kin), as ``first * exp(log_step)``, begun at the least squared error."""

    first: torch.Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.register_buffer("first", torch.ones(()))
        self.log_step = torch.nn.Parameter(torch.zeros(()))

    def begin(self, values: torch.Tensor, largest: float) -> None:  # noqa: ARG002 - the contract
        """Begin with the step of least squared error."""
        self.first.copy_(best_steps(values[None], self.grid)[0, 0])

    @property
    def step(self) -> torch.Tensor:
        """The step."""
        return self.first * self.log_step.exp()


class LearnedStepAndOffset(LearnedStep):
    """A learned step and a learned offset (``lsq-plus``); the offset moves in units of the first range."""

    shifts = True
    middle: torch.Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.register_buffer("middle", torch.zeros(()))
        self.moved = torch.nn.Parameter(torch.zeros(()))

    def begin(self, values: torch.Tensor, largest: float) -> None:  # noqa: ARG002 - the contract
        """Begin with the step and the offset of least squared error."""
        step, middle = best_offset(values, self.grid)
        self.first.copy_(step)
        self.middle.copy_(middle)

    @property
    def offset(self) -> torch.Tensor:
        """What is taken from the values before they are rounded."""
        return self.middle + self.moved * (self.first * self.grid.most)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values, without the offset."""
        return round_to(values - self.offset, self.step, self.grid)


class Weight(torch.nn.Module):
    """Rounds a weight ``(out, in)`` with one step per output channel; the step follows the largest absolute value of the channel.

    It is computed anew in every pass and has no gradient of its own (``ste``, ``pact``).
    """

    def __init__(self, grid: Grid, channels: int) -> None:  # noqa: ARG002 - what the others need
        super().__init__()
        self.grid = grid

    def begin(self, weight: torch.Tensor) -> torch.Tensor:
        """Take what training begins with from a weight, and return what to train in its place."""
        return weight

    def steps(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the step of each channel, ``(out, 1)``."""
        return weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST * self.grid.most) / self.grid.most

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight."""
        return round_to(weight, self.steps(weight), self.grid)

    def integers(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the integers (int8, ``(out, in)``) and the steps (float32, ``(out,)``) of a weight."""
        steps = self.steps(weight)
        return torch.round(self(weight) / steps).to(torch.int8), steps[:, 0]


class TanhWeight(Weight):
    """DoReFa's weight: through tanh before it is rounded (Zhou et al. 2016, arXiv 1606.06160, equation 9), scaled back by channel.

    The paper's ``tanh(w) / max|tanh(w)|`` ends at 1 and bends the weights of a trained network. Here what is trained is
    ``v = m * atanh(tanh(1) * w / m)``, ``m`` the largest absolute value of ``w``'s channel before training, and what is rounded is
    ``m * tanh(v / m) / max|tanh(v / m)|``: before the first step that is ``w`` itself.
    """

    first: torch.Tensor

    def __init__(self, grid: Grid, channels: int) -> None:
        super().__init__(grid, channels)
        self.register_buffer("first", torch.ones(channels, 1))

    def begin(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``v``."""
        self.first.copy_(weight.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST * self.grid.most))
        return self.first * torch.atanh(math.tanh(1) * weight / self.first)

    def steps(self, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the contract
        """Return ``m`` over the end of the grid."""
        return self.first / self.grid.most

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight."""
        bent = torch.tanh(weight / self.first)
        largest = bent.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST)
        return round_to(self.first * (bent / largest), self.steps(weight), self.grid)


class LearnedStepWeight(Weight):
    """A learned step per output channel (``lsq`` and its kin), begun at the least squared error."""

    first: torch.Tensor

    def __init__(self, grid: Grid, channels: int) -> None:
        super().__init__(grid, channels)
        self.register_buffer("first", torch.ones(channels, 1))
        self.log_steps = torch.nn.Parameter(torch.zeros(channels, 1))

    def begin(self, weight: torch.Tensor) -> torch.Tensor:
        """Begin with the steps of least squared error; the weight stays as it is."""
        self.first.copy_(best_steps(weight, self.grid))
        return weight

    def steps(self, weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the contract
        """Return the step of each channel."""
        return self.first * self.log_steps.exp()
