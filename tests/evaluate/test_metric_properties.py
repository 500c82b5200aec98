"""What holds for every metric alike: order, copies, bounds, certainty, a single class, and nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipq.errors import DataError
from clipq.evaluate.metrics import accuracy, calibration, kernel, ood, paired, patches, proper, selective
from clipq.evaluate.metrics.calibration_shift import calibration_shift
from clipq.evaluate.metrics.classwise import ece_classwise
from clipq.evaluate.metrics.decomposition import brier_decomposition
from clipq.evaluate.metrics.isotonic import cross_fitted_isotonic
from clipq.evaluate.metrics.neglabel import neglabel
from clipq.evaluate.metrics.outcomes import outcomes_from_logits, outcomes_from_probabilities
from clipq.evaluate.metrics.probabilities import softmax
from clipq.evaluate.metrics.spectral import effective_rank, spectrum
from clipq.evaluate.metrics.temperature import fit_temperature
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate
from clipq.evaluate.statistics.classification import CALIBRATION, FEWEST, classification_estimates, classification_values
from clipq.evaluate.statistics.delong import delong
from clipq.evaluate.statistics.ood import ood_estimates
from clipq.evaluate.statistics.significance import mcnemar

Scored = Callable[[np.ndarray, np.ndarray], float]

# (logits, labels) -> value, with its bounds
MEANS: dict[str, tuple[Scored, float, float]] = {
    "acc1": (accuracy.acc1, 0, 1),
    "acc5": (accuracy.acc5, 0, 1),
    "mean_per_class_recall": (lambda logits, labels: accuracy.mean_per_class_recall(logits.argmax(axis=1), labels), 0, 1),
    "nll": (proper.nll_from_logits, 0, np.inf),
    "brier": (lambda logits, labels: proper.brier(softmax(logits), labels), 0, 2),
    "ece_classwise": (lambda logits, labels: ece_classwise(softmax(logits), labels), 0, 2),
    "ece_classwise_above_1": (lambda logits, labels: ece_classwise(softmax(logits), labels, threshold=0.01), 0, 2),
    "brier_reliability": (lambda logits, labels: brier_decomposition(softmax(logits), labels).reliability, 0, 2),
}
LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 7)), elements=st.sampled_from([-900.0, -2.0, 0.0, 1.0, 900.0]))


@pytest.mark.parametrize("name", MEANS)
@given(logits=LOGITS, copies=st.integers(1, 3), random=st.randoms())
def test_means_see_neither_order_nor_copies(name, logits, copies, random):
    """Saturated, tied and single-class logits included: any order and any number of copies give the same, within the bounds."""
    metric, low, high = MEANS[name]
    labels = np.array([random.randrange(logits.shape[1]) for _ in logits])
    value = metric(logits, labels)
    assert low - 1e-12 <= value <= high + 1e-12
    order = random.sample(range(len(logits)), len(logits)) * copies
    assert metric(logits[order], labels[order]) == pytest.approx(value, rel=1e-12, abs=1e-12)


def test_one_class_is_always_right_and_certain():
    """With a single class there is nothing to get wrong: every error, loss and entropy is 0, every accuracy 1."""
    logits, labels = np.random.default_rng(0).standard_normal((40, 1)), np.zeros(40, dtype=int)
    values = classification_values(outcomes_from_logits(logits, labels))
    right = {"acc1", "acc5", "mean_per_class_recall", "coverage_at_risk_1", "coverage_at_risk_5"}
    facts = {"temperature", "ece_kde_bandwidth"}
    assert values.keys() >= CALIBRATION.keys()
    for name, value in values.items():
        assert name in facts or value == pytest.approx(1.0 if name in right else 0.0, abs=1e-8), name  # a root of rounding
    assert ood.entropy(logits).tolist() == [0.0] * 40
    assert ood.msp(logits).tolist() == ood.mcm(logits).tolist() == [-1.0] * 40


def test_one_class_among_the_labels():
    """All labels alike: recall is accuracy, and the Brier score has no uncertainty that a forecast could resolve."""
    logits = np.random.default_rng(1).standard_normal((60, 4))
    values = classification_values(outcomes_from_logits(logits, np.full(60, 2)))
    assert values["mean_per_class_recall"] == values["acc1"]
    assert values["brier_uncertainty"] == values["brier_resolution"] == 0.0
    assert all(np.isfinite(value) for value in values.values())


@pytest.mark.parametrize("wrong", [0, 10, 40])
def test_confidence_of_exactly_one(wrong):
    """40 one-hot answers: every calibration error is the share of wrong ones (its root-square forms: the root of its parts)."""
    labels = np.zeros(40, dtype=int)
    answers = np.eye(3)[(np.arange(40) < wrong).astype(int)]
    share = wrong / 40
    values = classification_values(outcomes_from_probabilities(answers, labels))
    for name in ("ece15", "ece_em15", "ece_sweep", "mce", "rmsce", "signed_gap"):
        assert values[name] == pytest.approx(share), name
    assert values["ece_debiased"] == pytest.approx(np.sqrt(max(0.0, share**2 - share * (1 - share) / (40 / 15 - 1))), abs=1e-8)
    assert values["brier"] == pytest.approx(2 * share)
    assert values["nll"] == (np.inf if wrong else 0.0)
    assert values["risk_at_80"] == pytest.approx(share)
    assert values["coverage_at_risk_5"] == (0.0 if wrong else 1.0)


def test_confidence_of_exactly_zero():
    """A stored confidence of 0 lies in the lowest bin; where it is right the gap is - 1, where it is wrong there is none."""
    zeros = np.zeros(30)
    for name in ("ece15", "ece_em15", "ece_sweep", "mce", "rmsce"):
        assert CALIBRATION[name](zeros, np.ones(30)) == 1.0, name
        assert CALIBRATION[name](zeros, zeros) == 0.0, name
    assert calibration.signed_gap(zeros, np.ones(30)) == -1.0
    assert kernel.ece_kde(zeros, np.ones(30)) == pytest.approx(1.0)
    assert (selective.aurc(zeros, np.ones(30)), selective.aurc(zeros, zeros)) == (0.0, 1.0)


NOTHING = np.zeros(0)
NO_ROWS = np.zeros((0, 3))
NO_LABELS = np.zeros(0, dtype=int)
EMPTY: dict[str, Callable[[], object]] = {
    **{f"calibration {name}": partial(metric, NOTHING, NOTHING) for name, metric in CALIBRATION.items()},
    **{f"mean {name}": partial(metric, NO_ROWS, NO_LABELS) for name, (metric, _, _) in MEANS.items() if name != "mean_per_class_recall"},
    **{f"score {score.__name__}": partial(score, NO_ROWS) for score in (ood.mcm, ood.msp, ood.maxlogit, ood.energy, ood.entropy)},
    "mean_per_class_recall": partial(accuracy.mean_per_class_recall, NO_LABELS, NO_LABELS),
    "ece_by_chance": partial(calibration.ece_by_chance, NOTHING),
    "bandwidth": partial(kernel.kde_bandwidth, NOTHING),
    "isotonic": partial(cross_fitted_isotonic, NOTHING, NOTHING),
    "temperature": partial(fit_temperature, NO_ROWS, NO_LABELS),
    "calibration_shift": partial(calibration_shift, (NOTHING, NOTHING), (NOTHING, NOTHING)),
    "gl_mcm": partial(patches.gl_mcm, NO_ROWS, NOTHING),
    "local_max": partial(patches.local_max, np.zeros((0, 2, 2))),
    "neglabel": partial(neglabel, NO_ROWS, NO_ROWS, groups=1),
    "disagreement": partial(paired.disagreement, NO_LABELS, NO_LABELS),
    "flips": partial(paired.flips, NO_LABELS, NO_LABELS, NO_LABELS),
    "divergence": partial(paired.divergence, NO_ROWS, NO_ROWS),
    "divergence of logits": partial(paired.divergence_of_logits, NO_ROWS, NO_ROWS),
    "cosine_drift": partial(paired.cosine_drift, NO_ROWS, NO_ROWS),
    "spectrum": partial(spectrum, NO_ROWS),
    "effective_rank": partial(effective_rank, NOTHING),
    "mcnemar": partial(mcnemar, NOTHING, NOTHING),
    "delong": partial(delong, (NOTHING, NOTHING), (NOTHING, NOTHING)),
    "ood_estimates": partial(ood_estimates, None, (NOTHING, NOTHING)),
    "outcomes": partial(outcomes_from_logits, NO_ROWS, NO_LABELS),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_is_an_error(name):
    """No metric, score or test has a value for no samples."""
    with pytest.raises(DataError):
        EMPTY[name]()


def test_one_sample_has_every_metric_it_allows():
    """A single image: values and intervals of no width, and only what needs more samples is left out."""
    estimates: dict[str, Estimate] = classification_estimates(None, outcomes_from_logits(np.eye(3)[:1], np.array([0])), resamples=20)
    left_out = FEWEST.keys() | {"ece_kde_bandwidth", "ece15_after_temperature", "temperature", "ece15_after_isotonic"}
    assert not estimates.keys() & left_out
    assert estimates.keys() >= CALIBRATION.keys() - left_out
    assert all(estimate.ci95 is None or estimate.ci95[0] == pytest.approx(estimate.ci95[1]) for estimate in estimates.values())
    assert RESAMPLES >= 2000
