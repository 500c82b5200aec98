"""Histograms and clipping values against slow second implementations on the raw samples, hand cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipq.export.quantize.histogram import Histogram
from clipq.export.quantize.ranges import METHODS, clip_of
from clipq.export.quantize.weights import quantize_weight, scale_of
from clipq.recipe import CALIBRATION_METHODS


def _histogram(values: np.ndarray, parts: int = 1) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values.astype(np.float32), parts):
        histogram.add(part)
    return histogram


def _samples(kind: str, seed: int = 0, n: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(n)
    values = {
        "normal": normal,
        "laplace": rng.laplace(size=n),
        "outliers": np.where(rng.random(n) < 1e-4, 40 * normal, normal),
        "gelu": normal * (normal > 0) + 0.1 * np.minimum(normal, 0) * np.exp(-(normal**2)),
        "relu": np.maximum(normal, 0),
    }[kind]
    return values.astype(np.float32)


KINDS = ("normal", "laplace", "outliers", "gelu", "relu")


def _slow_mse(values: np.ndarray, clip: float) -> float:
    """Mean squared error of quantizing every sample."""
    step = clip / 127
    return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))


def _slow_entropy(values: np.ndarray) -> float:
    """Migacz's pseudo-code, with explicit loops, on a linear histogram of the samples."""
    largest = np.abs(values).max()
    counts = np.histogram(np.abs(values), bins=2048, range=(0, largest))[0].astype(float)
    counts[0] = counts[1]
    best, best_kept = np.inf, 0
    for kept in range(128, 2049, 8):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        for level in range(128):
            start, end = level * kept // 128, (level + 1) * kept // 128
            filled = counts[start:end] > 0
            if filled.any():
                q[start:end][filled] = counts[start:end].sum() / filled.sum()
        p, q = p / p.sum(), q / q.sum()
        divergence = sum(a * np.log(a / max(b, 1e-300)) for a, b in zip(p, q, strict=True) if a > 0)
        if divergence < best:
            best, best_kept = divergence, kept
    return float(largest * best_kept / 2048)


def test_methods_are_those_of_the_recipe() -> None:
    """Every calibration method that a recipe may name exists here, and no other."""
    assert tuple(METHODS) == CALIBRATION_METHODS


@pytest.mark.parametrize("kind", KINDS)
def test_histogram_counts_what_numpy_counts(kind: str) -> None:
    """Counts over the histogram's own edges equal numpy's."""
    values = np.abs(_samples(kind))
    lower, _, counts = _histogram(values).occupied()
    expected = np.histogram(values, bins=np.append(lower, np.inf))[0]
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == values.size


def test_bins_are_narrow() -> None:
    """No bin of a normal number is wider than 1/512 of its value, or 1/128 when four are merged."""
    histogram = _histogram(_samples("outliers"))
    for merge, share in ((1, 512), (4, 128)):
        lower, upper, _ = histogram.occupied(merge)
        assert np.all(upper - lower <= lower / share)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_exact_largest(kind: str) -> None:
    """Minmax is the largest absolute value to the last bit."""
    values = _samples(kind)
    assert clip_of(_histogram(values), "minmax") == float(np.abs(values).max())


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_matches_numpy(kind: str) -> None:
    """The 99.99 percentile agrees with numpy's on the samples to the width of a bin and the gap between two samples."""
    values = np.abs(_samples(kind))
    low, high = np.percentile(values, [99.988, 99.992])
    assert low * (1 - 1 / 512) <= clip_of(_histogram(values), "percentile") <= high * (1 + 1 / 512)


def test_percentile_by_hand() -> None:
    """Of 10,000 ones and one 64 the 99.99 percentile is still in the bin of one, whose upper edge is 1 + 1/512."""
    clip = clip_of(_histogram(np.append(np.ones(10_000), 64)), "percentile")
    assert 1 <= clip <= 1 + 1 / 512


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_matches_the_pseudo_code(kind: str) -> None:
    """The clip agrees with explicit loops over a linear histogram of the samples."""
    values = _samples(kind)
    assert clip_of(_histogram(values), "entropy") == pytest.approx(_slow_entropy(values), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_the_best_of_the_grid(kind: str) -> None:
    """No clip of the grid has, on the samples themselves, an error more than 1 % below the chosen one."""
    values = _samples(kind)
    chosen = clip_of(_histogram(values), "mse")
    grid = np.abs(values).max() * 2.0 ** (-np.arange(129) / 16)
    assert _slow_mse(values, chosen) <= 1.01 * min(_slow_mse(values, clip) for clip in grid)


def test_mse_drops_a_lone_outlier() -> None:
    """One sample at 12 among 200,000 of unit variance saturates; minmax keeps it."""
    histogram = _histogram(np.append(_samples("normal"), 12.0))
    assert clip_of(histogram, "mse") < 6 < clip_of(histogram, "minmax") == 12


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(power=st.integers(-20, 20), parts=st.integers(1, 50), seed=st.integers(0, 1000))
def test_scale_order_sign_and_batches(method: str, power: int, parts: int, seed: int) -> None:
    """A power of two scales the clip exactly; order, signs and batch size change nothing."""
    values = _samples("outliers", seed, 5_000)
    rng = np.random.default_rng(seed)
    clip = clip_of(_histogram(values), method)
    shuffled = rng.permutation(values) * rng.choice([-1, 1], len(values))
    assert clip_of(_histogram(shuffled, parts), method) == clip
    assert clip_of(_histogram(values * 2.0**power), method) == pytest.approx(clip * 2.0**power, rel=1e-9)
    assert 0 < clip <= np.abs(values).max()


@pytest.mark.parametrize("method", METHODS)
def test_zeros_one_value_and_sparse(method: str) -> None:
    """Zeros give 0, a constant gives about itself, and a tensor that is nearly all zero keeps a usable range."""
    assert clip_of(_histogram(np.zeros(100)), method) == 0
    assert clip_of(_histogram(np.full(100, 3.0)), method) == pytest.approx(3, rel=0.05)
    sparse = np.zeros(100_000)
    sparse[:5] = [1, 2, 3, 4, 5]
    assert clip_of(_histogram(sparse), method) >= 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad: float) -> None:
    """NaN and infinity raise, and leave the counts as they were."""
    histogram = _histogram(np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([1, bad, 2], np.float32))
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_per_channel(axis: int) -> None:
    """Rounding errs by at most half a step of its own channel; 127 is used; a channel of zeros stays zero."""
    weight = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32) * np.geomspace(0.01, 100, 8).astype(np.float32)
    index = (2, slice(None)) if axis == 0 else (slice(None), 2)
    weight[index] = 0
    integers, scales = quantize_weight(weight, axis)
    steps = scales.reshape((-1, 1) if axis == 0 else (1, -1))
    assert np.all(np.abs(integers * steps - weight) <= steps * 0.5001)
    used = np.abs(integers).max(axis=1 - axis)
    assert used[2] == 0
    assert np.all(np.delete(used, 2) == 127)


def test_scale_never_underflows() -> None:
    """The step of a range too small for float32 is still a normal number."""
    assert scale_of(1e-44) >= np.finfo(np.float32).tiny
