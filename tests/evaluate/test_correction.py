"""Holm's correction in a report: families by hand, the words that follow from it, and what a reader is told beside "within noise"."""

import json
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from report_example import ID, OOD, make_example

from clipq.evaluate.correction import add_holm
from clipq.evaluate.entries import measurements
from clipq.evaluate.metrics.calibration import ece_by_chance
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.report import names, tables, view
from clipq.evaluate.report.html import render_html
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.samples import grouped
from clipq.evaluate.statistics.bootstrap import compare
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.verdict import judge

SCHEMA = json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text())


def _tree(**p_values):
    return {engine: {"d": {"acc1": {"p_value": value}}} for engine, value in p_values.items()}


def test_a_family_is_one_metric_on_one_data_set():
    """0.01, 0.04, 0.03 become 0.03, 0.06, 0.06 as in Holm by hand; the baseline has none; another metric is another family."""
    part = _tree(base=None, a=0.01, b=0.04, c=0.03)
    part["a"]["d"]["ece15"] = {"p_value": 0.04}
    part["b"]["other"] = {"acc1": {"p_value": 0.02}}
    add_holm(part)
    corrected = {engine: entry["d"]["acc1"]["p_value_holm"] for engine, entry in part.items()}
    assert corrected == pytest.approx({"base": None, "a": 0.03, "b": 0.06, "c": 0.06})
    assert part["a"]["d"]["ece15"]["p_value_holm"] == 0.04
    assert part["b"]["other"]["acc1"]["p_value_holm"] == 0.02


def test_ood_families_are_scores_too():
    """One metric of one score on one pair: other scores of the same engine are not in the family."""
    part = {
        engine: {"i|o": {"mcm": {"auroc": {"p_value": p}}, "msp": {"auroc": {"p_value": 0.5}}}}
        for engine, p in {"a": 0.02, "b": 0.03}.items()
    }
    add_holm(part)
    assert [part[engine]["i|o"]["mcm"]["auroc"]["p_value_holm"] for engine in ("a", "b")] == pytest.approx([0.04, 0.04])
    assert part["a"]["i|o"]["msp"]["auroc"]["p_value_holm"] == 1.0


def test_no_engine_needs_no_correction():
    """Empty parts, and one engine alone, keep what they have."""
    add_holm({})
    part = _tree(a=0.04)
    add_holm(part)
    assert part["a"]["d"]["acc1"]["p_value_holm"] == 0.04


def test_the_family_keeps_its_error_rate():
    """Eight engines without any difference, 500 reports: a "better" or "worse" among them in about 5 % of the reports, not in 34 %."""
    rng = np.random.default_rng(0)
    false, raw = 0, 0
    for _ in range(500):
        part = _tree(**{f"e{index}": value for index, value in enumerate(rng.random(8))})
        add_holm(part)
        entries = [tree["d"]["acc1"] for tree in part.values()]
        false += min(entry["p_value_holm"] for entry in entries) < 0.05
        raw += min(entry["p_value"] for entry in entries) < 0.05
    assert false / 500 <= 0.08
    assert raw / 500 > 0.25


ENTRY = {"value": 0.69, "ci95": [0.68, 0.7], "n": 900, "delta": -0.01, "delta_ci95": [-0.02, -0.005], "p_value": 0.02}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"p_value_holm": 0.04}, "worse"),
        ({"p_value_holm": 0.06}, "within noise"),
        ({"p_value_holm": 0.06, "minimum_detectable": 0.0213}, "within noise (2.13 pp would show)"),
        ({"p_value_holm": 0.04, "minimum_detectable": 0.0213}, "worse"),
        ({"p_value_holm": 1.0, "delta": 0.0, "delta_ci95": [0.0, 0.0], "minimum_detectable": 0.003}, "equal (0.30 pp would show)"),
        ({"p_value_holm": 1.0, "delta": 0.0, "delta_ci95": [0.0, 0.0], "minimum_detectable": None}, "equal"),
    ],
)
def test_words_use_the_corrected_p_value(more, word):
    """A difference is worse only when it survives the correction; "equal" and "within noise" name what would have shown."""
    assert tables.measured_cell(ENTRY | more, names.METRICS["acc1"]).word == word


def _report():
    """The example with estimates of the real statistics for two engines on its ID data, and one auroc entry."""
    report, samples = make_example()
    report = json.loads(json.dumps(report))
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((500, 20)), rng.integers(0, 20, 500)
    logits[np.arange(500), labels] += 2
    first = resample_classification(outcomes_from_logits(logits, labels), resamples=100)
    for engine, noise in {"torch-fp32": 0.0, "ort-fp32": 0.05, "ort-int8-static": 0.05, "ort-int8-dynamic": 2.0}.items():
        own = outcomes_from_logits(logits + noise * rng.standard_normal(logits.shape), labels)
        estimates = compare(None if engine == "torch-fp32" else first, resample_classification(own, resamples=100))
        report["results"][engine][ID] = measurements(estimates)
    add_holm(report["results"])
    add_holm(report["ood"])
    report["gates"], report["verdict"] = judge(report)
    return report, samples


def test_a_whole_report_says_it():
    """Schema, page and Markdown: the corrected p-value, the test, the interval's kind and the smallest difference that would show."""
    report, samples = _report()
    jsonschema.validate(report, SCHEMA)
    entry = report["results"]["ort-int8-dynamic"][ID]
    assert (entry["acc1"]["test"], entry["ece15"]["test"]) == ("mcnemar", "bootstrap")
    assert (entry["nll"]["delta_interval"], entry["ece15"]["delta_interval"]) == ("bca", "percentile")
    assert entry["acc1"]["p_value"] <= entry["acc1"]["p_value_holm"] <= 3 * entry["acc1"]["p_value"]
    assert all(report["results"]["ort-fp32"][ID][metric]["minimum_detectable"] > 0 for metric in ("acc1", "ece15"))
    assert report["results"]["torch-fp32"][ID]["acc1"]["p_value_holm"] is None
    for text in (render_html(report, samples), render_markdown(report)):
        assert "pp would show)" in text
        assert "corrected (Holm) over all engines that were compared" in text
        assert "DeLong for AUROC" in text
    assert "worse" in render_markdown(report)
    broken = json.loads(json.dumps(report))
    broken["results"]["ort-fp32"][ID]["acc1"]["test"] = "t"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_an_ece_near_chance_is_said():
    """A baseline whose ECE is hardly above chance carries the warning; one far above does not."""
    report, samples = make_example()
    report = json.loads(json.dumps(report))
    rows = grouped(samples)
    chance = ece_by_chance(rows["torch-fp32", ID, ID]["confidence"])
    for times, warned in ((1.5, True), (5.0, False)):
        report["results"]["torch-fp32"][ID]["ece15"]["value"] = times * chance
        assert ("close to chance" in view.sample_notes(report, rows)[0]) == warned
    assert OOD[0] not in view.sample_notes(report, rows)[0]
