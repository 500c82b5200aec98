"""OOD scores and detection metrics against scikit-learn, scipy and the code of OpenOOD, by hand, and by their properties."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from clipq.errors import DataError
from clipq.evaluate.metrics import detection, ood
from clipq.evaluate.metrics.probabilities import normalised_sigmoid, softmax

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=50).map(np.array)
METRICS = [detection.auroc, detection.aupr_in, detection.aupr_out, detection.fpr95_id_pos, detection.fpr95_ood_pos]


def _joined(inside, outside):
    return np.concatenate([np.zeros(len(inside)), np.ones(len(outside))]), np.concatenate([inside, outside])


def test_scores_equal_scipy():
    """Each score is minus, or plus, the quantity of its paper; higher is more OOD in all of them."""
    logits = 4 * np.random.default_rng(0).standard_normal((300, 1500))
    probabilities = scipy.special.softmax(logits, axis=1)
    np.testing.assert_allclose(ood.msp(logits), -probabilities.max(axis=1))
    np.testing.assert_allclose(ood.msp_from_probabilities(probabilities), -probabilities.max(axis=1))
    np.testing.assert_allclose(ood.maxlogit(logits), -logits.max(axis=1))
    np.testing.assert_allclose(ood.energy(logits, 2.0), -2 * scipy.special.logsumexp(logits / 2, axis=1))
    np.testing.assert_allclose(ood.entropy(logits), scipy.stats.entropy(probabilities, axis=1))
    np.testing.assert_allclose(ood.entropy_from_probabilities(probabilities), scipy.stats.entropy(probabilities, axis=1))
    np.testing.assert_allclose(ood.max_sigmoid(logits), -scipy.special.log_expit(logits).max(axis=1))
    cosines = logits / 100
    np.testing.assert_allclose(ood.mcm(cosines, 0.5), -scipy.special.softmax(cosines / 0.5, axis=1).max(axis=1))


@pytest.mark.parametrize("score", [ood.mcm, ood.msp, ood.maxlogit, ood.energy, ood.entropy, ood.max_sigmoid])
def test_one_sign_in_the_house(score):
    """A peaked row is more in-distribution than a flat one: its score is lower."""
    peaked, flat = score(np.array([[0.9, 0.0, 0.0], [0.1, 0.1, 0.1]]))
    assert peaked < flat


def test_mcm_keeps_what_half_precision_loses():
    """Cosines a ten-thousandth apart keep their order over 1,000 classes, where softmax is nearly flat."""
    cosines = np.full((2, 1000), 0.2, dtype=np.float32)
    cosines[0, 0], cosines[1, 0] = 0.3000, 0.3001
    first, second = ood.mcm(cosines)
    assert second < first
    assert np.float16(first) == np.float16(second)


def test_siglip_paths():
    """The bias leaves energy's order, max_sigmoid ranks as maxlogit, and the bias does change the normalised sigmoid."""
    logits = np.random.default_rng(1).standard_normal((50, 8)) * 3
    assert np.argsort(ood.energy(logits - 10)).tolist() == np.argsort(ood.energy(logits)).tolist()
    assert np.argsort(ood.max_sigmoid(logits)).tolist() == np.argsort(ood.maxlogit(logits)).tolist()
    assert np.abs(normalised_sigmoid(logits) - normalised_sigmoid(logits - 10)).max() > 0.1
    assert np.abs(softmax(logits) - softmax(logits - 10)).max() < 1e-12


@given(SCORES, SCORES)
def test_auroc_and_aupr_equal_sklearn(inside, outside):
    """AUROC with mid-ranks and both average precisions are scikit-learn's, ties included."""
    truth, scores = _joined(inside, outside)
    assert detection.auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert detection.aupr_out(inside, outside) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert detection.aupr_in(inside, outside) == pytest.approx(average_precision_score(1 - truth, -scores), abs=1e-12)


@given(SCORES, SCORES)
def test_fpr95_equals_the_roc_curve(inside, outside):
    """The first point of the ROC curve with TPR >= 0.95, which is OpenOOD's rule, for either class as positive."""
    truth, scores = _joined(inside, outside)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert detection.fpr95_ood_pos(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)
    fpr, tpr, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert detection.fpr95_id_pos(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], abs=1e-12)


def test_the_two_fpr95_differ():
    """They answer two questions: a long tail of ID hurts one, a long tail of OOD the other."""
    inside = np.concatenate([np.zeros(90), np.full(10, 9.0)])
    outside = np.full(100, 5.0)
    assert detection.fpr95_id_pos(inside, outside) == 1.0
    assert detection.fpr95_ood_pos(inside, outside) == 0.1


def test_transfer_fpr():
    """FP32's threshold on an engine whose scores moved up by 1: ID is rejected, OOD is not accepted more."""
    id_fp32, ood_fp32 = np.arange(100.0), np.arange(50.0, 150.0)
    threshold = detection.threshold_id_pos(id_fp32)
    assert detection.accepted_share(id_fp32, threshold) == 0.95
    assert detection.accepted_share(id_fp32 + 1, threshold) == 0.94
    assert detection.accepted_share(ood_fp32 + 1, threshold) == 0.44


@pytest.mark.parametrize("n", [1, 3, 19, 20, 21, 57, 60, 100, 140, 10_000])
def test_95_percent_is_counted_without_rounding(n):
    """At least 95 % and never one sample more than needed."""
    count = detection.count_95(n)
    assert 100 * count >= 95 * n > 100 * (count - 1)


@given(SCORES, SCORES, st.randoms())
def test_properties(inside, outside, random):
    """Monotone transforms, permutations and copies change nothing; all lie in [0, 1]; swapping the sides mirrors AUROC."""
    shuffled = inside.tolist()
    random.shuffle(shuffled)
    for metric in METRICS:
        value = metric(inside, outside)
        assert 0 <= value <= 1
        assert metric(np.exp(inside) - 3, np.exp(outside) - 3) == value
        assert metric(np.array(shuffled), outside) == pytest.approx(value, abs=1e-12)
        assert metric(np.repeat(inside, 20), np.repeat(outside, 20)) == pytest.approx(value, abs=1e-12)
    assert detection.auroc(outside, inside) == pytest.approx(1 - detection.auroc(inside, outside))
    assert detection.auroc(inside, inside) == pytest.approx(0.5)


def test_separated_and_constant_scores():
    """Perfect separation is perfect in all five; scores that say nothing give chance."""
    inside, outside = np.arange(30.0), np.arange(100.0, 140.0)
    assert [metric(inside, outside) for metric in METRICS] == [1.0, 1.0, 1.0, 0.0, 0.0]
    constant = [metric(np.zeros(30), np.zeros(10)) for metric in METRICS]
    assert constant == pytest.approx([0.5, 0.75, 0.25, 1.0, 1.0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [([], [1.0], "ID scores have the wrong shape"), ([1.0], [], "OOD scores have"), ([np.inf], [1.0], "NaN or inf")],
)
def test_bad_input_is_named(metric, inside, outside, message):
    """A missing side or a score that is not finite ends in one clear line."""
    with pytest.raises(DataError, match=message):
        metric(np.array(inside), np.array(outside))
