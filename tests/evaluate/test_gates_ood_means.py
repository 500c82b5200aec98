"""Gates on the mean over near, far or all OOD sets."""

from __future__ import annotations

from typing import Any

import pytest

from clipq.errors import UsageError
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.verdict import judge


def _entry(value: float, delta: float) -> dict[str, Any]:
    ends = [[middle - 0.001, middle + 0.001] for middle in (value, delta)]
    return {"value": value, "ci95": ends[0], "n": 5000, "delta": delta, "delta_ci95": ends[1], "p_value": 0.01}


def _report() -> dict[str, Any]:
    """A report whose near sets lose two percent points of AUROC and whose far ones lose nothing."""
    pairs = {"a|b": {"mcm": {"auroc": _entry(0.8, -0.02)}}, "a|c": {"mcm": {"auroc": _entry(0.9, 0.0)}}}
    means = {"near": pairs["a|b"], "far": pairs["a|c"], "all": {"mcm": {"auroc": _entry(0.85, -0.01)}}}
    return {
        "baseline": "base",
        "engines": {"base": {"size_bytes": 1}, "int8": {"size_bytes": 1}},
        "datasets": {},
        "results": {},
        "ood": {"int8": pairs},
        "ood_means": {"int8": {"a": means}},
        "paired": {},
        "bench": {},
    }


@pytest.mark.parametrize(
    ("rule", "outcome", "value"),
    [
        ("near.mcm.auroc.delta<-0.01", "fail", -0.02),
        ("far.mcm.auroc.delta<-0.01", "pass", 0.0),
        ("all.auroc.delta<-0.015", "pass", -0.01),
        ("int8:near.auroc:max-degradation=0.03", "pass", -0.02),
        ("near.mcm.auroc:non-inferior=0.01", "fail", -0.02),
        ("all.mcm.auroc:threshold=0.9", "fail", 0.85),
    ],
)
def test_a_gate_reads_the_mean_it_names(rule: str, outcome: str, value: float) -> None:
    """One reading, of the sets that are named, and neither of a pair nor of other sets."""
    (gate,), _ = judge(_report(), [rule])
    assert gate["outcome"] == outcome
    assert gate["value"] == pytest.approx(value)
    assert gate["data"] == f"a|{rule.removeprefix('int8:').split('.')[0]} mcm"


def test_a_rule_without_sets_reads_pairs_alone() -> None:
    """What stood before means were there reads what it read."""
    gates, _ = judge(_report(), ["mcm.auroc.delta<-0.01"])
    assert [gate["data"] for gate in gates] == ["a|b mcm", "a|c mcm"]
    assert parse_gate("mcm.auroc.delta<-0.01").sets is None


def test_means_that_are_not_there_fail() -> None:
    """A gate on near sets fails where no set was named near: nobody measured what was asked."""
    report = _report()
    del report["ood_means"]["int8"]["a"]["near"]
    (gate,), _ = judge(report, ["near.mcm.auroc.delta<-0.01"])
    assert gate["outcome"] == "fail"
    assert gate["value"] is None


@pytest.mark.parametrize(
    "rule", ["near.acc1.delta<-0.01", "far.image-b1.p99_s>1", "near.disagreement:threshold=0.1", "near<1", "near.x.auroc.delta<0"]
)
def test_only_ood_metrics_have_means_over_sets(rule: str) -> None:
    """Accuracy near or far, a group alone, or a score that is none: one line that says what is expected."""
    with pytest.raises(UsageError):
        parse_gate(rule)
