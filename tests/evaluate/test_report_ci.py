"""What CI reads: JUnit XML in the form its schemas share, and the Markdown summary."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from report_example import ID, make_example

from clipq.evaluate.report.junit import render_junit
from clipq.evaluate.report.summary import render_summary
from clipq.evaluate.verdict import judge

# What the JUnit schema of Ant (the stricter of the two in use) asks for: attributes with the pattern of their type, children in order.
NAME, COUNT, SECONDS = r"\S(.*\S)?", r"\d+", r"\d+(\.\d+)?"
ATTRIBUTES = {
    "testsuites": {},
    "testsuite": {
        "name": NAME, "package": NAME, "id": COUNT, "hostname": NAME, "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d",
        "tests": COUNT, "failures": COUNT, "errors": COUNT, "skipped": COUNT, "time": SECONDS,
    },
    "properties": {},
    "property": {"name": NAME, "value": ".*"},
    "testcase": {"name": NAME, "classname": NAME, "time": SECONDS},
    "failure": {"message": ".*", "type": NAME},
    "skipped": {"message": ".*"},
    "system-out": {},
    "system-err": {},
}  # fmt: skip
CHILDREN = {
    "testsuites": r"(testsuite )*",
    "testsuite": r"properties (testcase )*system-out system-err ",
    "properties": r"(property )*",
    "testcase": r"((failure|skipped) )?",
}


def check(element):
    """Hold an element and what is in it against the schema."""
    patterns = ATTRIBUTES[element.tag]
    assert set(element.attrib) == set(patterns)
    for name, pattern in patterns.items():
        assert re.fullmatch(pattern, element.get(name)), (element.tag, name, element.get(name))
    assert re.fullmatch(CHILDREN.get(element.tag, ""), "".join(f"{child.tag} " for child in element))
    for child in element:
        check(child)


@pytest.fixture(scope="module")
def judged():
    """The example report with default gates: engines that ship and one that does not."""
    report, _ = make_example(n=600, resamples=60)
    gates, verdict = judge(report, ["acc1.delta_pp<-1.0", "ece15:max-degradation=0.01", "image-b1.p50_s:threshold=10"])
    return {**report, "gates": gates, "verdict": verdict}


@pytest.mark.parametrize("require_proof", [False, True])
def test_junit_follows_the_schema_and_says_what_the_gates_say(judged, require_proof):
    """One suite per engine, one case per gate and data set, counts that add up, unproven skipped or failed."""
    root = ET.fromstring(render_junit(judged, require_proof=require_proof))
    check(root)
    assert [suite.get("name") for suite in root] == list(judged["verdict"])
    assert [suite.get("id") for suite in root] == [str(number) for number in range(len(root))]
    outcomes = {gate["outcome"] for gate in judged["gates"]}
    assert outcomes == {"pass", "fail", "unproven"}
    for suite in root:
        own = [gate for gate in judged["gates"] if gate["engine"] == suite.get("name")]
        bad = {"fail", "unproven"} if require_proof else {"fail"}
        expected = {
            "tests": len(own),
            "failures": sum(gate["outcome"] in bad for gate in own),
            "skipped": 0 if require_proof else sum(gate["outcome"] == "unproven" for gate in own),
        }
        assert {name: int(suite.get(name)) for name in expected} == expected
        assert len(suite.findall(".//failure")) == expected["failures"]
        assert len(suite.findall(".//skipped")) == expected["skipped"]
        assert [case.get("name") for case in suite.iter("testcase")] == [
            gate["rule"] + (f" on {gate['data']}" if gate["data"] else "") for gate in own
        ]
        assert len({case.get("name") for case in suite.iter("testcase")}) == len(own)
        assert [failure.get("message") for failure in suite.iter("failure")] == [gate["why"] for gate in own if gate["outcome"] in bad]
        (verdict,) = [item.get("value") for item in suite.iter("property") if item.get("name") == "verdict"]
        assert verdict == judged["verdict"][suite.get("name")]["outcome"]


def hostile(*rules):
    """A judged report whose data id has everything that XML and Markdown would trip over."""
    data = 'wds:/<data>&"x"\n|y\x00\x1b[31m\udcff'
    entry = {"value": 0.5, "ci95": [0.4, 0.6], "n": 100, "delta": -0.1, "delta_ci95": [-0.2, -0.05], "p_value": 0.01}
    empty = {"ood": {}, "paired": {}, "bench": {}, "datasets": {data: {"n": 100}}}
    report = {"baseline": "a|<b>", "engines": {"int8": {"size_bytes": 1}}, "results": {"int8": {data: {"acc1": entry}}}, **empty}
    gates, verdict = judge(report, rules or ["acc1.delta<-0.01"])
    return {**report, "gates": gates, "verdict": verdict}


def test_junit_is_escaped():
    """Markup, quotes, control characters and undecodable bytes of a name leave valid XML with one-line messages."""
    text = render_junit(hostile(), require_proof=False)
    root = ET.fromstring(text)
    check(root)
    (failure,) = root.iter("failure")
    assert '<data>&"x" |y\ufffd\ufffd[31m\ufffd' in failure.get("message")
    assert "\n" not in failure.get("message")
    assert b"<data>" not in text


def test_summary_tells_verdicts_and_worst_differences(judged):
    """A heading with the answer, a row per engine with its verdict and worst differences, and what did not pass."""
    text = render_summary(judged)
    lines = text.splitlines()
    assert lines[0].startswith("### clipq: ")
    rows = [line for line in lines if line.startswith("| ort-")]
    assert len(rows) == len(judged["verdict"])
    assert len({line.replace("\\|", "").count("|") for line in lines if line.startswith("|")}) == 1
    worst = min(metrics["acc1"]["delta"] for metrics in judged["results"]["ort-int8-dynamic"].values())
    (row,) = [line for line in rows if line.startswith("| ort-int8-dynamic ")]
    assert f"−{abs(worst) * 100:.2f} pp [" in row
    assert "**do not ship**" in row
    failed = [line for line in lines if line.startswith("- **ort-int8-dynamic**, fail: ")]
    assert 1 <= len(failed) <= 3
    assert any(ID in line and "(acc1.delta_pp&lt;-1.0)" in line for line in failed)
    more = sum(gate["outcome"] != "pass" for gate in judged["gates"] if gate["engine"] == "ort-int8-dynamic") - 3
    assert (f"- **ort-int8-dynamic**: {more} more did not pass" in text) == (more > 0)
    assert len(text) < 5000


def test_summary_is_escaped_and_needs_no_provenance():
    """Names cannot break the table or bring HTML, and a comparison is summed up as a report is."""
    text = render_summary(hostile())
    assert text.startswith("### clipq: No engine may ship.\n")
    assert "Differences to a\\|&lt;b> with" in text
    assert "<data>" not in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        line for line in text.splitlines() if line.startswith("- **int8**, fail: ")
    ]


def test_summary_tells_failures_first():
    """What failed stands before what is unproven, whatever the order of the rules."""
    lines = [line for line in render_summary(hostile("acc1.delta<-0.15", "acc1.delta<-0.01")).splitlines() if line.startswith("- ")]
    assert [line.split(":")[0] for line in lines] == ["- **int8**, fail", "- **int8**, unproven"]


def test_summary_of_nothing_judged(judged):
    """A report of the baseline alone has no table and says so."""
    assert render_summary({**judged, "gates": [], "verdict": {}}) == "### clipq: No engine was judged.\n"
