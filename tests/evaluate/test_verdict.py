"""Gates and verdicts: what fails, what passes, what the sample cannot show."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import ID, make_example
from scipy.stats import binomtest

from clipq.errors import UsageError
from clipq.evaluate.gates.judging import images_needed, judge_reading
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.gates.presets import PRESETS
from clipq.evaluate.gates.readings import Reading
from clipq.evaluate.statistics.small_samples import wilson_interval
from clipq.evaluate.verdict import judge


def entry(delta, low, high, n=10_000, value=0.7):
    """A measurement with a delta."""
    return {"value": value, "ci95": [value - 0.01, value + 0.01], "n": n, "delta": delta, "delta_ci95": [low, high], "p_value": 0.5}


def tiny(engines, **parts):
    """A report with the given engines (the first is the baseline) and nothing measured but ``parts``."""
    empty = {"results": {}, "ood": {}, "paired": {}, "bench": {}, "datasets": {"d": {"n": 1000}}}
    return {"baseline": engines[0], "engines": {engine: {"size_bytes": 100} for engine in engines}, **empty, **parts}


def one(delta, low, high, n=10_000):
    """A report with one engine and one accuracy."""
    return tiny(["base", "int8"], results={"base": {}, "int8": {"d": {"acc1": entry(delta, low, high, n)}}})


@pytest.mark.parametrize(
    ("text", "engine", "score", "metric", "field", "limit"),
    [
        ("acc1.delta<-0.01", None, None, "acc1", "delta", -0.01),
        ("ort-int8-static: acc1.delta_pp <= -1.0", "ort-int8-static", None, "acc1", "delta_pp", -1.0),
        ("mcm.auroc.delta<-1e-2", None, "mcm", "auroc", "delta", -0.01),
        ("disagreement.value>0.05", None, None, "disagreement", "value", 0.05),
        ("image-b32.p99_s>.2", None, None, "image-b32", "p99_s", 0.2),
        ("image-b8-device.p50_s>.1", None, None, "image-b8-device", "p50_s", 0.1),
        ("artefact.size_bytes>=1000000", None, None, "artefact", "size_bytes", 1e6),
    ],
)
def test_rules_are_read(text, engine, score, metric, field, limit):
    """Each form of the gate language is understood."""
    gate = parse_gate(text)
    assert (gate.engine, gate.score, gate.metric, gate.field, gate.limit) == (engine, score, metric, field, limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acc1.delta", "cannot read the gate 'acc1.delta'"),
        ("acc1<0.5", "cannot read the gate"),
        ("acc1.delta<-1%", "cannot read the gate"),
        ("ac1.delta<0", "Did you mean 'acc1'?"),
        ("acc1.detla<0", "Did you mean 'delta'?"),
        ("mmc.auroc.delta<0", "Did you mean 'mcm'?"),
        ("mcm.acc1.delta<0", "unknown OOD metric"),
        ("nll.delta_pp>1", "nll is no fraction"),
        ("disagreement.delta>0", "unknown field of disagreement"),
        ("image-b1.size_bytes>1", "unknown field of image-b1"),
        ("a.b.c.delta<1", "cannot read the gate"),
    ],
)
def test_unreadable_rules_are_usage_errors(text, message):
    """A wrong rule is exit code 2 with the nearest name."""
    with pytest.raises(UsageError, match=message.replace("?", r"\?").replace(".", r"\.")):
        parse_gate(text)


@pytest.mark.parametrize(
    ("delta", "low", "high", "outcome", "verdict", "ship"),
    [
        (-0.002, -0.005, 0.001, "pass", "ship", True),
        (-0.002, -0.015, 0.011, "unproven", "not shown", False),
        (-0.011, -0.015, -0.002, "fail", "do not ship", False),
        (-0.030, -0.040, -0.020, "fail", "do not ship", False),
    ],
)
def test_three_outcomes(delta, low, high, outcome, verdict, ship):
    """The estimate fails a gate; an interval that reaches the limit leaves it unproven; else it passes."""
    gates, verdicts = judge(one(delta, low, high), ["acc1.delta_pp<-1.0"])
    assert [gate["outcome"] for gate in gates] == [outcome]
    assert (verdicts["int8"]["outcome"], verdicts["int8"]["ship"]) == (verdict, ship)


def test_units_follow_the_rule():
    """``delta_pp`` reports percent points, ``delta`` fractions, and both judge alike."""
    points, _ = judge(one(-0.02, -0.03, -0.01), ["acc1.delta_pp<-1.0"])
    fractions, _ = judge(one(-0.02, -0.03, -0.01), ["acc1.delta<-0.01"])
    assert points[0]["value"] == pytest.approx(-2.0)
    assert fractions[0]["ci95"] == pytest.approx([-0.03, -0.01])
    assert points[0]["outcome"] == fractions[0]["outcome"] == "fail"


def test_ten_equal_images_show_nothing():
    """A bootstrap interval of zero width on ten images is widened by the rule of three, so nothing is claimed."""
    gates, verdicts = judge(one(0.0, 0.0, 0.0, n=10), ["acc1.delta_pp<-1.0"])
    assert gates[0]["outcome"] == "unproven"
    assert gates[0]["ci95"] == pytest.approx([-30.0, 30.0])
    assert gates[0]["n_needed"] == 300
    assert "no loss" not in " ".join(verdicts["int8"]["why"])
    assert judge(one(0.0, 0.0, 0.0, n=301), ["acc1.delta_pp<-1.0"])[0][0]["outcome"] == "pass"


@given(st.floats(-0.009, 0.05), st.floats(0.001, 0.1), st.integers(50, 100_000))
def test_the_advised_number_of_images_would_do(delta, half, n):
    """With the advised n, intervals shrunk by the square root of n pass; with half of it they do not."""
    gate = parse_gate("acc1.delta<-0.01")
    reading = Reading("e", "d", "", delta, (delta - max(half, 3 / n), delta + half), n)
    needed = images_needed(gate, reading)
    if judge_reading(gate, reading)["outcome"] == "unproven" and needed is not None:
        shrunk = max(half, 3 / n) * (n / needed) ** 0.5 if half > 3 / n else 3 / needed
        assert delta - shrunk >= -0.01 - 1e-9
        assert needed >= n * 0.99


def test_asked_but_not_measured_fails():
    """A gate somebody asked for cannot pass unseen; the default gates leave out what was not measured."""
    gates, verdicts = judge(one(0.0, -0.001, 0.001), ["mcm.auroc.delta<-0.01"])
    assert [gate["outcome"] for gate in gates] == ["fail"]
    assert "not measured" in verdicts["int8"]["why"][0]
    gates, verdicts = judge(one(0.0, -0.001, 0.001))
    assert [gate["rule"] for gate in gates] == ["acc1.delta_pp<-1.0"]
    assert verdicts["int8"]["ship"] is True


def test_undefined_value_shows_nothing():
    """A metric that is null shows nothing."""
    report = one(0.0, 0.0, 0.0)
    report["results"]["int8"]["d"]["acc1"] |= {"value": None, "delta": None, "delta_ci95": None}
    assert judge(report, ["acc1.delta<-0.01"])[0][0]["outcome"] == "fail"


def test_measured_without_interval_is_unproven():
    """A delta whose interval is unknown shows nothing."""
    report = one(0.0, 0.0, 0.0)
    report["results"]["int8"]["d"]["acc1"]["delta_ci95"] = None
    assert judge(report, ["acc1.delta<-0.01"])[0][0]["outcome"] == "unproven"


def test_engine_prefix_limits_the_rule():
    """A rule with an engine judges only that one, and an unknown engine is a usage error."""
    results = {engine: {"d": {"acc1": entry(-0.02, -0.03, -0.01)}} for engine in ("a", "b")}
    report = tiny(["base", "a", "b"], results=results)
    gates, verdicts = judge(report, ["a:acc1.delta<-0.01"])
    assert [gate["engine"] for gate in gates] == ["a"]
    assert verdicts["b"]["outcome"] == "not shown"
    assert verdicts["b"]["ship"] is False
    with pytest.raises(UsageError, match="unknown engine in a gate 'c'"):
        judge(report, ["c:acc1.delta<-0.01"])


def test_paired_fractions_get_wilson_intervals():
    """Disagreement is judged with Wilson's interval, which scipy confirms."""
    report = tiny(["base", "int8"], paired={"int8": {"d": {"disagreement": 0.04, "cosine_mean": 0.99}}})
    gates, _ = judge(report, ["disagreement.value>0.05", "cosine_mean.value<0.98"])
    expected = binomtest(40, 1000).proportion_ci(method="wilson")
    assert gates[0]["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-6)
    assert [gate["outcome"] for gate in gates] == ["unproven", "pass"]
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_speed_is_judged_by_its_number():
    """A latency gate reads the scenario."""
    report = tiny(["base", "int8"], bench={"int8": {"image-b1": {"p99_s": 0.06, "n": 200}}})
    gates, _ = judge(report, ["image-b1.p99_s>0.05"])
    assert (gates[0]["outcome"], gates[0]["value"], gates[0]["ci95"]) == ("fail", 0.06, None)


def test_ood_rule_without_score_concerns_every_score():
    """``auroc`` alone judges all scores, ``mcm.auroc`` one."""
    scores = {score: {"auroc": entry(0.0, -0.001, 0.001)} for score in ("mcm", "energy_logit")}
    report = tiny(["base", "int8"], ood={"int8": {"d|far": scores}})
    assert [gate["data"] for gate in judge(report, ["auroc.delta<-0.01"])[0]] == ["d|far mcm", "d|far energy_logit"]
    assert [gate["data"] for gate in judge(report, ["mcm.auroc.delta<-0.01"])[0]] == ["d|far mcm"]


def bench(b1, b32, size):
    """Latencies and size of one engine."""
    return {"image-b1": {"p50_s": b1}, "image-b32": {"p50_s": b32}, "artefact": {"size_bytes": size}}


def test_dominated_engine_is_named():
    """An engine that another beats in speed and size at equal accuracy is dominated; one that is smaller is not."""
    results = {engine: {"d": {"acc1": entry(-0.001, -0.004, 0.002, value=0.70)}} for engine in ("fp16", "int8", "int4")}
    results["base"] = {"d": {"acc1": {**entry(0, 0, 0), "delta": None, "delta_ci95": None, "value": 0.701}}}
    speeds = {
        "base": bench(0.01, 0.2, 400),
        "fp16": bench(0.002, 0.03, 100),
        "int8": bench(0.004, 0.05, 100),
        "int4": bench(0.004, 0.05, 50),
    }
    report = tiny(["base", "fp16", "int8", "int4"], results=results, bench=speeds)
    _, verdicts = judge(report, ["acc1.delta<-0.01"])
    assert {engine: verdict["dominated_by"] for engine, verdict in verdicts.items()} == {"fp16": None, "int8": "fp16", "int4": None}
    assert "dominated by fp16" in verdicts["int8"]["why"][-1]


def test_failed_engine_dominates_nobody():
    """A faster engine that fails a gate is no alternative."""
    results = {
        "fast": {"d": {"acc1": entry(-0.02, -0.05, 0.01, value=0.69)}},
        "slow": {"d": {"acc1": entry(0.0, -0.005, 0.005, value=0.71)}},
    }
    report = tiny(["base", "fast", "slow"], results=results, bench={"fast": bench(0.001, 0.01, 10), "slow": bench(0.01, 0.1, 100)})
    _, verdicts = judge(report, ["acc1.delta<-0.01"])
    assert verdicts["slow"]["dominated_by"] is None


def test_judging_changes_nothing_and_uses_default_gates():
    """The report is left as it was; without rules the three default gates apply to every engine."""
    report, _ = make_example()
    before = copy.deepcopy(report)
    gates, verdicts = judge(report)
    assert report == before
    assert {gate["rule"] for gate in gates} == set(PRESETS["default"])
    assert set(verdicts) == set(report["engines"]) - {report["baseline"]}
    assert verdicts["ort-fp32"]["outcome"] == "ship"
    assert verdicts["ort-int8-dynamic"]["outcome"] == "do not ship"
    assert any(ID in why for why in verdicts["ort-int8-dynamic"]["why"])
