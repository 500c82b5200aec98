"""Rounding with gradients: against numpy, against hand-computed ones, and against what the papers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipq.export.qat.ranges import best_offset, best_steps, squared_error
from clipq.export.qat.rounding import Grid, activation_grid, round_to, saturate_to, weight_grid

FLOATS = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40)


@given(values=FLOATS, step=st.floats(0.015625, 3, width=32), bits=st.sampled_from([4, 6, 8]))
def test_rounds_as_quantize_linear_does(values: list[float], step: float, bits: int) -> None:
    """Half to even, then saturated: numpy's own operators give the same to the bit."""
    grid, array = activation_grid(bits), np.asarray(values, np.float32)
    expected = np.clip(np.rint(array / np.float32(step)), grid.least, grid.most) * np.float32(step)
    found = round_to(torch.from_numpy(array), torch.tensor(step, dtype=torch.float32), grid)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_the_grids_are_those_of_the_graph() -> None:
    """Weights are symmetric; activations in 8 bits reach -128, because QuantizeLinear does."""
    assert [weight_grid(bits) for bits in (8, 6, 4)] == [Grid(-127, 127), Grid(-31, 31), Grid(-7, 7)]
    assert [activation_grid(bits) for bits in (8, 6, 4)] == [Grid(-128, 127), Grid(-31, 31), Grid(-7, 7)]


def test_the_gradients_of_a_learned_step_are_those_of_lsq() -> None:
    """By hand, step 0.5 and grid -7 to 7: inside round(v/s) - v/s, beyond it the end of the grid, times 1 / sqrt(n * 7)."""
    values = torch.tensor([0.6, -0.9, 10.0, -10.0, 0.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (round_to(values, step, Grid(-7, 7)) * weights).sum().backward()
    by_hand = 1 * (1 - 1.2) + 2 * (-2 + 1.8) + 3 * 7 + 4 * -7 + 5 * 0
    assert step.grad is not None
    assert float(step.grad) == pytest.approx(by_hand / (5 * 7) ** 0.5, rel=1e-5)
    assert values.grad is not None
    assert values.grad.tolist() == [1, 2, 0, 0, 5]


def test_steps_of_channels_have_gradients_of_their_own() -> None:
    """Each channel's gradient is that of the channel alone, with its own number of values."""
    torch.manual_seed(0)
    weight, steps = torch.randn(3, 11), torch.tensor([[0.1], [0.2], [0.3]])
    together = steps.clone().requires_grad_()
    round_to(weight, together, Grid(-7, 7)).square().sum().backward()
    assert together.grad is not None
    for channel in range(3):
        alone = steps[channel].clone().requires_grad_()
        round_to(weight[channel], alone, Grid(-7, 7)).square().sum().backward()
        torch.testing.assert_close(together.grad[channel], alone.grad)


def test_the_gradient_of_a_bound_is_that_of_pact() -> None:
    """1 for each value above it, -1 for each below its negative, 0 between; values pass between only."""
    values = torch.tensor([0.2, 3.0, -5.0, -0.9], requires_grad=True)
    bound = torch.tensor(1.0, requires_grad=True)
    (saturate_to(values, bound, Grid(-7, 7)) * torch.tensor([1.0, 2.0, 4.0, 8.0])).sum().backward()
    assert bound.grad is not None
    assert values.grad is not None
    assert (float(bound.grad), values.grad.tolist()) == (2 - 4, [1, 0, 0, 8])


@pytest.mark.parametrize("bits", [4, 8])
def test_first_steps_are_at_least_as_good_as_the_largest_value(bits: int) -> None:
    """No row's squared error is above that of a grid that ends at its largest value, and an outlier makes it better."""
    torch.manual_seed(0)
    rows = torch.randn(5, 400)
    rows[2, 7] = 20
    grid = weight_grid(bits)
    found = squared_error(rows, best_steps(rows, grid), grid).sum(dim=1)
    plain = squared_error(rows, rows.abs().amax(dim=1, keepdim=True) / grid.most, grid).sum(dim=1)
    assert (found <= plain).all()
    assert found[2] < plain[2] if bits == 4 else True


def test_an_offset_gives_one_sided_values_the_whole_grid() -> None:
    """Values from 0 to 1: the step is about half of what a symmetric grid has, the offset about the middle."""
    values = torch.linspace(0, 1, 1001)
    step, offset = best_offset(values, Grid(-7, 7))
    assert float(offset) == pytest.approx(0.5, abs=0.05)
    assert float(step) == pytest.approx(0.5 / 7, rel=0.1)
    shifted = squared_error(values - offset, step, Grid(-7, 7)).sum()
    assert shifted < 0.35 * squared_error(values, best_steps(values[None], Grid(-7, 7))[0], Grid(-7, 7)).sum()


def test_zeros_have_a_step() -> None:
    """A dead channel gets a positive step and rounds to zeros."""
    steps = best_steps(torch.zeros(2, 5), Grid(-7, 7))
    assert (steps > 0).all()
    step, offset = best_offset(torch.zeros(5), Grid(-7, 7))
    assert float(step) > 0
    assert float(offset) == 0
