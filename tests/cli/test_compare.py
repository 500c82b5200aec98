"""clipq compare: differences, gates, exit codes."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from report_example import ID, OOD, make_example

from clipq.cli.main import main
from clipq.evaluate.gates.presets import PRESETS
from clipq.evaluate.verdict import judge

FIRST, SECOND = "first", "second"
PAIR = f"{ID}|{OOD[0]}"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two folders: the example, and one of the same images in which dynamic INT8 stands under the name of static INT8."""
    from clipq.evaluate.report.samples import write_samples

    report, samples = make_example(n=600, resamples=60)
    report = {**report, "results": {engine: {ID: data[ID]} for engine, data in report["results"].items()}}
    report["ood"] = {engine: {PAIR: {"mcm": pairs[PAIR]["mcm"]}} for engine, pairs in report["ood"].items()}
    gates, verdict = judge(report)
    report = {**report, "gates": gates, "verdict": verdict}
    folder = tmp_path_factory.mktemp("reports")
    renamed = {"ort-int8-static": "gone", "ort-int8-dynamic": "ort-int8-static"}
    swapped = json.loads(json.dumps(report))
    for part in ("engines", "results", "ood", "paired", "bench", "verdict"):
        swapped[part] = {renamed.get(engine, engine): value for engine, value in swapped[part].items()}
    engines = [renamed.get(engine, engine) for engine in samples["engine"]]
    for name, value, table in ((FIRST, report, samples), (SECOND, swapped, {**samples, "engine": np.array(engines, dtype=object)})):
        (folder / name).mkdir()
        (folder / name / "report.json").write_text(json.dumps(value))
        write_samples(table, folder / name / "samples.parquet")
    return folder


def call(capsys, *arguments):
    """Run the command; return exit code, stdout and stderr."""
    code = main(["compare", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def delta(comparison, engine="ort-int8-static", metric="acc1"):
    """One measurement of a comparison."""
    return comparison["results"][engine][ID][metric]


def test_two_reports_are_compared_image_by_image(reports, capsys):
    """Both reports hold the same images, so the difference is paired and is that of the values."""
    code, out, _ = call(capsys, reports / FIRST, reports / SECOND / "report.json", "--engines", "ort-int8-static", "--json", "-")
    found = delta(json.loads(out))
    report, _ = make_example(n=600, resamples=60)
    expected = report["results"]["ort-int8-dynamic"][ID]["acc1"]["value"] - report["results"]["ort-int8-static"][ID]["acc1"]["value"]
    assert code == 0
    assert found["paired"] is True
    assert found["delta"] == pytest.approx(expected)
    assert found["delta_ci95"][0] <= expected <= found["delta_ci95"][1]
    assert delta(json.loads(out), metric="nll")["paired"] is False


def test_thresholds_are_those_of_the_first_report(reports, capsys):
    """What the first report's threshold accepts on the second's scores, whatever baseline either had, with the paired difference."""
    code, out, _ = call(capsys, reports / FIRST, reports / SECOND, "--engines", "ort-int8-static", "--json", "-")
    _, samples = make_example(n=600, resamples=60)

    def scores(engine, data):
        return samples["mcm"][(samples["engine"] == engine) & (samples["data"] == data)].astype(float)

    threshold = np.sort(scores("ort-int8-static", ID))[569]  # 570 of 600 are 95 %
    found = json.loads(out)["ood"]["ort-int8-static"][PAIR]["mcm"]
    assert found["tpr_transfer"]["value"] == pytest.approx(np.mean(scores("ort-int8-dynamic", ID) <= threshold))
    let_in = [np.mean(scores(engine, OOD[0]) <= threshold) for engine in ("ort-int8-static", "ort-int8-dynamic")]
    assert found["fpr_transfer"]["value"] == pytest.approx(let_in[1])
    assert found["fpr_transfer"]["delta"] == pytest.approx(let_in[1] - let_in[0])
    assert (code, found["fpr_transfer"]["paired"]) == (0, True)


def test_without_samples_intervals_are_wider_and_said_to_be_unpaired(reports, capsys, tmp_path):
    """Where the images cannot be matched the intervals are added, and the table says so."""
    shutil.copy(reports / SECOND / "report.json", tmp_path)
    options = ["--engines", "ort-int8-static", "--json", "-"]
    paired = delta(json.loads(call(capsys, reports / FIRST, reports / SECOND, *options)[1]))
    unpaired = delta(json.loads(call(capsys, reports / FIRST, tmp_path, *options)[1]))
    assert unpaired["paired"] is False
    assert unpaired["delta"] == pytest.approx(paired["delta"])
    assert unpaired["delta_ci95"][1] - unpaired["delta_ci95"][0] > 1.5 * (paired["delta_ci95"][1] - paired["delta_ci95"][0])
    assert "unpaired" in call(capsys, reports / FIRST, tmp_path, "--engines", "ort-int8-static")[1]


def test_other_images_are_not_paired(reports, capsys, tmp_path):
    """Samples of another draw of the data are not matched by accident."""
    shutil.copytree(reports / SECOND, tmp_path / "b")
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    report["datasets"][ID]["sha256"] = "34" * 32
    (tmp_path / "b" / "report.json").write_text(json.dumps(report))
    found = json.loads(call(capsys, reports / FIRST, tmp_path / "b", "--engines", "ort-int8-static", "--json", "-")[1])
    assert delta(found)["paired"] is False


def test_report_against_itself_shows_no_difference(reports, capsys):
    """The same report twice: every paired delta is exactly zero."""
    _, out, _ = call(capsys, reports / FIRST, reports / FIRST, "--engines", "ort-fp32", "--json", "-")
    comparison = json.loads(out)
    assert delta(comparison, "ort-fp32")["delta"] == 0
    assert comparison["ood"]["ort-fp32"][PAIR]["mcm"]["auroc"]["paired"] is True
    assert comparison["paired"]["ort-fp32"][ID]["disagreement"] == 0


def test_two_engines_of_one_report(reports, capsys):
    """Neither needs to be the baseline; against the baseline the report's own figures stand."""
    _, out, _ = call(capsys, reports / FIRST, "--engines", "ort-int8-static,ort-int8-dynamic", "--json", "-")
    comparison = json.loads(out)
    assert (comparison["baseline"], list(comparison["engines"])) == ("ort-int8-static", ["ort-int8-dynamic"])
    assert delta(comparison, "ort-int8-dynamic")["paired"] is True
    _, out, _ = call(capsys, reports / FIRST, "--engines", "torch-fp32,ort-int8-dynamic", "--json", "-")
    report, _ = make_example(n=600, resamples=60)
    assert delta(json.loads(out), "ort-int8-dynamic") == report["results"]["ort-int8-dynamic"][ID]["acc1"]


def test_failing_gate_is_exit_code_3(reports, capsys, tmp_path):
    """A gate that fails ends with 3, one line on stderr, and the JSON already written."""
    target = tmp_path / "out.json"
    code, out, err = call(capsys, reports / FIRST, "--fail-on", "ort-int8-dynamic:acc1.delta_pp<-0.1", "--json", target)
    assert code == 3
    assert err.startswith("clipq: ")
    assert err.count("\n") == 1
    assert "acc1.delta_pp<-0.1" in err
    assert "fail: ort-int8-dynamic" in out
    assert any(gate["outcome"] == "fail" for gate in json.loads(target.read_text())["gates"])


def test_resamples_can_be_chosen(reports, capsys):
    """The number of resamples moves the ends of an interval and never a value."""
    few, fewer = (
        delta(json.loads(call(capsys, reports / FIRST, reports / SECOND, "--resamples", number, "--json", "-")[1])) for number in (60, 20)
    )
    assert few["delta"] == fewer["delta"]
    assert few["delta_ci95"] != fewer["delta_ci95"]


def test_passing_gate_is_exit_code_0(reports, capsys):
    """A generous gate passes; without gates nothing is judged."""
    code, out, _ = call(capsys, reports / FIRST, "--fail-on", "acc1.delta_pp<-50")
    assert code == 0
    assert "pass: ort-fp32" in out
    assert "pass:" not in call(capsys, reports / FIRST)[1]


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        (["--gates", "mlperf-99,non-inferior"], 3),
        (["--gates", "mlperf-99", "--gates", "default"], 3),
        (["--fail-on", "acc1:max-degradation=0.5", "--fail-on", "ece15:threshold=0.9"], 0),
        (["--fail-on", "ort-fp32:acc1:percent-max-degradation=5"], 0),
        (["--fail-on", "acc1:min-improvement=0.9"], 3),
        (["--fail-on", "image-b1.p50_s:percent-max-degradation=0"], 0),
        (["--fail-on", "image-b1.p50_s:percent-min-improvement=95"], 3),
    ],
)
def test_goals_and_presets_decide_the_exit_code(reports, capsys, gates, code):
    """Goals and presets end with 3 like any other rule, and the JSON tells which were judged."""
    found, out, err = call(capsys, reports / FIRST, *gates, "--json", "-")
    comparison = json.loads(out)
    assert found == code, err
    assert {gate["rule"] for gate in comparison["gates"]} == set(comparison["provenance"]["gates"]["rules"])
    assert comparison["provenance"]["gates"]["presets"] == [
        name for word in gates if not word.startswith("--") and ":" not in word for name in word.split(",")
    ]


def test_files_for_ci_are_written_whatever_the_outcome(reports, capsys, tmp_path):
    """JUnit and summary stand before exit code 3; without a gate asked for, the default ones are written and nothing fails."""
    junit, summary = tmp_path / "new" / "junit.xml", tmp_path / "summary.md"
    files = ["--junit", junit, "--summary", summary]
    assert call(capsys, reports / FIRST, reports / SECOND, "--gates", "non-inferior", *files)[0] == 3
    suites = ET.parse(junit).getroot()
    assert {suite.get("name") for suite in suites} == {"ort-fp32", "ort-int8-static", "torch-fp32"}
    assert any(suite.get("failures") != "0" for suite in suites)
    assert "| ort-int8-static | **do not ship** |" in summary.read_text()
    assert call(capsys, reports / FIRST, *files)[0] == 0
    assert {case.get("name").split(" on ")[0] for case in ET.parse(junit).iter("testcase")} == set(PRESETS["default"])
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["junit.xml", "summary.md"]


def test_unproven_gates_are_skipped_unless_proof_is_required(reports, capsys, tmp_path):
    """What 600 images cannot show is skipped in JUnit, and with --require-proof a failure there as on the command line."""
    options = ["--fail-on", "ort-fp32:acc1.delta_pp<-0.1", "--junit", tmp_path / "j.xml"]
    assert call(capsys, reports / FIRST, *options)[0] == 0
    assert [len(list(ET.parse(tmp_path / "j.xml").iter(tag))) for tag in ("skipped", "failure")] == [1, 0]
    assert call(capsys, reports / FIRST, *options, "--require-proof")[0] == 3
    assert [len(list(ET.parse(tmp_path / "j.xml").iter(tag))) for tag in ("skipped", "failure")] == [0, 1]


def test_percentage_of_a_zero_baseline_is_one_line(reports, capsys, tmp_path):
    """The gate is not shown to pass, which is exit code 3 with --require-proof, in a line that names it."""
    report = json.loads((reports / FIRST / "report.json").read_text())
    entry = report["results"]["ort-fp32"][ID]["acc1"]
    entry["delta"] = entry["value"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, _, err = call(capsys, tmp_path, "--gates", "mlperf-99", "--require-proof")
    assert (code, err.count("\n")) == (3, 1)
    assert "acc1:percent-max-degradation=1: the baseline's Top-1 accuracy" in err
    assert "is zero, of which there is no percentage" in err


@pytest.mark.parametrize(
    "arguments", [(FIRST, "--engines", "ort-int8-static,ort-int8-dynamic"), (FIRST, SECOND, "--engines", "ort-int8-static")]
)
def test_mlperf_beside_a_quantized_baseline_is_refused(arguments, reports, capsys):
    """Exit code 2 in one line: 99 % of another INT8 engine is no share of the FP32 reference; FP32 beside FP32 is judged."""
    names = [reports / name if name in {FIRST, SECOND} else name for name in arguments]
    code, out, err = call(capsys, *names, "--gates", "mlperf-99")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "mlperf-99 is about the accuracy of the FP32 reference; found the baseline ort-int8-static, int8" in err
    assert call(capsys, reports / FIRST, "--engines", "torch-fp32,ort-fp32", "--gates", "mlperf-99")[0] in {0, 3}


def test_proof_can_be_required(reports, capsys):
    """What 600 images cannot show passes by default and fails with --require-proof."""
    rule = ["--fail-on", "ort-fp32:acc1.delta_pp<-0.1"]
    assert call(capsys, reports / FIRST, *rule)[0] == 0
    code, _, err = call(capsys, reports / FIRST, *rule, "--require-proof")
    assert code == 3
    assert "the sample cannot show it" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([FIRST, SECOND, "--engines", "ort-int8-statik"], 2, "Did you mean 'ort-int8-static'?"),
        ([FIRST, "--engines", "ort-fp32"], 2, "needs two engines"),
        ([FIRST, "--engines", "ort-fp32,nope"], 2, "unknown engine of this report 'nope'"),
        ([FIRST, FIRST, FIRST], 2, "too many reports"),
        ([FIRST, "--fail-on", "ac1.delta<0"], 2, "Did you mean 'acc1'?"),
        ([FIRST, "--fail-on", "acc1:max-degradtion=0.01"], 2, "Did you mean 'max-degradation'?"),
        ([FIRST, "--gates", "non-inferor"], 2, "Did you mean 'non-inferior'?"),
        ([FIRST, "--junit", FIRST], 2, "is a folder"),
        (["nowhere"], 2, "no report at"),
        ([], 2, "the following arguments are required"),
    ],
)
def test_wrong_calls_are_one_line(reports, capsys, monkeypatch, arguments, code, message):
    """Wrong names and numbers of arguments are usage errors that say what to do."""
    monkeypatch.chdir(reports)
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_nothing_in_common_is_an_error(reports, capsys, tmp_path):
    """Two reports without a shared data set cannot be compared."""
    report = json.loads((reports / FIRST / "report.json").read_text())
    report["results"] = {engine: {"other": next(iter(data.values()))} for engine, data in report["results"].items()}
    (tmp_path / "report.json").write_text(json.dumps(report))
    code, _, err = call(capsys, reports / FIRST, tmp_path)
    assert code == 1
    assert "share no data set" in err
