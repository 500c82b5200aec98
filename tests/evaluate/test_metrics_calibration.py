"""Calibration errors against netcal, torchmetrics and slow loops, by hand, and by their properties."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipq.engines.torch.compat import define_missing_operators
from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import as_probabilities
from clipq.evaluate.metrics.calibration import (
    bin_index,
    ece,
    ece_debiased,
    ece_em15,
    ece_sweep,
    equal_mass_means,
    mce,
    reliability_bins,
    rms_edges,
    rmsce,
    signed_gap,
)
from clipq.evaluate.metrics.classwise import ece_classwise
from clipq.evaluate.metrics.probabilities import softmax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # netcal's own imports warn
    from netcal.metrics.confidence import ECE, MCE

# Confidences with many exact ties and both ends of the range.
PAIRS = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 1 / 15, 0.2, 0.6, 1.0]), st.floats(0, 1)), st.integers(0, 1)), min_size=1, max_size=60
)
MEASURES = [ece, mce, ece_em15, ece_sweep, signed_gap, rmsce]


def _arrays(pairs):
    confidence, correct = zip(*pairs, strict=True)
    return np.array(confidence), np.array(correct)


def _made(n=3000, classes=10, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((n, classes))
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 2
    probabilities = softmax(logits)
    return probabilities, labels, probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def test_equal_width_errors_equal_netcal():
    """ECE-15 and MCE are netcal's."""
    probabilities, labels, confidence, correct = _made()
    assert ece(confidence, correct) == pytest.approx(ECE(15).measure(probabilities, labels), abs=1e-12)
    assert mce(confidence, correct) == pytest.approx(MCE(15).measure(probabilities, labels), abs=1e-12)


def test_equal_mass_error_equals_netcal_where_bins_divide():
    """With n a multiple of 15 and no ties the bins are those of the quantiles; netcal's edges move one sample at most."""
    probabilities, labels, confidence, correct = _made(n=3000)
    assert ece_em15(confidence, correct) == pytest.approx(ECE(15, equal_intervals=False).measure(probabilities, labels), abs=2 * 15 / 3000)


def test_equal_mass_error_equals_a_plain_split():
    """With n a multiple of 15 and no ties, sorting and cutting into 15 equal parts gives the same numbers."""
    _, _, confidence, correct = _made(n=3000)
    order = np.argsort(confidence)
    parts = np.split(order, 15)
    expected = [abs(correct[part].mean() - confidence[part].mean()) for part in parts]
    assert ece_em15(confidence, correct) == pytest.approx(np.mean(expected), abs=1e-12)


def test_torchmetrics_agrees_below_full_confidence_and_errs_at_it():
    """Where no confidence is exactly 1 the two agree; 10 % wrong at 1.0 beside right ones at 0.98 shows torchmetrics' extra bin."""
    import torch

    define_missing_operators()  # torchmetrics imports torchvision
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    probabilities, labels, confidence, correct = _made(scale=0.5)
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), num_classes=10, n_bins=15)
    assert ece(confidence, correct) == pytest.approx(float(theirs), abs=1e-6)

    # One closed last bin: accuracy 0.95, confidence 0.99. torchmetrics gives 1.0 a bin of its own: 0.5 * 0.1 + 0.5 * 0.02.
    confidence = np.array([1.0] * 10 + [0.98] * 10)
    correct = np.array([0] + [1] * 19)
    assert ece(confidence, correct) == pytest.approx(0.04)
    phantom = binary_calibration_error(torch.tensor(confidence), torch.tensor(correct), n_bins=15)
    assert float(phantom) == pytest.approx(0.06, abs=1e-6)


def test_full_confidence_is_not_lost():
    """10 % wrong at confidence 1.0 is an error of 0.1 by every measure (a dropped last bin would say 0)."""
    confidence, correct = np.ones(100), np.array([0] * 10 + [1] * 90)
    assert [measure(confidence, correct) for measure in MEASURES] == pytest.approx([0.1] * 6)


def test_edges_belong_to_the_bin_above():
    """k/15 opens bin k, the number just below closes bin k - 1, and 1.0 stays in the last bin."""
    edges = np.arange(1, 15) / 15
    assert bin_index(edges).tolist() == list(range(1, 15))
    assert bin_index(np.nextafter(edges, 0)).tolist() == list(range(14))
    assert bin_index(np.array([0.0, 1.0])).tolist() == [0, 14]


def test_reliability_bins_by_hand():
    """Counts, means and NaN for empty bins."""
    table = reliability_bins(np.array([0.1, 0.6, 0.8]), np.array([1, 0, 1]), bins=4)
    assert table.count.tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(table.confidence, [0.1, np.nan, 0.6, 0.8])
    np.testing.assert_allclose(table.accuracy, [1.0, np.nan, 0.0, 1.0])


def test_perfect_calibration_is_zero():
    """Blocks of confidence k/10 that are right k times in ten have no error in any measure."""
    confidence = np.repeat(np.arange(1, 10) / 10, 150)
    correct = np.concatenate([np.arange(150) < 15 * k for k in range(1, 10)])
    assert [measure(confidence, correct) for measure in MEASURES] == pytest.approx([0.0] * 6, abs=1e-12)
    assert ece_debiased(confidence, correct) == 0.0


def test_ece_of_calibrated_data_is_biased_as_documented():
    """Perfectly calibrated data shows an ECE-15 of about 0.9 / sqrt(n), and the debiased error shows far less."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, (200, 1000))
    correct = rng.uniform(0, 1, (200, 1000)) < confidence
    assert np.mean([ece(c, y) for c, y in zip(confidence, correct, strict=True)]) == pytest.approx(0.029, abs=0.01)
    assert np.median([ece_debiased(c, y) for c, y in zip(confidence, correct, strict=True)]) < 0.01


@given(PAIRS)
def test_ece_and_mce_equal_a_slow_loop(pairs):
    """Bin by bin, with the edge rule written out."""
    gaps, weights = [], []
    for b in range(15):
        inside = [(c, y) for c, y in pairs if b / 15 <= c and (c < (b + 1) / 15 or b == 14)]
        if inside:
            gaps.append(abs(np.mean([y for _, y in inside]) - np.mean([c for c, _ in inside])))
            weights.append(len(inside) / len(pairs))
    assert ece(*_arrays(pairs)) == pytest.approx(np.dot(gaps, weights), abs=1e-12)
    assert mce(*_arrays(pairs)) == pytest.approx(max(gaps), abs=1e-12)


@given(PAIRS)
def test_equal_mass_means_equal_a_slow_loop(pairs):
    """Each sample written 15 times, tied ones replaced by their mean, cut into 15 equal parts."""
    pairs = sorted(pairs)
    accuracy = {c: np.mean([y for other, y in pairs if other == c]) for c, _ in pairs}
    hits = np.repeat([accuracy[c] for c, _ in pairs], 15).reshape(15, -1).mean(axis=1)
    values = np.repeat([c for c, _ in pairs], 15).reshape(15, -1).mean(axis=1)
    ours_hits, ours_values = equal_mass_means(*_arrays(pairs))
    np.testing.assert_allclose(ours_hits, hits, atol=1e-9)
    np.testing.assert_allclose(ours_values, values, atol=1e-9)
    if len(pairs) >= 30:
        n_b = len(pairs) / 15
        squares = sum((a - c) ** 2 - a * (1 - a) / (n_b - 1) for a, c in zip(hits, values, strict=True)) / 15
        assert ece_debiased(*_arrays(pairs)) ** 2 == pytest.approx(max(0.0, squares), abs=1e-9)


def test_sweep_equals_a_slow_loop():
    """The number of bins grows until the accuracies fall once; sizes that divide n make plain splits exact."""
    rng = np.random.default_rng(3)
    confidence = np.sort(rng.uniform(0.3, 1, 2520))
    correct = rng.uniform(0, 1, 2520) < 0.4 + 0.3 * confidence
    for bins in range(1, 11):  # 2520 is divisible by 1..10
        means = np.array([part.mean() for part in np.split(correct, bins)])
        if (np.diff(means) < 0).any():
            assert bins > 3
            break
        best = np.mean(np.abs(means - [part.mean() for part in np.split(confidence, bins)]))
    else:
        pytest.fail("the example must break monotony before 11 bins")
    assert ece_sweep(confidence, correct) == pytest.approx(best, abs=1e-9)


@given(PAIRS, st.randoms())
def test_order_and_repetition_do_not_matter(pairs, random):
    """Any order of the samples, ties included, and the whole set repeated, give the same numbers."""
    shuffled = list(pairs)
    random.shuffle(shuffled)
    for measure in (ece, mce, ece_em15, signed_gap):
        value = measure(*_arrays(pairs))
        assert measure(*_arrays(shuffled)) == pytest.approx(value, abs=1e-9)
        assert measure(*_arrays(pairs * 3)) == pytest.approx(value, abs=1e-9)
    for measure in (ece_sweep, rmsce):
        assert measure(*_arrays(shuffled)) == pytest.approx(measure(*_arrays(pairs)), abs=1e-9)


@given(PAIRS)
def test_bounds(pairs):
    """|signed gap| <= ece_em15 <= 1, |signed gap| <= ece <= mce <= 1."""
    confidence, correct = _arrays(pairs)
    gap = abs(signed_gap(confidence, correct))
    assert gap - 1e-9 <= ece(confidence, correct) <= mce(confidence, correct) + 1e-9 <= 1 + 2e-9
    assert gap - 1e-9 <= ece_em15(confidence, correct) <= 1 + 1e-9
    assert gap - 1e-9 <= ece_sweep(confidence, correct) <= 1 + 1e-9


def test_rms_by_hand():
    """250 samples are two bins, of 100 and of 150: gaps 0.2 and 0.1."""
    assert rms_edges(250).tolist() == [0, 100, 250]
    confidence, correct = np.repeat([0.3, 0.9], [100, 150]), np.repeat([0, 1, 0, 1], [50, 50, 30, 120])
    assert rmsce(confidence, correct) == pytest.approx(np.sqrt(0.4 * 0.2**2 + 0.6 * 0.1**2))


@pytest.mark.parametrize("n", [1, 99, 150, 200, 1234])
def test_rms_equals_a_slow_loop(n):
    """Sorted, cut into hundreds, the rest in the last bin; no bin is left out."""
    rng = np.random.default_rng(n)
    confidence = rng.uniform(0, 1, n)
    correct = rng.uniform(0, 1, n) < confidence**2
    order, bins = np.argsort(confidence), max(1, n // 100)
    parts = [order[100 * b : 100 * (b + 1) if b < bins - 1 else n] for b in range(bins)]
    squares = sum(len(part) / n * (correct[part].mean() - confidence[part].mean()) ** 2 for part in parts)
    assert rmsce(confidence, correct) == pytest.approx(np.sqrt(squares), abs=1e-12)


def test_rms_keeps_the_last_bin():
    """Only the most confident hundred is wrong; the code this measure is known from would say 0."""
    assert rmsce(np.repeat([0.0, 1.0], 100), np.zeros(200)) == pytest.approx(np.sqrt(0.5))


@given(PAIRS)
def test_rms_splits_ties_in_proportion(pairs):
    """Seven copies each, tied ones replaced by their mean, cut into hundreds: what a plain sort gives without ties."""
    pairs = sorted(pairs * 7)
    confidence, correct = _arrays(pairs)
    means = np.array([correct[confidence == c].mean() for c in confidence])
    bins = max(1, len(pairs) // 100)
    cuts = [slice(100 * b, 100 * (b + 1) if b < bins - 1 else None) for b in range(bins)]
    squares = sum(len(means[cut]) * (means[cut].mean() - confidence[cut].mean()) ** 2 for cut in cuts)
    assert rmsce(confidence, correct) == pytest.approx(np.sqrt(squares / len(pairs)), abs=1e-9)
    assert abs(signed_gap(confidence, correct)) - 1e-9 <= rmsce(confidence, correct) <= 1 + 1e-9


def test_signed_gap_is_positive_when_over_confident():
    """Sure and wrong is over-confidence: + 1; unsure and right is under-confidence."""
    assert signed_gap(np.ones(3), np.zeros(3)) == 1.0
    assert signed_gap(np.full(3, 0.25), np.ones(3)) == -0.75


def _classwise_slow(probabilities, labels, threshold=0.0):
    n, classes = probabilities.shape
    total = 0.0
    for k in range(classes):
        for b in range(15):
            p = probabilities[:, k]
            inside = (b / 15 <= p) & ((p < (b + 1) / 15) | (b == 14)) & ((p > threshold) | (threshold == 0))
            total += abs(np.sum((labels == k)[inside]) - np.sum(p[inside])) / n
    return total / classes


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.2])
def test_classwise_equals_a_slow_loop(threshold):
    """Every class and bin by itself, with and without the threshold."""
    probabilities, labels, _, _ = _made(n=500, classes=7)
    assert ece_classwise(probabilities, labels, threshold=threshold) == pytest.approx(
        _classwise_slow(probabilities, labels, threshold), abs=1e-12
    )


def test_classwise_saturated_and_over_blocks():
    """One-hot outputs, 40 % wrong: each wrong one is 1 too much in one class and 1 too little in another."""
    labels = np.zeros(1000, dtype=int)
    probabilities = np.zeros((1000, 500))
    probabilities[np.arange(1000), np.where(np.arange(1000) < 400, 1, 0)] = 1.0
    assert ece_classwise(probabilities, labels) == pytest.approx(0.8 / 500)
    assert ece_classwise(probabilities, labels, threshold=0.01) == pytest.approx(0.4 / 500)  # the labels' own probability of 0 is left out


def test_classwise_above_a_threshold_by_hand():
    """Always class 0, probabilities (0.995, 0.005): 0.005 short in class 0, 0.005 too much in class 1, which the threshold leaves out."""
    probabilities, labels = np.tile([0.995, 0.005], (10, 1)), np.zeros(10, dtype=int)
    assert ece_classwise(probabilities, labels) == pytest.approx((0.005 + 0.005) / 2)
    assert ece_classwise(probabilities, labels, threshold=0.01) == pytest.approx(0.005 / 2)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (np.array([]), np.array([]), "wrong shape"),
        (np.array([0.5]), np.array([0, 1]), "differ in number; found 1 and 2"),
        (np.array([1.2]), np.array([1]), r"leave \[0, 1\]; found 1.2 to 1.2"),
        (np.array([np.nan]), np.array([1]), "NaN or infinity"),
        (np.array([0.5]), np.array([2]), "not 0 or 1"),
    ],
)
def test_bad_input_is_named(confidence, correct, message):
    """Empty, misshapen, out-of-range and NaN input each end in one clear line."""
    with pytest.raises(DataError, match=message):
        ece(confidence, correct)


def test_debiased_needs_two_samples_per_bin():
    """29 samples are too few for 15 bins."""
    with pytest.raises(DataError, match=r"too few samples .* found 29; expected at least 30"):
        ece_debiased(np.full(29, 0.5), np.ones(29))


@pytest.mark.parametrize(
    ("row", "message"),
    [([0.5, 0.6], "do not sum to 1; found 1.1 in row 0"), ([1.5, -0.5], r"leave \[0, 1\]"), ([3.0, 9.0], "Are these logits")],
)
def test_logits_do_not_pass_as_probabilities(row, message):
    """What is not a distribution is refused, never rescaled."""
    with pytest.raises(DataError, match=message):
        as_probabilities(np.array([row]))
