"""The verdict's sentence on lost calibration: one scalar mends it, real damage, or not shown; and the ratio of temperatures."""

import json

import numpy as np
import pytest

from clipq.cli.main import main
from clipq.evaluate.entries import measurements
from clipq.evaluate.mending import mending, temperature_ratio
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.verdict import judge


def _entry(delta, low, high):
    return {"value": 0.1 + delta, "ci95": None, "n": 1000, "delta": delta, "delta_ci95": [low, high], "p_value": 0.01}


def _report(**data):
    """Return a report with one engine; each keyword is a data set with the entries of ECE-15 before and after temperature."""
    results = {name: {"ece15": _entry(*lost), "ece15_after_temperature": _entry(*left)} for name, (lost, left) in data.items()}
    paired = {name: {"temperature_ratio": 1.25} for name in data}
    return {"results": {"int8": results}, "paired": {"int8": paired}}


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ((0.001, -0.004, 0.005), "one scalar mends it"),
        ((0.005, 0.002, 0.010), "one scalar mends most of it"),
        ((0.020, 0.012, 0.028), "real damage, not a change of scale"),
        ((0.010, -0.004, 0.020), "the sample does not show whether one scalar mends it"),
    ],
)
def test_what_is_left_decides(left, said):
    """Of a shown loss of 3 pp: the interval of what is left ends below half of it, excludes zero, or neither."""
    assert mending(_report(d=((0.03, 0.02, 0.04), left)), "int8").endswith(f": {said}")


def test_the_sentence():
    """Loss, rest with its interval and the ratio of temperatures, of the data set that lost most."""
    report = _report(a=((0.01, 0.005, 0.02), (0, -0.01, 0.01)), b=((0.03, 0.02, 0.04), (0.001, -0.004, 0.005)))
    assert mending(report, "int8") == (
        "calibration on b (largest of 2): of +3.00 pp ECE-15, +0.10 pp [−0.40, +0.50] is left after one temperature "
        "(1.25 times that of the baseline): one scalar mends it"
    )


def test_nothing_is_said_where_nothing_is_shown_to_be_lost():
    """Within noise, better, without an interval or without a fitted temperature: no sentence."""
    rest = (0.0, -0.01, 0.01)
    for lost in ((0.01, -0.01, 0.03), (-0.03, -0.04, -0.02)):
        assert mending(_report(d=(lost, rest)), "int8") is None
    report = _report(d=((0.03, 0.02, 0.04), rest))
    report["results"]["int8"]["d"]["ece15_after_temperature"]["delta_ci95"] = None
    assert mending(report, "int8") is None
    del report["results"]["int8"]["d"]["ece15_after_temperature"]
    assert mending(report, "int8") is None
    assert mending({"results": {}, "paired": {}}, "int8") is None


def _judged(logits, changed, labels):
    before, after = outcomes_from_logits(logits, labels), outcomes_from_logits(changed, labels)
    results = {"int8": {"d": measurements(classification_estimates(before, after, resamples=200))}, "fp32": {"d": {}}}
    report = {
        "baseline": "fp32",
        "engines": {name: {"size_bytes": 1} for name in ("fp32", "int8")},
        "results": results,
        "paired": {"int8": {"d": temperature_ratio(before.temperature, after.temperature)}},
        "ood": {},
        "bench": {},
        "datasets": {"d": {"n": len(labels)}},
    }
    return judge(report, ["ece15.delta>0.01"])[1]["int8"]["why"]


def test_true_engines():
    """Calibrated logits doubled are mended by one scalar, half the temperature; a third of the samples sure of themselves is damage."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    said = _judged(logits, 2 * logits, labels)
    assert any("(2.00 times that of the baseline): one scalar mends it" in sentence for sentence in said)
    broken = np.where(rng.uniform(size=(4000, 1)) < 1 / 3, 20 * rng.permuted(logits, axis=1), logits)
    assert any(sentence.endswith("real damage, not a change of scale") for sentence in _judged(logits, broken, labels))


def test_ratio_without_a_minimum():
    """No ratio where a temperature is missing or stands at the end of its range."""
    assert temperature_ratio(2.0, 3.0) == {"temperature_ratio": 1.5}
    assert temperature_ratio(None, 1.0) == temperature_ratio(1.0, 0.01) == temperature_ratio(99.9, 1.0) == {}


def test_score_gives_the_ratio(tmp_path, capsys):
    """``clipq score`` of doubled logits against the logits: a ratio of 2 among the paired figures."""
    rng = np.random.default_rng(1)
    logits = 2 * rng.standard_normal((500, 4))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    for name, scale in (("fp32", 1), ("int8", 2)):
        np.savez(tmp_path / f"{name}.npz", logits=scale * logits, labels=labels)
    assert main(["score", str(tmp_path / "int8.npz"), "--baseline", str(tmp_path / "fp32.npz"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["paired"]["temperature_ratio"] == pytest.approx(2.0, rel=1e-3)
