"""What a device does otherwise than the host: two verifications, or a report and one, through clipq compare."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from toy_golden import make_golden_bundle

from clipq.cli.main import main
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.evaluate.verify.verify import VerifyOptions, verify_bundle

ENGINE = "ort-int8-static"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A toy bundle with its verification, and a report of it, as host.json and report/ in one folder."""
    folder = tmp_path_factory.mktemp("compare")
    bundle = make_golden_bundle(folder / "bundle")
    record = verify_bundle(bundle, VerifyOptions(bench_seconds=0.02))
    (folder / "host.json").write_text(json.dumps(record))
    options = EvalOptions(data=("synthetic:scenes",), baseline="ort-fp32", limit=20, bench_seconds=0.02, resamples=10)
    evaluate_bundle(bundle, options, folder / "report")
    return folder, record


@pytest.fixture
def edge(host: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of the device's record: the host's, changed by a function."""

    def write(change: Callable[[dict[str, Any]], object] = lambda _record: None) -> Path:
        record = copy.deepcopy(host[1])
        change(record)
        (tmp_path / "edge.json").write_text(json.dumps(record))
        return tmp_path / "edge.json"

    return write


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command; return exit code, stdout and stderr."""
    code = main(["compare", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def _slower(record: dict[str, Any]) -> None:
    record["bench"][ENGINE]["image-b1"]["p50_s"] *= 3
    record["engines"][ENGINE]["sha256"] = {"engines/x.plan": "ab" * 32}
    record["engines"][ENGINE]["golden"]["towers"]["image"]["min_cosine"] = 0.25
    record["engines"][ENGINE]["golden"]["top1_agreement"] = 0.5
    record["preprocessing"] |= {"identical": False, "different": ["golden/0.jpg"], "max_difference_levels": 2.0}
    record["left_out"]["ort-fp32"] = "onnxruntime is not installed"
    record["problems"] = [f"{ENGINE}, image: min_cosine 0.25, limit 0.8"]
    del record["engines"]["ort-fp32"]


def test_the_same_record_differs_in_nothing(host, edge, capsys: pytest.CaptureFixture[str]) -> None:
    """Same files, same figures, one times the latency."""
    code, out, _ = call(capsys, host[0] / "host.json", edge())
    assert code == 0
    assert out.count("the same files") == 3
    assert "1.00 times" in out
    assert "open_clip's pixels then open_clip's pixels" in out


def test_what_differs_is_shown_side_by_side(host, edge, capsys: pytest.CaptureFixture[str]) -> None:
    """Hashes, golden figures, latency, preprocessing, engines that are missing and problems: the host's value and the device's."""
    code, out, _ = call(capsys, host[0] / "host.json", edge(_slower), "--json", host[0] / "difference.json")
    found = json.loads((host[0] / "difference.json").read_text())["verification"]
    assert code == 0
    assert found["engines"][ENGINE]["same_files"] is False
    cosines = [host[1]["engines"][ENGINE]["golden"]["towers"]["image"]["min_cosine"], 0.25]
    assert found["engines"][ENGINE]["golden"]["image"]["min_cosine"] == cosines
    assert found["only_first"] == ["ort-fp32"]
    for line in ("other files", "3.00 times", "1 of 7 pictures differ, by 2 grey levels", "ort-fp32 is only in the first: onnxruntime"):
        assert line in out
    assert "second: ort-int8-static, image: min_cosine 0.25, limit 0.8" in out


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("cosine_min.value<0.5", 3),
        ("cosine_min.value<0.2", 0),
        ("disagreement.value>0.4", 3),
        ("image-b1.p50_s.delta_percent>150", 3),
        ("image-b1.p50_s.delta_percent>250", 0),
    ],
)
def test_gates_read_what_differs(host, edge, capsys: pytest.CaptureFixture[str], rule: str, code: int) -> None:
    """The gate language of reports holds for golden figures and for latency against the host's."""
    found, out, err = call(capsys, host[0] / "host.json", edge(_slower), "--fail-on", f"{ENGINE}:{rule}", "--junit", host[0] / "gates.xml")
    assert found == code
    assert (f"{ENGINE}: " in err) == (code == 3)
    assert ("fail:" if code else "pass:") in out
    assert ET.parse(host[0] / "gates.xml").getroot().find(".//testcase") is not None


def test_a_report_stands_for_the_host(host, edge, capsys: pytest.CaptureFixture[str]) -> None:
    """A report has engines by hash and latencies, and no golden figures: a dash."""
    code, out, _ = call(capsys, host[0] / "report", edge(_slower), "--engines", ENGINE)
    assert code == 0
    assert "other files" in out
    assert "not compared with open_clip then 1 of 7 pictures differ" in out
    assert "image-b1 p50" in out


def test_thresholds_that_decide_otherwise_are_told(host, edge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A threshold that keeps more pictures on the device than on the host has a line."""

    def keeps(count: int | None) -> Callable[[dict[str, Any]], object]:
        entry = {"scenes": {"mcm": {"threshold": -0.5, "kept": count}, "msp": {"threshold": -0.1, "kept": 1}}}
        return lambda record: record["engines"][ENGINE].update(thresholds=entry)

    first = tmp_path / "first.json"
    first.write_text(edge(keeps(2)).read_text())
    _, out, _ = call(capsys, first, edge(keeps(3)))
    assert "mcm on scenes keeps 2 pictures at -0.5, then 3 pictures at -0.5" in out
    assert "msp on scenes" not in out
    assert "keeps" not in call(capsys, host[0] / "host.json", edge(keeps(3)))[1]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda record: record["provenance"]["model"].update(state_sha256="0"), "are of different models"),
        (lambda record: record.update(engines={"trt-fp16": record["engines"][ENGINE]}), "share no engine"),
        (lambda record: record.pop("bench"), "is incomplete; found no bench"),
        (lambda record: record.update(schema="clipq.verify/9"), "is no record this clipq can read"),
    ],
)
def test_records_that_cannot_be_compared(host, edge, capsys: pytest.CaptureFixture[str], change: Callable[..., object], line: str) -> None:
    """Other models, no common engine, incomplete or unknown records: one line."""
    code, _, err = call(capsys, host[0] / "host.json", edge(change))
    assert code == 1
    assert line in err


def test_wrong_arguments(host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One record alone, a file that is not there, an engine that is not in both."""
    record = host[0] / "host.json"
    assert "has nothing to be compared with" in call(capsys, record)[2]
    assert "no record at" in call(capsys, record, tmp_path / "none.json")[2]
    assert "Did you mean 'ort-int8-static'" in call(capsys, record, record, "--engines", "ort-int8-statik")[2]
    (tmp_path / "broken.json").write_text("{")
    assert "cannot read" in call(capsys, record, tmp_path / "broken.json")[2]


def test_a_folder_stands_for_its_record(host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What -o wrote is found by its folder."""
    (tmp_path / "verify.json").write_text(json.dumps(host[1]))
    assert call(capsys, host[0] / "host.json", tmp_path)[0] == 0
