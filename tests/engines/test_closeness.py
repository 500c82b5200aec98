"""How far outputs are from PyTorch's, and how far another machine may be: by hand, against a slow loop, by properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.engines.closeness import (
    MAX_RELATIVE_ERROR,
    MIN_COSINE,
    beyond,
    compare_outputs,
    export_limits,
    golden_blocks,
    limits_elsewhere,
    row_cosines,
)

ANGLES = st.floats(0, 1.5)


def test_figures_by_hand() -> None:
    """A right angle, a number that is 3 off, and a mean that is taken away first."""
    expected = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)
    found = np.array([[2.0, 0.0], [3.0, 2.0]], np.float32)
    figures = compare_outputs(found, expected)
    assert figures["max_abs_error"] == 3
    assert figures["max_abs_output"] == 2
    assert figures["min_cosine"] == pytest.approx(2 / math.hypot(3, 2))
    assert figures["min_centred_cosine"] == pytest.approx((2 * -1 + 1 * 1) / (math.hypot(2, 1) * math.hypot(1, 1)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 7))
def test_figures_are_those_of_a_slow_loop(seed: int, rows: int, dim: int) -> None:
    """Every figure follows from one pair of rows at a time."""
    rng = np.random.default_rng(seed)
    expected = rng.standard_normal((rows, dim)).astype(np.float32)
    found = (expected + 0.1 * rng.standard_normal((rows, dim))).astype(np.float32)

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    mean = [sum(float(value) for value in column) / rows for column in expected.T]
    centred = [
        cosine(*([float(value) - m for value, m in zip(row, mean, strict=True)] for row in pair))
        for pair in zip(found, expected, strict=True)
    ]
    plain = [cosine(*([float(value) for value in row] for row in pair)) for pair in zip(found, expected, strict=True)]
    figures = compare_outputs(found, expected)
    assert figures["min_cosine"] == pytest.approx(min(plain))
    assert figures["min_centred_cosine"] == pytest.approx(min(centred), abs=1e-6)
    differences = [abs(float(x) - float(y)) for x, y in zip(found.flat, expected.flat, strict=True)]
    assert figures["max_abs_error"] == pytest.approx(max(differences))
    np.testing.assert_allclose(row_cosines(found, expected), plain)


def test_limits_elsewhere_by_hand() -> None:
    """60 degrees at export allow 120 elsewhere and the FP32 limit beside; an error of 0.5 allows 1 and a thousandth of the scale."""
    limits = limits_elsewhere({"max_abs_error": 0.5, "max_abs_output": 4.0, "min_cosine": 0.5, "min_centred_cosine": 1.0})
    assert limits["max_abs_error"] == pytest.approx(1.004)
    assert limits["min_cosine"] == pytest.approx(math.cos(math.radians(120) + math.acos(0.99999)))
    assert limits["min_centred_cosine"] == pytest.approx(0.999)


@given(ANGLES, ANGLES, st.floats(0, 10), st.floats(0.1, 10))
def test_limits_elsewhere_hold_what_the_export_measured_and_grow_with_it(angle: float, other: float, error: float, scale: float) -> None:
    """What the export measured passes with an FP32 limit to spare, and a graph that was farther off may be farther off."""

    def figures(of: float) -> dict[str, float]:
        cosine = math.cos(of)
        return {"max_abs_error": error, "max_abs_output": scale, "min_cosine": cosine, "min_centred_cosine": cosine}

    limits, wider = limits_elsewhere(figures(min(angle, other))), limits_elsewhere(figures(max(angle, other)))
    assert not beyond(figures(min(angle, other)), limits)
    assert wider["min_cosine"] <= limits["min_cosine"] <= MIN_COSINE
    assert limits["max_abs_error"] >= error + MAX_RELATIVE_ERROR * scale
    assert wider["min_cosine"] >= -1


def test_without_distance_the_limits_are_those_of_an_export() -> None:
    """A graph that equalled PyTorch must keep what every FP32 graph must."""
    exact = {"max_abs_error": 0.0, "max_abs_output": 3.0, "min_cosine": 1.0, "min_centred_cosine": 1.0}
    assert limits_elsewhere(exact) == pytest.approx(export_limits(3.0))


def test_beyond_names_what_crosses_and_what_is_no_number() -> None:
    """A limit that is met passes; NaN never does."""
    limits = {"max_abs_error": 1.0, "min_cosine": 0.9, "min_centred_cosine": 0.8}
    assert beyond({"max_abs_error": 1.0, "min_cosine": 0.9, "min_centred_cosine": 0.8}, limits) == []
    assert beyond({"max_abs_error": 1.1, "min_cosine": 0.8, "min_centred_cosine": math.nan}, limits) == list(limits)


@pytest.mark.parametrize("rows", range(10))
def test_golden_blocks_cover_every_row_once(rows: int) -> None:
    """Batches of one and five first, as the export measured, then the rest; none is empty."""
    blocks = [range(rows)[block] for block in golden_blocks(rows)]
    assert [row for block in blocks for row in block] == list(range(rows))
    assert all(blocks)
    assert [len(block) for block in blocks][:2] == [size for size in (min(rows, 1), min(max(rows - 1, 0), 5)) if size]
