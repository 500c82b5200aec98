"""Every metric that is computed can be shown: it has a name, and a report says which ones have no interval."""

import numpy as np
import pytest

from clipq.evaluate.entries import measurements
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.report import view
from clipq.evaluate.report.names import METRICS
from clipq.evaluate.statistics.classification import classification_estimates


@pytest.fixture(scope="module")
def estimates():
    """Return the estimates of 300 samples, 6 classes, against a slightly different baseline."""
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.standard_normal((300, 6)), rng.integers(0, 6, 300)
    logits[np.arange(300), labels] += 2
    before, after = (outcomes_from_logits(scores, labels) for scores in (logits, logits + 0.2 * rng.standard_normal(logits.shape)))
    return classification_estimates(before, after, resamples=50)


def test_every_metric_has_a_name(estimates):
    """What is computed from logits is what the report knows, no more and no less."""
    assert estimates.keys() == METRICS.keys()


def test_directions():
    """Risks and errors are better low, covered shares and resolution high; facts of the data or the method are neither."""
    expected = {
        "low": "ece_kde rmsce brier_reliability ece15_after_isotonic augrc risk_at_80 risk_at_90 risk_at_95",
        "high": "brier_resolution coverage_at_risk_1 coverage_at_risk_5",
        "neither": "ece_kde_bandwidth brier_uncertainty brier_within temperature",
    }
    for better, listed in expected.items():
        assert {METRICS[name].better for name in listed.split()} == {better}


def test_a_report_says_what_has_no_interval(estimates):
    """The facts of a report name exactly the metrics that were not resampled, by their labels."""
    report = {
        "baseline": "a",
        "provenance": {"model": {"id": "m"}, "created": "today", "resamples": 50},
        "datasets": {},
        "results": {"a": {"data": measurements(estimates)}},
    }
    said = dict(view.facts(report))["No interval"]
    assert said == (
        "ECE-15 by chance; ECE, sweep; ECE, kernel; Kernel bandwidth; ECE, per class; ECE, per class, above 1 %; Brier: reliability; "
        "Brier: resolution; Brier: uncertainty; Brier: within bins; Fitted temperature"
    )
