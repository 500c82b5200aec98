"""The bound on a rise of the ECE, free of chance: by hand, against a slow loop, in simulations; and gates that chance would let through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import ID, make_example

from clipq.errors import DataError
from clipq.evaluate.metrics.calibration import ECE_CHANCES, ece, ece_by_chance
from clipq.evaluate.metrics.calibration_shift import calibration_shift
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.verdict import judge

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def _columns(rows):
    first, right, second, kept = (np.array(column) for column in zip(*rows, strict=True))
    return (first, right.astype(float)), (second, kept.astype(float))


def _moved(rng, n, shift, noise=0.02):
    """A perfectly calibrated baseline, and an engine whose logits of the confidence are moved by ``shift`` and by noise."""
    p = rng.beta(4, 1.2, n)
    correct = rng.random(n) < p
    logit = np.log(p / (1 - p)) + shift + noise * rng.standard_normal(n)
    return (p, correct.astype(float)), (1 / (1 + np.exp(-logit)), correct.astype(float))


def test_shift_by_hand():
    """Four images of one bin; confidence rises by 0.02 for all: the gap moves by 0.02, and nothing varies."""
    confidence, correct = np.full(4, 0.95), np.array([1, 1, 1, 0])
    assert calibration_shift((confidence, correct), (confidence + 0.02, correct)) == pytest.approx(0.02)


def test_shift_equals_a_slow_loop():
    """Gap sums bin by bin, and the standard error over the contributions of each image."""
    first, second = _moved(np.random.default_rng(0), 300, 0.3, noise=0.3)
    gaps = [[0.0] * 15 for _ in range(300)]
    for side, sign in ((first, -1), (second, 1)):
        for row, (confidence, correct) in enumerate(zip(*side, strict=True)):
            gaps[row][min(int(confidence * 15), 14)] += sign * (correct - confidence)
    means = [sum(row[b] for row in gaps) / 300 for b in range(15)]
    each = [sum(row[b] * np.sign(means[b]) for b in range(15)) for row in gaps]
    expected = sum(map(abs, means)) + 1.959964 * np.std(each) / np.sqrt(300)
    assert calibration_shift(first, second) == pytest.approx(expected)


@given(PAIRS)
def test_shift_is_never_below_the_difference(rows):
    """It bounds the difference of the two errors, whichever engine is called the baseline, in any order; equal engines have none."""
    first, second = _columns(rows)
    found = calibration_shift(first, second)
    assert found >= abs(ece(*second) - ece(*first)) - 1e-12
    assert calibration_shift(second, first) == pytest.approx(found)
    turned = [tuple(column[::-1] for column in side) for side in (first, second)]
    assert calibration_shift(*turned) == pytest.approx(found)
    assert calibration_shift(first, first) == 0.0


def test_other_samples_are_refused():
    """Paired means the same number of samples."""
    with pytest.raises(DataError, match="differ in number"):
        calibration_shift((np.array([0.5]), np.array([1])), (np.array([0.5, 0.5]), np.array([1, 0])))


@pytest.mark.parametrize("n", [1500, 10_000])
def test_the_bound_holds_where_chance_hides_the_rise(n):
    """From perfect calibration by 1.4 points: the ECEs show less than half on average, and the bound holds the truth in 97.5 % or more."""
    rng = np.random.default_rng(1)
    truth = np.diff([ece(*side) for side in _moved(rng, 2_000_000, 0.1)])[0]
    pairs = [_moved(rng, n, 0.1) for _ in range(200)]
    seen = np.mean([ece(*engine) - ece(*baseline) for baseline, engine in pairs])
    assert seen < 0.6 * truth
    assert np.mean([calibration_shift(*pair) >= truth for pair in pairs]) >= 0.975


def _report(n, shift, noise, *, calibrated=True):
    """The example with one engine whose calibration entries are those of such images."""
    baseline, engine = _moved(np.random.default_rng(2), n, shift, noise)
    if not calibrated:
        baseline, engine = ((np.minimum(side[0] + 0.1, 1.0), side[1]) for side in (baseline, engine))
    labels = np.zeros(n, np.int64)
    sides = [outcomes_from_predictions(labels, (1 - correct).astype(np.int64), confidence) for confidence, correct in (baseline, engine)]
    found = classification_estimates(*sides, resamples=300)
    entries = {
        name: {"value": e.value, "ci95": e.ci95, "n": n, "delta": e.delta, "delta_ci95": e.delta_ci95, "p_value": e.p_value}
        for name, e in found.items()
    }
    report, _ = make_example()
    names = ("torch-fp32", "ort-int8-static")
    engines = {name: report["engines"][name] for name in names}
    parts = {"results": {names[1]: {ID: entries}}, "paired": {names[1]: {ID: {"calibration_shift": calibration_shift(baseline, engine)}}}}
    return {**report, "engines": engines, "ood": {}, "bench": {}, **parts}, entries


def _outcome(report, rule):
    (gate,), _ = judge(report, [rule])
    return gate["outcome"], gate["why"]


def test_a_gate_near_chance_is_not_passed():
    """A rise of 1.2 points that comes out as less than one, with its whole interval: not shown, and the line names the ways out."""
    baseline, engine = _moved(np.random.default_rng(0), 2_000_000, 0.085)
    assert ece(*engine) - ece(*baseline) > 0.01
    report, entries = _report(10_000, 0.085, 0.02)
    assert entries["ece15"]["delta_ci95"][1] < 0.01
    assert entries["ece15"]["value"] - entries["ece15"]["delta"] < ECE_CHANCES * entries["ece15_by_chance"]["value"]
    outcome, why = _outcome(report, "ece15:max-degradation=0.01")
    assert outcome == "unproven"
    assert "hides a rise of up to +1." in why
    assert "signed_gap or brier" in why
    assert "\n" not in why
    assert _outcome(report, "ece15:non-inferior=0.01")[0] == "fail"


def test_ten_thousand_images_can_pass():
    """An engine that hardly moves confidence passes beside a perfectly calibrated baseline; well above chance, one that moves it too."""
    assert _outcome(_report(10_000, 0.0, 0.02)[0], "ece15.delta>0.01")[0] == "pass"
    assert _outcome(_report(10_000, 0.02, 0.1, calibrated=False)[0], "ece15.delta>0.01")[0] == "pass"


def test_other_calibration_errors_near_chance_are_never_shown():
    """For equal mass and the rest there is no bound; values and improvements err on the safe side and are judged as ever."""
    report, _ = _report(10_000, 0.0, 0.02)
    assert _outcome(report, "ece_em15.delta>0.01")[0] == "unproven"
    assert _outcome(report, "ece15.value>0.03")[0] == "pass"
    assert _outcome(report, "brier.delta>0.01")[0] == "fail"  # not among these entries, so it was not measured
    assert _outcome(report, "signed_gap.delta>0.01")[0] == "pass"
    older = {**report, "paired": {}}
    assert _outcome(older, "ece15.delta>0.01")[0] == "unproven"


def test_expected_error_by_chance_is_that_of_simulations():
    """The mean ECE of answers drawn with the stated confidences."""
    rng = np.random.default_rng(3)
    confidence = rng.beta(4, 1.2, 2000)
    drawn = [ece(confidence, (rng.random(2000) < confidence).astype(float)) for _ in range(300)]
    assert ece_by_chance(confidence) == pytest.approx(np.mean(drawn), rel=0.05)
