"""Weight scales of least squared error and GPTQ, against slow second implementations, by hand, and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipq.errors import ExportError
from clipq.export.quantize.gptq import gptq, inverse_factor, output_error
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.rounding import weight_of
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.weights import mse_scales, quantize_weight, round_weight
from clipq.methods import BITS

Array = np.ndarray
LIMITS = (127, 31, 7)


def _weight(seed: int, inputs: int = 24, outputs: int = 5) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=(inputs, outputs)) * np.geomspace(0.01, 10, outputs)).astype(np.float32)


def _inputs(seed: int, n: int = 200, inputs: int = 24) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, inputs)) @ rng.standard_normal((inputs, inputs)) + rng.standard_normal(inputs)


def _slow_squared_error(weight: Array, scale: float, limit: int) -> float:
    return sum((min(max(round(w / scale), -limit), limit) * scale - w) ** 2 for w in map(float, weight))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("axis", [0, 1])
def test_mse_scales_match_brute_force(limit: int, axis: int) -> None:
    """Of 65 ranges from the largest value down to a quarter, none has a smaller error, weight by weight, than the chosen one."""
    weight = _weight(0)
    channels = weight if axis == 0 else weight.T
    for chosen, channel in zip(mse_scales(weight, axis, limit), channels, strict=True):
        largest = float(np.abs(channel).max())
        tried = [_slow_squared_error(channel, largest * 2 ** (-step / 32) / limit, limit) for step in range(65)]
        assert _slow_squared_error(channel, float(chosen), limit) <= 1.0001 * np.min(tried) + 1e-12


def test_mse_scale_by_hand() -> None:
    """With the integers -1, 0 and 1, ninety-nine ones and a 1.9 are best met by a step near one: the outlier saturates."""
    chosen = mse_scales(np.array([[1.0] * 99 + [1.9]], np.float32), 0, 1)[0]
    assert chosen == pytest.approx(1.009, abs=0.012)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.sampled_from(LIMITS))
def test_mse_scales_never_lose_to_the_largest_value(seed: int, limit: int) -> None:
    """The squared error is at most that of the range of the largest value, and scales with the weight."""
    weight = _weight(seed)
    scales = mse_scales(weight, 1, limit)
    plain, plain_scales = quantize_weight(weight, 1, limit)
    error = ((round_weight(weight, scales, 1, limit) * scales - weight) ** 2).sum(axis=0)
    assert np.all(error <= ((plain * plain_scales - weight) ** 2).sum(axis=0) * (1 + 1e-5))
    np.testing.assert_allclose(mse_scales(weight * 8, 1, limit), scales * 8, rtol=1e-6)


def test_mse_scales_of_zeros_and_convolutions() -> None:
    """A channel of zeros has the scale 1; a convolution's channels are those of its matrix."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    weight[2] = 0
    scales = mse_scales(weight, 0, 7)
    assert scales[2] == 1
    np.testing.assert_array_equal(scales, mse_scales(weight.reshape(4, -1), 0, 7))


@pytest.mark.parametrize("limit", [7, 15, 31, 63])
def test_error_falls_with_bits(limit: int) -> None:
    """More bits, less error, for each rounding."""
    weight, more = _weight(3), 2 * limit + 1
    for find in (lambda bits: quantize_weight(weight, 1, bits)[1], lambda bits: mse_scales(weight, 1, bits)):
        few, many = (((round_weight(weight, find(n), 1, n) * find(n) - weight) ** 2).sum() for n in (limit, more))
        assert many < few


def _slow_gptq(weight: Array, gram: Array, scales: Array, limit: int) -> Array:
    """Optimal brain quantization in a fixed order: after each weight the inverse is downdated explicitly (equations 2 and 3)."""
    weight, gram = weight.astype(np.float64).copy(), gram.copy()
    dead = np.diag(gram) == 0
    mean = float(np.mean(np.diag(gram))) or 1.0
    gram[dead, dead] = mean
    inverse = np.linalg.inv(gram + 0.01 * mean * np.eye(len(gram)))
    integers = np.zeros(weight.shape)
    remaining = list(np.argsort(-np.where(dead, 0, np.diag(gram)), kind="stable"))
    while remaining:
        row = remaining.pop(0)
        for output in range(weight.shape[1]):
            integers[row, output] = min(max(np.rint(weight[row, output] / scales[output]), -limit), limit)
            error = (weight[row, output] - integers[row, output] * scales[output]) / inverse[row, row]
            for other in remaining:
                weight[other, output] -= error * inverse[other, row]
        inverse -= np.outer(inverse[:, row], inverse[row, :]) / inverse[row, row]
    return integers


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("seed", range(4))
def test_gptq_matches_the_slow_loop(seed: int, limit: int) -> None:
    """The blocked form with one Cholesky factor gives the integers of explicit downdates, channel by channel where it is the better."""
    weight, inputs = _weight(seed), _inputs(seed)
    gram, scales = inputs.T @ inputs, mse_scales(weight, 1, limit)
    slow, nearest = _slow_gptq(weight, gram, scales, limit), round_weight(weight, scales, 1, limit)
    better = [
        np.sum((inputs @ (weight - slow * scales))[:, o] ** 2) <= np.sum((inputs @ (weight - nearest * scales))[:, o] ** 2)
        for o in range(weight.shape[1])
    ]
    assert any(better)
    np.testing.assert_array_equal(gptq(weight, gram, scales, limit), np.where(better, slow, nearest))


def test_gptq_by_hand() -> None:
    """Two equal inputs and weights of 0.4 on the integers: the first rounds to 0, the second takes up its error and rounds to 1."""
    gram = np.ones((2, 2))
    found = gptq(np.full((2, 1), 0.4, np.float32), gram, np.ones(1, np.float32), 7)
    assert sorted(found[:, 0].tolist()) == [0, 1]
    assert output_error(np.full((2, 1), 0.4, np.float32), found, np.ones(1, np.float32), gram)[0] == pytest.approx(0.04, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.sampled_from(LIMITS), n=st.integers(1, 60))
def test_gptq_is_never_worse_than_nearest(seed: int, limit: int, n: int) -> None:
    """On the calibration inputs the error of every output is at most that of rounding to the nearest, with few inputs too."""
    weight, inputs = _weight(seed), _inputs(seed, n)
    scales = quantize_weight(weight, 1, limit)[1]
    found = gptq(weight, inputs.T @ inputs, scales, limit)
    nearest = round_weight(weight, scales, 1, limit)
    errors = [((inputs @ (weight.astype(np.float64) - q * scales.astype(np.float64))) ** 2).sum(axis=0) for q in (found, nearest)]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-6) + 1e-12)
    assert np.abs(found).max() <= limit


def test_gptq_gains_on_correlated_inputs() -> None:
    """With correlated inputs and 4 bits the error is less than half of rounding to the nearest, over 10 weights."""
    errors = np.zeros(2)
    for seed in range(10):
        weight, inputs = _weight(seed, 64, 16), _inputs(seed, 500, 64)
        gram, scales = inputs.T @ inputs, mse_scales(weight, 1, 7)
        for place, integers in enumerate((gptq(weight, gram, scales, 7), round_weight(weight, scales, 1, 7))):
            errors[place] += output_error(weight, integers, scales, gram).sum()
    assert errors[0] < 0.5 * errors[1]


def test_longer_than_a_block() -> None:
    """Across the borders of blocks of 128 inputs errors are carried as inside them."""
    weight, inputs = _weight(1, 300, 3), _inputs(1, 900, 300)
    gram, scales = inputs.T @ inputs, mse_scales(weight, 1, 7)
    slow = _slow_gptq(weight, gram, scales, 7)
    found = gptq(weight, gram, scales, 7)
    assert np.mean(found == slow) > 0.99
    assert output_error(weight, found, scales, gram).sum() == pytest.approx(
        output_error(weight, slow.astype(np.int8), scales, gram).sum(), rel=0.02
    )


def test_dead_inputs_are_rounded_to_the_nearest() -> None:
    """An input that was never seen changes nothing of the others, and is itself rounded to the nearest."""
    weight, inputs = _weight(5), _inputs(5)
    inputs[:, [0, 7]] = 0
    gram, scales = inputs.T @ inputs, mse_scales(weight, 1, 7)
    found = gptq(weight, gram, scales, 7)
    np.testing.assert_array_equal(found[[0, 7]], round_weight(weight, scales, 1, 7)[[0, 7]])
    np.testing.assert_array_equal(gptq(weight, np.zeros_like(gram), scales, 7), round_weight(weight, scales, 1, 7))


def test_factor_is_that_of_the_damped_inverse() -> None:
    """``U^T U`` is the inverse of the moments with 1 % of the mean diagonal added; a hopeless matrix is damped until it works."""
    inputs = _inputs(0)
    gram = inputs.T @ inputs
    factor = inverse_factor(gram)
    assert np.all(np.tril(factor, -1) == 0)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(gram + 0.01 * np.diag(gram).mean() * np.eye(24)), rtol=1e-6, atol=1e-12)
    wrong = np.array([[1.0, 5.0], [5.0, 1.0]])  # eigenvalues 6 and -4: damping of 10 is the first that helps
    factor = inverse_factor(wrong)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(wrong + 10 * np.eye(2)), rtol=1e-9)


def test_moments_that_are_not_finite_are_refused() -> None:
    """NaN in the moments is an error of one line."""
    gram = np.eye(24)
    gram[3, 3] = np.nan
    with pytest.raises(ExportError, match="NaN or infinity in the second moments"):
        gptq(_weight(0), gram, np.ones(5, np.float32), 7)


def _layer(weight: Array, operator: str = "MatMul") -> Layer:
    return Layer("n", operator, "x", "y", "w", weight, 0 if operator == "Conv" else 1)


@pytest.mark.parametrize("rounding", ["nearest", "mse", "gptq"])
@pytest.mark.parametrize("bits", ["W8A8", "W6A8", "W4A4"])
def test_layers_of_zeros_stay_zero(rounding: str, bits: str) -> None:
    """A layer of zeros has integers 0 and finite, positive scales, whatever the rounding."""
    for operator, shape in (("MatMul", (8, 4)), ("Conv", (4, 2, 3, 3))):
        integers, scales = weight_of(_layer(np.zeros(shape, np.float32), operator), Scheme("minmax", BITS[bits], rounding))  # type: ignore[arg-type]
        assert not integers.any()
        assert integers.shape == shape
        assert np.all(np.isfinite(scales) & (scales > 0))
