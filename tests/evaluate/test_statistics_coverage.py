"""Simulations: 95 % intervals hold the true value in 93 to 97 of 100 repetitions, and where they do not, the report says so.

Resamples come from ``resample_counts`` and go through the intervals of ``statistics``; only the many repetitions are matrix products here,
which are held to the metrics themselves. The slow tests go all the way through ``*_estimates``.
"""

import numpy as np
import pytest
from scipy.stats import norm

from clipq.evaluate.metrics.calibration import BINS, ECE_CHANCES, bin_index, ece, ece_by_chance
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions
from clipq.evaluate.statistics.bca import bca_interval
from clipq.evaluate.statistics.bootstrap import percentile_interval, resample_counts
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.statistics.delong import delong, placements
from clipq.evaluate.statistics.ood import ood_estimates
from clipq.evaluate.statistics.significance import mcnemar, minimum_detectable_effect

RESAMPLES = 1000


def _counts(n, stream=0):
    return np.stack(list(resample_counts(n, RESAMPLES, 0, stream=stream))).astype(float)


def _inside(ends, truth):
    return ends[0] <= truth <= ends[1]


def _discordant(rng, n, lost, won):
    """Return flags of two engines on n images: one right and the other wrong with these probabilities."""
    kind = rng.choice(4, n, p=[lost, won, 0.6, 0.4 - lost - won])
    return np.isin(kind, [0, 2]), np.isin(kind, [1, 2])


@pytest.mark.parametrize(("n", "lost", "won"), [(400, 0.06, 0.06), (400, 0.09, 0.03), (2000, 0.03, 0.02)])
def test_accuracy_delta_is_covered(n, lost, won):
    """BCa of the paired difference of two accuracies, 1,500 repetitions."""
    rng, counts = np.random.default_rng(n), _counts(n)
    columns = np.stack([after.astype(float) - before for before, after in (_discordant(rng, n, lost, won) for _ in range(1500))], axis=1)
    draws = counts @ columns / n
    hits = [
        _inside(bca_interval(draws[:, i], column.mean(), [column - column.mean()]) or percentile_interval(draws[:, i]), won - lost)
        for i, column in enumerate(columns.T)
    ]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_level_of_mcnemar_is_kept():
    """Two equally good engines, 4,000 times: the mid-p falls below 0.05 in about one of twenty, and in no setting much more often."""
    rng = np.random.default_rng(1)
    for n, psi in ((100, 0.05), (400, 0.04), (400, 0.1)):
        found = np.mean([mcnemar(*_discordant(rng, n, psi / 2, psi / 2)) < 0.05 for _ in range(4000)])
        assert found <= 0.057, (n, psi)


def _scores(rng, mu, n_id=80, n_ood=60):
    """Return (ID, OOD) scores of two engines that share most of their noise; AUROC is Phi(mu / sqrt(2))."""
    common = rng.standard_normal(n_id), rng.standard_normal(n_ood)
    noisy = [[np.sqrt(0.8) * side + np.sqrt(0.2) * rng.standard_normal(len(side)) for side in common] for _ in mu]
    return [(known, foreign + shift) for (known, foreign), shift in zip(noisy, mu, strict=True)]


def _auroc_draws(pair, id_counts, ood_counts):
    inside, outside = pair
    above = (outside[None, :] > inside[:, None]) + 0.5 * (outside[None, :] == inside[:, None])
    return ((id_counts @ above) * ood_counts).sum(axis=1) / above.size


def test_auroc_draws_are_auroc():
    """The matrix form of these simulations is the metric on the repeated samples."""
    pair = _scores(np.random.default_rng(0), [1.0])[0]
    counts = _counts(80), _counts(60, stream=1)
    draws = _auroc_draws(pair, *counts)
    for row in (0, 7):
        repeated = [np.repeat(side, drawn[row].astype(int)) for side, drawn in zip(pair, counts, strict=True)]
        assert draws[row] == pytest.approx(auroc(*repeated))


@pytest.mark.parametrize("mu", [(1.0, 1.0), (1.4, 0.9)])
def test_auroc_delta_is_covered(mu):
    """BCa of the paired difference of two AUROCs at 80 ID and 60 OOD samples, 600 repetitions of normal scores."""
    rng, counts = np.random.default_rng(2), (_counts(80), _counts(60, stream=1))
    truth = norm.cdf(mu[1] / np.sqrt(2)) - norm.cdf(mu[0] / np.sqrt(2))
    hits = []
    for _ in range(600):
        pairs = _scores(rng, mu)
        first, second = (_auroc_draws(pair, *counts) for pair in pairs)
        parts = [placements(*pair) for pair in pairs]
        moved = [new - new.mean() - old + old.mean() for old, new in zip(*parts, strict=True)]
        hits.append(_inside(bca_interval(second - first, parts[1][0].mean() - parts[0][0].mean(), moved), truth))
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_detectable_auroc_difference_is_detected():
    """Engines that differ by what ``minimum_detectable_effect`` names are told apart by DeLong in about 80 of 100 comparisons."""
    rng, mu = np.random.default_rng(3), 1.0
    deltas = [auroc(*pairs[1]) - auroc(*pairs[0]) for pairs in (_scores(rng, (mu, mu), 200, 200) for _ in range(600))]
    least = minimum_detectable_effect(float(np.std(deltas)))
    weaker = np.sqrt(2) * norm.ppf(norm.cdf(mu / np.sqrt(2)) - least)
    found = np.mean([delong(*_scores(rng, (mu, weaker), 200, 200)) < 0.05 for _ in range(600)])
    assert found == pytest.approx(0.8, abs=0.06)


CONFIDENCE = np.array([0.3, 0.5, 0.63, 0.76, 0.9, 0.96])
SHARE = np.array([0.1, 0.15, 0.15, 0.2, 0.2, 0.2])


def _answers(rng, n, gaps):
    """Return confidences and flags of one engine per gap, on the same images; the true ECE is the mean absolute gap."""
    place, luck = rng.choice(len(SHARE), n, p=SHARE), rng.random(n)
    correct = luck < CONFIDENCE[place]
    return [(np.minimum(CONFIDENCE[place] + gap, 0.999), correct) for gap in gaps]


def _true_ece(gap):
    return float(np.abs(SHARE @ (np.minimum(CONFIDENCE + gap, 0.999) - CONFIDENCE)))


def _ece_draws(counts, confidence, correct):
    gaps = np.zeros((len(correct), BINS))
    gaps[np.arange(len(correct)), bin_index(confidence)] = correct - confidence
    return np.abs(counts @ gaps).sum(axis=1) / len(correct)


def _ece_coverage(n, gaps, repeats):
    """Return how often the percentile intervals of the second engine's ECE and of the delta hold the truth, and the mean delta."""
    rng, counts = np.random.default_rng(n), _counts(n)[:600]
    values, deltas, seen = [], [], []
    for _ in range(repeats):
        answers = _answers(rng, n, gaps)
        first, second = (_ece_draws(counts, *pair) for pair in answers)
        values.append(_inside(percentile_interval(second), _true_ece(gaps[1])))
        deltas.append(_inside(percentile_interval(second - first), _true_ece(gaps[1]) - _true_ece(gaps[0])))
        seen.append(ece(*answers[1]) - ece(*answers[0]))
    return np.mean(values), np.mean(deltas), np.mean(seen)


def _ece_influence(confidence, correct):
    """Return (n - 1) (mean of leave-one-out ECEs - leave-one-out ECE) of each sample."""
    gap, place = correct - confidence, bin_index(confidence)
    sums = np.bincount(place, gap, minlength=BINS)
    left_out = (np.abs(sums).sum() - np.abs(sums[place]) + np.abs(sums[place] - gap)) / (len(gap) - 1)
    return (len(gap) - 1) * (left_out.mean() - left_out)


def test_ece_draws_are_ece():
    """The matrix form of these simulations is the metric on the repeated samples."""
    confidence, correct = _answers(np.random.default_rng(0), 300, [0.05])[0]
    counts = _counts(300)
    draws = _ece_draws(counts, confidence, correct)
    for row in (0, 5):
        index = np.repeat(np.arange(300), counts[row].astype(int))
        assert draws[row] == pytest.approx(ece(confidence[index], correct[index]))


@pytest.mark.parametrize(("n", "gaps"), [(1000, (0.08, 0.1)), (1000, (-0.12, -0.08))])
def test_ece_is_covered_well_above_chance(n, gaps):
    """Both engines clearly over- or under-confident: percentile intervals of ece15 keep their promise, those of its delta are wider."""
    value, delta, _ = _ece_coverage(n, gaps, 300)
    assert 0.93 <= value <= 0.985
    assert delta >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(("n", "gaps"), [(1000, (0.08, 0.1)), (3000, (0.1, 0.08)), (3000, (0.05, 0.06)), (10_000, (0.03, 0.05))])
def test_ece_is_covered_well_above_chance_at_length(n, gaps):
    """The same with 1,500 repetitions and more images."""
    value, delta, _ = _ece_coverage(n, gaps, 1500)
    assert 0.93 <= value <= 0.975
    assert 0.93 <= delta <= 0.975


def test_ece_is_not_covered_near_chance_and_the_report_warns():
    """From perfect calibration to an ECE of 4.8 %: the baseline's bias hides half of the rise. The page says so at such a baseline."""
    n, gaps = 500, (0.0, 0.05)
    _, delta, seen = _ece_coverage(n, gaps, 200)
    assert delta < 0.2
    assert seen < 0.6 * _true_ece(0.05)
    baseline = _answers(np.random.default_rng(0), n, gaps)[0]
    assert ece(*baseline) < ECE_CHANCES * ece_by_chance(baseline[0])


def test_why_ece_has_no_bca_interval():
    """Two engines with the same true ECE, 2 %: the percentile interval of the delta holds 0 nearly always, BCa misses it too often."""
    n, rng = 300, np.random.default_rng(5)
    counts, percentile, bca = _counts(n)[:600], [], []
    for _ in range(300):
        answers = _answers(rng, n, (0.02, -0.02))
        draws = _ece_draws(counts, *answers[1]) - _ece_draws(counts, *answers[0])
        delta = ece(*answers[1]) - ece(*answers[0])
        moved = _ece_influence(*answers[1]) - _ece_influence(*answers[0])
        percentile.append(_inside(percentile_interval(draws), 0.0))
        bca.append(_inside(bca_interval(draws, delta, [moved]) or (0.0, 0.0), 0.0))
    assert np.mean(percentile) >= 0.95
    assert np.mean(bca) <= 0.9


@pytest.mark.slow
def test_the_whole_road_is_covered():
    """Through ``*_estimates``, 400 repetitions: accuracy and AUROC deltas, and the levels of their tests."""
    rng, hits, small = np.random.default_rng(9), [], []
    labels = np.zeros(300, dtype=np.int64)
    for _ in range(400):
        flags = _discordant(rng, 300, 0.06, 0.06)
        before, after = (outcomes_from_predictions(labels, (~right).astype(np.int64), np.full(300, 0.7)) for right in flags)
        accuracy = classification_estimates(before, after, resamples=500)["acc1"]
        area = ood_estimates(*_scores(rng, (1.0, 1.0)), resamples=500)["auroc"]
        hits.append([_inside(entry.delta_ci95, 0.0) for entry in (accuracy, area)])
        small.append([entry.p_value < 0.05 for entry in (accuracy, area)])
    assert (np.abs(np.mean(hits, axis=0) - 0.95) <= 0.025).all()
    assert (np.mean(small, axis=0) <= 0.075).all()
