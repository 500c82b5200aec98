"""Fake quantizers: where they begin, what moves them, and that they give what integers can hold."""

from __future__ import annotations

import math

import pytest
import torch

from clipq.export.qat.plan import PLANS
from clipq.export.qat.quantizers import (
    Activation,
    LearnedBound,
    LearnedStep,
    LearnedStepAndOffset,
    LearnedStepWeight,
    RunningRange,
    TanhWeight,
    Weight,
)
from clipq.export.qat.rounding import Grid, weight_grid
from clipq.methods import BITS, METHODS

GRID = Grid(-7, 7)


def test_every_trained_method_has_a_plan() -> None:
    """The table of methods and the plans name the same ones."""
    assert list(PLANS) == [name for name, method in METHODS.items() if method.family == "qat"]


def test_a_running_range_is_a_running_mean_of_extremes() -> None:
    """Momentum 0.1 while training; outside of it nothing moves."""
    quantizer = RunningRange(GRID)
    quantizer.begin(torch.tensor([1.0, -2.0]), 2.0)
    quantizer.train()(torch.tensor([4.0]))
    assert float(quantizer.largest) == pytest.approx(0.9 * 2 + 0.1 * 4)
    quantizer.eval()(torch.tensor([100.0]))
    assert float(quantizer.step) == pytest.approx(2.2 / 7)


@pytest.mark.parametrize("kind", [RunningRange, LearnedBound, LearnedStep, LearnedStepAndOffset])
def test_activations_become_integers_times_the_step(kind: type[Activation]) -> None:
    """Whatever the kind, what comes out is a multiple of its step inside the grid, and the error is at most half a step inside."""
    torch.manual_seed(0)
    values = torch.randn(1000) + 1
    quantizer = kind(GRID).eval()
    quantizer.begin(values, float(values.abs().max()))
    with torch.no_grad():
        integers = quantizer(values) / quantizer.step
        inside = ((values - quantizer.offset) / quantizer.step).abs() <= 7
        error = (quantizer(values) + quantizer.offset - values).abs()
    torch.testing.assert_close(integers, integers.round(), atol=1e-4, rtol=0)
    assert integers.abs().max() <= 7.0001
    assert error[inside].max() <= 0.5001 * quantizer.step
    assert inside.float().mean() > 0.9


def test_what_is_learned_moves_relatively() -> None:
    """A step ten times as large moves ten times as far for the same update of its logarithm."""
    small, large = LearnedStep(GRID), LearnedStep(GRID)
    small.begin(torch.linspace(-1, 1, 100), 1.0)
    large.begin(torch.linspace(-10, 10, 100), 10.0)
    with torch.no_grad():
        before = float(small.step), float(large.step)
        small.log_step += 0.01
        large.log_step += 0.01
        moved = float(small.step) - before[0], float(large.step) - before[1]
    assert moved[1] == pytest.approx(10 * moved[0], rel=1e-3)
    assert moved[1] == pytest.approx(before[1] * (math.exp(0.01) - 1), rel=1e-3)


def test_an_offset_has_the_gradient_of_lsq_plus() -> None:
    """1 for each value beyond the grid, 0 inside, before the offset is given back: there it is -1 inside and 0 beyond."""
    quantizer = LearnedStepAndOffset(GRID)
    quantizer.begin(torch.linspace(0, 1, 100), 1.0)
    values = torch.tensor([0.5, 0.6, 50.0])
    (quantizer(values) + quantizer.offset).sum().backward()
    assert quantizer.moved.grad is not None
    assert float(quantizer.moved.grad) == pytest.approx(1 * float(quantizer.first) * 7, rel=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", [Weight, TanhWeight, LearnedStepWeight])
def test_weights_begin_as_they_are_but_for_rounding(kind: type[Weight], bits: int) -> None:
    """What is trained gives, before the first step, the pretrained weight rounded: half a step away unless it saturates."""
    torch.manual_seed(0)
    weight = torch.randn(6, 50) * torch.tensor([[0.01], [0.1], [1.0], [2.0], [5.0], [0.0]])
    quantizer = kind(weight_grid(bits), 6)
    trained = quantizer.begin(weight)
    steps = quantizer.steps(trained)
    rounded = quantizer(trained)
    inside = weight.abs() <= steps * weight_grid(bits).most
    assert ((rounded - weight).abs()[inside] <= (0.5001 * steps).expand_as(weight)[inside]).all()
    integers, scales = quantizer.integers(trained)
    torch.testing.assert_close(integers * scales[:, None], rounded.detach())
    assert integers.abs().max() == weight_grid(bits).most
    assert (integers[5] == 0).all()


def test_a_weight_through_tanh_has_gradients_of_tanh() -> None:
    """Small weights have gradients above 1, those near the largest below: tanh is flat there; the scale per channel is fixed."""
    weight = torch.tensor([[0.001, 0.5, -1.0]])
    quantizer = TanhWeight(Grid(-127, 127), 1)
    trained = quantizer.begin(weight).requires_grad_()
    quantizer(trained)[0, :2].sum().backward()
    assert trained.grad is not None
    slope = [(1 - math.tanh(float(v)) ** 2) / math.tanh(1) for v in trained[0, :2].detach()]
    assert trained.grad[0, :2].tolist() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", PLANS)
def test_plans_make_quantizers_for_every_bits(name: str) -> None:
    """Grids follow the bits; products get no offset; probabilities only with attention in INT8."""
    for text, bits in METHODS[name].bits.items():
        makers = PLANS[name].makers(bits, "int8")
        assert makers.activation().grid.most == bits.activation_limit, text
        assert makers.weight(3).grid.most == bits.weight_limit
        assert not makers.product().shifts
        assert makers.probabilities is not None
        assert PLANS[name].makers(bits, "fp16").probabilities is None
    assert set(METHODS[name].bits) == {text for text, bits in BITS.items() if bits.activations <= 8}
