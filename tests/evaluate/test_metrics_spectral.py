"""SVD bands, effective rank and the radial Fourier spectrum against numpy's full SVD and loops, by hand, and their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from clipq.errors import DataError
from clipq.evaluate.metrics import spectral

SEEDS = st.integers(0, 2**32 - 1)


def _features(seed, n=200, dim=24):
    """Correlated features with a large shared mean."""
    rng = np.random.default_rng(seed)
    return 3 + rng.standard_normal((n, dim)) @ (rng.standard_normal((dim, dim)) * np.geomspace(1, 0.01, dim)[:, None])


def test_spectrum_equals_the_svd_of_the_whole_matrix():
    """Singular values and axes of numpy on the centred matrix; several blocks of float32 rows, or fewer rows than dimensions."""
    for shape in ((6000, 40), (15, 40)):
        features = _features(0, *shape).astype(np.float32)
        left, values, axes = np.linalg.svd(features - features.mean(axis=0, dtype=np.float64), full_matrices=False)
        found = spectral.spectrum(features)
        rank = min(shape[0] - 1, shape[1])
        assert found.rank == rank
        assert found.singular_values[:rank] == pytest.approx(values[:rank], rel=1e-8)
        assert np.abs(np.einsum("ik,ki->i", axes[:rank], found.basis[:, :rank])) == pytest.approx(1.0, abs=1e-9)
        assert np.abs(found.coordinates(features)[:, :3]) == pytest.approx(np.abs(left[:, :3] * values[:3]), abs=1e-7)


def test_sqnr_equals_a_loop_over_singular_vectors():
    """Energy of the signal over that of the noise along each right singular vector of numpy's SVD, summed over the band."""
    rng = np.random.default_rng(1)
    reference = _features(1)
    quantized = reference + 0.1 * rng.standard_normal(reference.shape) + 0.05
    axes = np.linalg.svd(reference - reference.mean(axis=0))[2]
    bands = spectral.rank_bands(24)
    expected = []
    for low, high in bands:
        signal = sum(
            float(((reference - reference.mean(axis=0)) @ axis) @ ((reference - reference.mean(axis=0)) @ axis)) for axis in axes[low:high]
        )
        noise = sum(float(((quantized - reference) @ axis) @ ((quantized - reference) @ axis)) for axis in axes[low:high])
        expected.append(10 * np.log10(signal / noise))
    assert spectral.sqnr_by_rank(reference, quantized, bands) == pytest.approx(expected)


def test_noise_planted_in_one_band_is_found_there():
    """Noise along ranks 8 to 15, a hundredth of their energy: 20 dB there, none elsewhere."""
    reference = _features(2)
    axes = spectral.spectrum(reference)
    noise = np.zeros_like(reference)
    noise[:, 8:16] = axes.coordinates(reference)[:, 8:16] / 10
    found = spectral.sqnr_by_rank(reference, reference + noise @ axes.basis.T, [(0, 8), (8, 16), (16, 24)], axes)
    assert found[1] == pytest.approx(20.0)
    assert min(found[0], found[2]) > 200


def test_identical_features_have_no_noise():
    """The ratio is infinite and every singular value is kept."""
    features = _features(3)
    axes = spectral.spectrum(features)
    bands = spectral.rank_bands(axes.rank)
    assert np.isposinf(spectral.sqnr_by_rank(features, features, bands)).all()
    assert spectral.singular_ratio_by_rank(axes, axes, bands).tolist() == [1.0] * len(bands)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_turning_both_changes_nothing(seed):
    """An orthogonal turn and a common shift of both leave ratios, singular values and effective rank as they are."""
    rng = np.random.default_rng(seed)
    reference = _features(seed % 1000, 60, 10)
    quantized = reference + 0.1 * rng.standard_normal(reference.shape)
    turn, shift = ortho_group.rvs(10, random_state=rng), rng.standard_normal(10)
    bands = [(0, 2), (2, 5), (5, 10)]
    found = spectral.sqnr_by_rank(reference @ turn + shift, quantized @ turn + shift, bands)
    assert found == pytest.approx(spectral.sqnr_by_rank(reference, quantized, bands), abs=1e-6)
    before, after = spectral.spectrum(quantized), spectral.spectrum(quantized @ turn + shift)
    assert after.singular_values == pytest.approx(before.singular_values)
    assert spectral.effective_rank(after.singular_values) == pytest.approx(spectral.effective_rank(before.singular_values))


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_order_and_copies_of_images_change_nothing(seed):
    """Ratios are means over images: a permutation and doubling the set keep them."""
    rng = np.random.default_rng(seed)
    reference, quantized = _features(seed % 1000, 40, 6), _features(seed % 1000 + 1, 40, 6)
    rows = np.tile(rng.permutation(40), 2)
    bands = [(0, 3), (3, 6)]
    again = spectral.sqnr_by_rank(reference[rows], quantized[rows], bands)
    assert again == pytest.approx(spectral.sqnr_by_rank(reference, quantized, bands), abs=1e-6)


def test_noise_twice_as_large_costs_six_decibels():
    """10 log10(4) in every band; a shift common to all images is noise."""
    reference = _features(4)
    noise = np.random.default_rng(4).standard_normal(reference.shape)
    bands = spectral.rank_bands(24)
    once, twice = (spectral.sqnr_by_rank(reference, reference + factor * noise, bands) for factor in (1, 2))
    assert once - twice == pytest.approx(10 * np.log10(4))
    assert np.isfinite(spectral.sqnr_by_rank(reference, reference + 1.0, bands)).all()


def test_singular_ratio_by_hand():
    """Features of which ranks 2 and 3 are halved: 1 and 0.5, wherever they point."""
    rng = np.random.default_rng(5)
    left = np.linalg.qr(rng.standard_normal((50, 4)))[0]
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    values = np.array([8.0, 4.0, 2.0, 1.0])
    reference, quantized = spectral.spectrum(left * values), spectral.spectrum((left * values * [1, 1, 0.5, 0.5])[:, [3, 0, 2, 1]])
    assert spectral.singular_ratio_by_rank(reference, quantized, [(0, 2), (2, 4)]) == pytest.approx([1.0, 0.5])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda values: max(values) > 0))
def test_effective_rank_lies_between_one_and_the_dimension(values):
    """The entropy's bounds; the scale does not matter, zeros add nothing."""
    values = np.array(values)
    found = spectral.effective_rank(values)
    assert 1 - 1e-9 <= found <= len(values) + 1e-9
    assert spectral.effective_rank(np.append(3 * values, 0.0)) == pytest.approx(found)


def test_effective_rank_by_hand():
    """Shares 1/2, 1/4, 1/4 have an entropy of 1.5 bits."""
    assert spectral.effective_rank(np.array([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)


def test_radial_energy_equals_a_loop():
    """Each frequency by its sum over patches, on grids of even, odd and unequal sides."""
    for rows, columns in ((4, 4), (3, 5), (7, 7), (1, 6)):
        patches = np.random.default_rng(rows).standard_normal((2, rows * columns, 3))
        y, x = np.divmod(np.arange(rows * columns), columns)
        rings = np.zeros((2, 30))
        for down in range(rows):
            for across in range(columns):
                wave = np.exp(-2j * np.pi * (down * y / rows + across * x / columns))
                power = np.abs(np.einsum("npd,p->nd", patches, wave)) ** 2
                distance = np.hypot(min(down, rows - down), min(across, columns - across))
                rings[:, round(distance)] += power.mean(axis=1) / (rows * columns) ** 2
        found = spectral.radial_energy(patches, (rows, columns))
        assert found == pytest.approx(rings[:, : found.shape[1]])
        assert rings[:, found.shape[1] :].sum() == 0


def test_rings_sum_to_the_mean_square():
    """Parseval; and images are independent, over several blocks."""
    patches = np.random.default_rng(6).standard_normal((5, 16 * 16, 300)).astype(np.float32)
    found = spectral.radial_energy(patches, (16, 16))
    assert found.sum(axis=1) == pytest.approx((patches.astype(np.float64) ** 2).mean(axis=(1, 2)))
    assert np.concatenate([spectral.radial_energy(patches[i : i + 2], (16, 16)) for i in (0, 2, 4)]) == pytest.approx(found, rel=1e-12)


def test_a_wave_lies_in_its_ring():
    """Three cycles along a row of eight: all energy in ring 3; a constant image: all in ring 0."""
    x = np.tile(np.arange(8), 8)
    wave, flat = np.cos(2 * np.pi * 3 * x / 8), np.full(64, 2.0)
    found = spectral.radial_energy(np.stack([wave, flat])[:, :, None], (8, 8))
    assert found == pytest.approx(np.array([[0, 0, 0, 0.5, 0, 0, 0], [4.0, 0, 0, 0, 0, 0, 0]]))


def test_bad_input_is_named():
    """Nothing to decompose, other shapes, wrong bands, no spectrum, NaN."""
    features = _features(7, 10, 4)
    with pytest.raises(DataError, match="wrong shape"):
        spectral.spectrum(np.empty((0, 4)))
    with pytest.raises(DataError, match="no spectrum"):
        spectral.spectrum(np.full((5, 3), 0.1, np.float32))
    with pytest.raises(DataError, match="no spectrum"):
        spectral.spectrum(features[:1])
    with pytest.raises(DataError, match="differ in shape"):
        spectral.sqnr_by_rank(features, features[1:], [(0, 1)])
    with pytest.raises(DataError, match=r"band of ranks.*\[2, 9\)"):
        spectral.sqnr_by_rank(features, features, [(2, 9)])
    with pytest.raises(DataError, match="differ in dimension"):
        spectral.singular_ratio_by_rank(spectral.spectrum(features), spectral.spectrum(features[:, :3]), [(0, 1)])
    with pytest.raises(DataError, match="no effective rank"):
        spectral.effective_rank(np.zeros(3))
    with pytest.raises(DataError, match=r"expected \(n, 3 x 3 patches"):
        spectral.radial_energy(np.zeros((2, 8, 4)), (3, 3))
    with pytest.raises(DataError, match="hold NaN"):
        spectral.radial_energy(np.full((1, 4, 1), np.nan), (2, 2))
