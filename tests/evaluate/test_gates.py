"""Goals, presets and their judgement, against a slow reference that follows the definitions word by word."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clipq.errors import UsageError
from clipq.evaluate.gates.goals import GOALS
from clipq.evaluate.gates.judging import judge_reading
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.gates.presets import PRESETS, check_baseline, describe_gates, read_gates
from clipq.evaluate.gates.readings import readings
from clipq.evaluate.report.names import METRICS
from clipq.evaluate.verdict import judge

RANK = {"pass": 0, "unproven": 1, "fail": 2}


def report_of(metric="acc1", baseline=0.8, delta=-0.004, half=0.002, n=100_000, data="d"):
    """A report with one engine and one metric; the interval is symmetric."""
    value = baseline + delta
    ends, wide = [delta - half, delta + half], [value - half, value + half]
    entry = {"value": value, "ci95": wide, "n": n, "delta": delta, "delta_ci95": ends, "p_value": 0.5}
    empty = {"ood": {}, "paired": {}, "bench": {}, "datasets": {data: {"n": n}}}
    engines = {"base": {"size_bytes": 1}, "int8": {"size_bytes": 1}}
    return {"baseline": "base", "engines": engines, "results": {"base": {}, "int8": {data: {metric: entry}}}, **empty}


def outcome(rule, **facts):
    """The outcome of one rule for one engine and metric."""
    (gate,), _ = judge(report_of(**facts), [rule])
    return gate["outcome"]


@pytest.mark.parametrize(
    ("text", "field", "op", "limit"),
    [
        ("acc1:threshold=0.6", "value", "<", 0.6),
        ("ece15:threshold=0.05", "value", ">", 0.05),
        ("acc1:max-degradation=0.01", "delta", "<", -0.01),
        ("ece15 : max-degradation = 1e-2", "delta", ">", 0.01),
        ("acc1:percent-max-degradation=1", "delta_percent", "<", -1.0),
        ("nll:percent-max-degradation=150", "delta_percent", ">", 150.0),
        ("int8:acc1:min-improvement=0.01", "delta", "<", 0.01),
        ("ece15:min-improvement=0.01", "delta", ">", -0.01),
        ("ece15:percent-min-improvement=10", "delta_percent", ">", -10.0),
        ("mcm.fpr95_id_pos:max-degradation=0.02", "delta", ">", 0.02),
        ("auroc:non-inferior=0.01", "delta", "<", -0.01),
        ("disagreement:threshold=0.05", "value", ">", 0.05),
        ("image-b1.p99_s:threshold=0.05", "p99_s", ">", 0.05),
        ("image-b1.p50_s:percent-min-improvement=30", "p50_s.delta_percent", ">", -30.0),
        ("image-b32.images_per_s:percent-max-degradation=5", "images_per_s.delta_percent", "<", -5.0),
        ("acc1.delta_percent<-1", "delta_percent", "<", -1.0),
        ("artefact.size_bytes.delta>0", "size_bytes.delta", ">", 0.0),
    ],
)
def test_goals_are_comparisons(text, field, op, limit):
    """Each goal is a comparison whose direction follows from which way the metric is better."""
    gate = parse_gate(text)
    assert (gate.field, gate.op, gate.limit, gate.whole) == (field, op, limit, "non-inferior" in text)
    assert (gate.engine, gate.rule) == ("int8" if "int8" in text else None, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acc1:max-degradtion=0.01", "Did you mean 'max-degradation'"),
        ("ac1:max-degradation=0.01", "Did you mean 'acc1'"),
        ("mmc.auroc:max-degradation=0.01", "Did you mean 'mcm'"),
        ("acc1:max-degradation", "cannot read the gate"),
        ("acc1:max-degradation=1%", "cannot read the gate"),
        ("acc1.delta:max-degradation=0.01", "unknown OOD score in a gate 'acc1'"),
        ("energy.auroc:max-degradation=0.01", "expected energy_logit.auroc or energy_cos.auroc"),
        ("image-b1:max-degradation=0.01", "cannot read the gate"),
        ("image-b1.size_bytes:threshold=1", "unknown field of image-b1"),
        ("acc1:max-degradation=1", "acc1 is a fraction in [0, 1]"),
        ("acc1:threshold=70", "acc1 is a fraction in [0, 1]"),
        ("acc1:max-degradation=-0.01", "is a distance"),
        ("acc1:percent-max-degradation=100", "expected below 100"),
        ("ece15:percent-min-improvement=100", "expected below 100"),
        ("signed_gap:max-degradation=0.01", "signed_gap is not better one way"),
        ("temperature:threshold=1", "temperature is not better one way"),
        ("signed_gap.delta_percent>1", "has no percentage"),
        ("disagreement:max-degradation=0.01", "expected threshold"),
        ("image-b1.p50_s:non-inferior=0.01", "has no interval"),
        ("acc1.delta<-1e999", "is not finite"),
    ],
)
def test_goals_that_mean_nothing_are_usage_errors(text, message):
    """Slips of name, unit and sign are exit code 2 in one line, never a gate that silently cannot fail."""
    with pytest.raises(UsageError) as error:
        parse_gate(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def reference(goal, better, number, baseline, delta, half, n, unit):
    """Judge as the words say: resolve the goal to a target for the engine's value, then hold value and interval against it."""
    sign = 1 if better == "high" else -1
    target = {
        "threshold": number,
        "max-degradation": baseline - sign * number,
        "non-inferior": baseline - sign * number,
        "min-improvement": baseline + sign * number,
        "percent-max-degradation": baseline * (1 - sign * number / 100),
        "percent-min-improvement": baseline * (1 + sign * number / 100),
    }[goal]
    if unit == "fraction":
        half = max(half, 3 / n)
    value = baseline + delta
    good = [(point - target) * sign >= 0 for point in (value, value - half, value + half)]
    assume(all(abs(point - target) > 1e-7 for point in (value, value - half, value + half)))
    if not good[0]:
        return "fail"
    if all(good):
        return "pass"
    return "fail" if goal == "non-inferior" else "unproven"


@given(
    goal=st.sampled_from(sorted(GOALS)),
    metric=st.sampled_from(["acc1", "aurc", "ece15", "nll", "mean_per_class_recall"]),
    number=st.floats(0, 0.3),
    baseline=st.floats(0.3, 0.7),
    delta=st.floats(-0.2, 0.2),
    half=st.floats(0, 0.1),
    n=st.integers(20, 100_000),
)
def test_judgement_is_that_of_the_definitions(goal, metric, number, baseline, delta, half, n):
    """Every goal and direction agrees with a reference that resolves it to a target value."""
    number = round(number * (100 if goal.startswith("percent") else 1), 6)
    kind = METRICS[metric]
    expected = reference(goal, kind.better, number, baseline, delta, half, n, kind.unit)
    found = outcome(f"{metric}:{goal}={number}", metric=metric, baseline=baseline, delta=delta, half=half, n=n)
    assert found == expected


@given(
    goal=st.sampled_from(sorted(GOALS)),
    metric=st.sampled_from(["acc1", "ece15", "nll"]),
    number=st.floats(0, 0.2),
    deltas=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
    half=st.floats(0, 0.1),
)
def test_outcomes_are_monotone(goal, metric, number, deltas, half):
    """A worse value of the same precision never has a better outcome, and a weaker goal never a worse one."""
    number = round(number * (100 if goal.startswith("percent") else 1), 6)
    better, worse = sorted(deltas, reverse=METRICS[metric].better == "high")
    facts = {"metric": metric, "baseline": 0.5, "half": half, "n": 1000}
    rule = f"{metric}:{goal}={number}"
    assert RANK[outcome(rule, delta=worse, **facts)] >= RANK[outcome(rule, delta=better, **facts)]
    if goal.endswith("max-degradation"):
        weaker = f"{metric}:{goal}={number + 0.05}"
        assert RANK[outcome(weaker, delta=worse, **facts)] <= RANK[outcome(rule, delta=worse, **facts)]


@pytest.mark.parametrize(
    ("engine", "expected"), [(0.80, "pass"), (0.7925, "pass"), (0.7921, "unproven"), (0.792, "unproven"), (0.7919, "fail"), (0.70, "fail")]
)
def test_mlperf_keeps_99_per_cent_of_the_baseline(engine, expected):
    """99 % of 0.8 is 0.792: that itself has kept it, whatever the rounding, but an interval of 0.0002 around it has not shown it."""
    _, verdicts = judge(report_of(delta=engine - 0.8, half=0.0002), (), ["mlperf-99"])
    (gate,), _ = judge(report_of(delta=engine - 0.8, half=0.0002), (), ["mlperf-99"])
    assert (gate["outcome"], gate["preset"]) == (expected, "mlperf-99")
    assert gate["value"] == pytest.approx((engine - 0.8) / 0.8 * 100)
    assert gate["ci95"] == pytest.approx([(engine - 0.8002) / 0.8 * 100, (engine - 0.7998) / 0.8 * 100])
    assert verdicts["int8"]["ship"] is (expected == "pass")


def test_mlperf_99_9_is_ten_times_as_strict():
    """A loss of 0.4 points at 80 % is 0.5 % of it: within 1 %, beyond 0.1 %, and the sentence says of what."""
    gates, _ = judge(report_of(delta=-0.004), (), ["mlperf-99", "mlperf-99.9"])
    assert [gate["outcome"] for gate in gates] == ["pass", "fail"]
    assert gates[0]["why"] == "Top-1 accuracy −0.50 % [−0.75, −0.25] of the baseline's on d, n = 100,000: within the limit of −1.00 %"


def test_non_inferior_is_decided_by_the_interval():
    """The estimate may be on the good side: unless the whole interval is, the gate fails, and says how many images would do."""
    assert outcome("acc1:non-inferior=0.01", delta=-0.004, half=0.005) == "pass"
    (gate,), verdicts = judge(report_of(delta=-0.004, half=0.012, n=1000), ["acc1:non-inferior=0.01"])
    assert (gate["outcome"], gate["n_needed"]) == ("fail", 4000)
    assert "within the limit of −1.00 pp, but its interval is not, so nothing is shown; about 4,000 images would" in gate["why"]
    assert verdicts["int8"]["outcome"] == "do not ship"
    assert outcome("acc1:max-degradation=0.01", delta=-0.004, half=0.012, n=1000) == "unproven"
    assert outcome("acc1:non-inferior=0.01", delta=0.0, half=0.0, n=10) == "fail"


@pytest.mark.parametrize(("delta", "half", "expected"), [(-0.001, 0.008, 4000), (-0.004, 0.0, 3000)])
def test_images_needed_for_a_percentage(delta, half, expected):
    """The advice for 1 % of 0.5 is that for 0.005, by the interval (twice the distance: four times the images) or the rule of three."""
    facts = {"baseline": 0.5, "delta": delta, "half": half, "n": 1000}
    for rule in ("acc1:percent-max-degradation=1", "acc1:max-degradation=0.005"):
        (gate,), _ = judge(report_of(**facts), [rule])
        assert gate["n_needed"] == pytest.approx(expected, rel=0.04)  # rounded up to two digits


@pytest.mark.parametrize("goal", ["percent-max-degradation", "percent-min-improvement"])
@pytest.mark.parametrize(("delta", "outcome"), [(0.01, "fail"), (0.0, "unproven")])
def test_percentage_of_nothing_does_not_pass(goal, delta, outcome):
    """A baseline of zero has no percentage: one line that names gate, metric and data, and what to write instead; worse than zero fails."""
    (gate,), verdict = judge(report_of(metric="ece15", baseline=0.0, delta=delta), [f"ece15:{goal}=1"])
    assert (gate["outcome"], gate["value"], gate["ci95"]) == (outcome, None, None)
    assert "\n" not in gate["why"]
    assert f"ece15:{goal}=1: the baseline's ECE-15 on d is zero, of which there is no percentage" in gate["why"]
    assert "write max-degradation" in gate["why"]
    assert not any(entry["ship"] for entry in verdict.values())


def test_percentage_of_no_time_does_not_pass():
    """The same for speed: a baseline of zero seconds."""
    (gate,), _ = judge(bench({"base": 0.0, "int8": 0.1}), ["image-b1.p50_s:percent-max-degradation=10"])
    assert gate["outcome"] == "fail"
    assert "p50 (image-b1) is zero" in gate["why"]


@pytest.mark.parametrize("preset", ["mlperf-99", "mlperf-99.9"])
def test_a_share_of_the_reference_needs_a_reference(preset):
    """MLPerf's reference is FP32: beside another baseline its name would lie; other presets take any."""
    with pytest.raises(
        UsageError, match=rf"{preset} is about .* FP32 reference; found the baseline trt-fp16, fp16.*percent-max-degradation"
    ):
        check_baseline([preset], {"trt-fp16": "fp16"})
    check_baseline([preset], {"ort-fp32": "fp32"})
    check_baseline(["default", "non-inferior"], {"trt-fp16": "fp16"})


def bench(p50):
    """A report with latencies of the baseline and one engine."""
    report = report_of()
    scenarios = {engine: {"image-b1": {"p50_s": value, "n": 100}} for engine, value in p50.items()}
    return {**report, "bench": scenarios}


def test_speed_has_goals_against_the_baseline():
    """7 ms after 10 ms are 30 % faster, and 3 ms; a baseline without the scenario was not measured, so the gate fails."""
    rules = [f"image-b1.p50_s:{goal}" for goal in ("percent-min-improvement=30", "min-improvement=0.0031", "max-degradation=0")]
    gates, _ = judge(bench({"base": 0.010, "int8": 0.007}), rules)
    assert [gate["outcome"] for gate in gates] == ["pass", "fail", "pass"]
    assert gates[0]["value"] == pytest.approx(-30)
    missing, _ = judge(bench({"int8": 0.007}), rules[:1])
    assert missing[0]["outcome"] == "fail"
    assert "not measured (image-b1)" in missing[0]["why"]


def test_speed_of_a_comparison_is_that_of_its_first_side():
    """A comparison carries the first side's latencies under ``bench_first``."""
    report = {**bench({"int8": 0.012}), "baseline": "old/report.json", "bench_first": {"int8": {"image-b1": {"p50_s": 0.010}}}}
    gates, _ = judge(report, ["int8:image-b1.p50_s:percent-max-degradation=10"])
    assert (gates[0]["outcome"], gates[0]["value"]) == ("fail", pytest.approx(20))


def test_rules_and_presets_combine():
    """All apply, each rule once, and the record names both."""
    groups = read_gates(["acc1:percent-max-degradation=1", "nll.delta>1"], ["mlperf-99", "default", "default"])
    assert describe_gates(groups) == {
        "presets": ["default"],
        "rules": ["acc1:percent-max-degradation=1", "nll.delta>1", *PRESETS["default"]],
    }
    assert [group.required for group in groups] == [True, True, True]
    gates, verdicts = judge(report_of(delta=-0.02), ["acc1:threshold=0.5"], ["mlperf-99"])
    assert [(gate["rule"], gate["preset"], gate["outcome"]) for gate in gates] == [
        ("acc1:threshold=0.5", None, "pass"),
        ("acc1:percent-max-degradation=1", "mlperf-99", "fail"),
    ]
    assert verdicts["int8"]["outcome"] == "do not ship"


def test_without_any_the_default_gates_apply():
    """The default preset is what is judged when nothing is asked for, and then need not have been measured."""
    (group,) = read_gates()
    assert (group.preset, group.required) == ("default", False)
    assert judge(report_of(metric="nll"))[0] == []
    assert [gate["outcome"] for gate in judge(report_of(metric="nll"), (), ["default"])[0]] == ["fail"]


def test_a_preset_leaves_out_what_was_not_measured_but_not_everything():
    """Non-inferiority without OOD data is judged on the rest; with nothing measured at all it fails."""
    gates, _ = judge(report_of(), (), ["non-inferior"])
    assert [gate["rule"] for gate in gates] == ["acc1:non-inferior=0.01"]
    gates, _ = judge(report_of(metric="nll"), (), ["non-inferior"])
    assert [(gate["outcome"], gate["why"]) for gate in gates] == [("fail", "acc1:non-inferior=0.01: not measured, so it cannot pass")]


def test_unknown_preset_names_the_nearest():
    """A misspelt preset is exit code 2."""
    with pytest.raises(UsageError, match=r"unknown preset of gates 'mlperf99'.*Did you mean 'mlperf-99'"):
        read_gates((), ["mlperf99"])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_can_be_judged(name):
    """Every preset's rules are readable and concern quantities that a report has."""
    for rule in PRESETS[name]:
        gate = parse_gate(rule)
        found = [judge_reading(gate, reading) for reading in readings(gate, report_of())]
        assert len(found) == (gate.metric == "acc1")
