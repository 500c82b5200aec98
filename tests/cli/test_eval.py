"""clipq eval and clipq bench as a user runs them: streams, exit codes, interruption, two runs at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from toy_bundle import make_toy_bundle

from clipq.cli.main import main
from clipq.evaluate.gates.presets import PRESETS
from clipq.files import locked

DATA = ["--data", "synthetic:scenes", "--ood", "synthetic:scenes-far"]
QUICK = ["--baseline", "ort-fp32", "--no-bench", "--limit", "60"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle that the tests only read."""
    return make_toy_bundle(tmp_path_factory.mktemp("eval") / "bundle").folder


def _start(*arguments: object) -> subprocess.Popen[str]:
    code = "import sys; from clipq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _figures(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    return {name: part for name, part in report.items() if name not in {"provenance", "bench"}}


def test_eval_prints_the_verdict_and_where_the_report_is(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdict lines and the report's path on stdout, progress on stderr without colour codes."""
    assert main(["eval", str(bundle), *DATA, *QUICK, "-o", str(tmp_path)]) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("ort-int8-dynamic: ")
    assert streams.out.rstrip().endswith(str(tmp_path / "report.html"))
    assert "Embedding synthetic:scenes" in streams.err
    assert "\x1b" not in streams.out + streams.err


def test_json_on_stdout_is_only_json(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json - stdout parses, and with --quiet stderr is empty."""
    assert main(["eval", str(bundle), *DATA, *QUICK, "-o", str(tmp_path), "--json", "-", "--quiet"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out) == json.loads((tmp_path / "report.json").read_text())
    assert streams.err == ""


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--fail-on", "disagreement.value>=0"], 3),
        (["--fail-on", "disagreement.value>1"], 0),
        (["--fail-on", "acc1.delta_pp<-4"], 0),
        (["--fail-on", "acc1.delta_pp<-4", "--require-proof"], 3),
        (["--fail-on", "nonsense"], 2),
        (["--fail-on", "disagreement:threshold=1"], 0),
        (["--fail-on", "disagreement:threshold=1", "--gates", "non-inferior"], 3),
        (["--gates", "mlperf"], 2),
    ],
)
def test_gates_decide_the_exit_code(bundle: Path, tmp_path: Path, options: list[str], code: int) -> None:
    """A gate that fails (or, with proof required, is not shown) ends with 3, the report is written; nonsense ends with 2 at once."""
    assert main(["eval", str(bundle), *DATA, *QUICK, "-o", str(tmp_path / "out"), *options, "-q"]) == code
    assert (tmp_path / "out" / "report.json").exists() is (code != 2)


def test_the_record_names_the_gates_and_ci_gets_its_files(bundle: Path, tmp_path: Path) -> None:
    """Presets and rules stand in the provenance; JUnit and summary say what the report says, though a gate fails."""
    gates = ["--gates", "default,non-inferior", "--fail-on", "acc1:threshold=0.999"]
    files = ["--junit", str(tmp_path / "junit.xml"), "--summary", str(tmp_path / "summary.md")]
    assert main(["eval", str(bundle), *DATA, *QUICK, "-o", str(tmp_path / "out"), *gates, *files, "-q"]) == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["provenance"]["gates"] == {
        "presets": ["default", "non-inferior"],
        "rules": ["acc1:threshold=0.999", *PRESETS["default"], *PRESETS["non-inferior"]],
    }
    suites = ET.parse(tmp_path / "junit.xml").getroot()
    assert [suite.get("name") for suite in suites] == list(report["verdict"])
    assert sum(int(suite.get("failures") or 0) for suite in suites) == sum(gate["outcome"] == "fail" for gate in report["gates"])
    assert "| ort-int8-static | **do not ship** |" in (tmp_path / "summary.md").read_text()
    schema = json.loads((files_of("clipq.evaluate.report") / "report.schema.json").read_text())
    jsonschema.validate(report, schema)


def test_a_percentage_of_a_zero_baseline_leaves_a_report(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy model has nothing right, so 99 % of it shows nothing: the report says so, and another gate goes on with what was embedded."""
    arguments = ["eval", str(bundle), *DATA, *QUICK, "-o", str(tmp_path / "out"), "-q"]
    assert main([*arguments, "--gates", "mlperf-99", "--require-proof"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "Top-1 accuracy on synthetic:scenes is zero" in line
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {gate["outcome"] for gate in report["gates"]} <= {"unproven", "fail"}
    assert "is zero, of which there is no percentage" in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("embeddings/*/*.npy")}
    assert kept
    assert main([*arguments, "--resume", "--fail-on", "acc1:max-degradation=0.5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", *DATA], 2, "no bundle at"),
        (["BUNDLE", "--data", "synthetic:scenery"], 2, "Did you mean"),
        (["BUNDLE", "--data", "wds:/nowhere"], 2, "/nowhere"),
        (["BUNDLE", *DATA, "--baseline", "torch-fp32"], 2, "unknown engine of this bundle"),
        (
            ["BUNDLE", *DATA, "--baseline", "ort-int8-static", "--gates", "mlperf-99"],
            2,
            "mlperf-99 is about the accuracy of the FP32 reference",
        ),
        (["BUNDLE", *DATA, "--batch-size", "0"], 2, "--batch-size"),
        (["BUNDLE", *DATA, "--limit", "0"], 2, "--limit"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """Every mistake is one line on stderr and an exit code, and leaves no report."""
    spelled = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    assert main(["eval", *spelled[:1], *QUICK, *spelled[1:], "-o", str(tmp_path / "out")]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clipq:")]
    assert message in line
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_killed_run_resumes_to_the_same_figures(bundle: Path, tmp_path: Path) -> None:
    """After kill -9 in the middle of embedding, --resume goes on and every figure is byte for byte that of a whole run."""
    arguments = ["eval", bundle, *DATA, "--baseline", "ort-fp32", "--engines", "ort-int8-static", "--no-bench", "--limit", 1100]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = _start(*arguments, "-o", killed)
    deadline = time.monotonic() + 120
    while not list(killed.glob("embeddings/*/000000512-*.npy")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (killed / "report.json").exists()
    unfinished = [path.parent for path in killed.glob("embeddings/*/*.npy") if not (path.parent / "finished.json").exists()]
    assert unfinished
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("embeddings/*/*.npy")}
    resumed, complete = _start(*arguments, "-o", killed, "--resume"), _start(*arguments, "-o", whole)
    for run in (resumed, complete):
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.dumps(_figures(killed)) == json.dumps(_figures(whole))


def test_two_runs_at_once_do_not_mix(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run into a folder is told that it is busy; two runs may read one bundle; nobody evaluates a bundle in the making."""
    arguments = ["eval", str(bundle), *DATA, *QUICK, "-q", "-o"]
    with locked(tmp_path / "out"):
        assert main([*arguments, str(tmp_path / "out")]) == 1
        assert "in use by another clipq run" in capsys.readouterr().err
        assert main([*arguments, str(tmp_path / "other")]) == 0
    with locked(bundle):
        assert main([*arguments, str(tmp_path / "third")]) == 1
    assert "in use by another clipq run" in capsys.readouterr().err


def test_a_changed_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose hash is not the manifest's ends with 5 before anything is computed."""
    folder = make_toy_bundle(tmp_path / "bundle").folder
    (folder / "engines/ort-int8-static/image.onnx").write_bytes(b"something else")
    assert main(["eval", str(folder), *DATA, *QUICK, "-o", str(tmp_path / "out")]) == 5
    assert "is not the file the manifest names" in capsys.readouterr().err


def test_eval_needs_no_torch(bundle: Path, tmp_path: Path) -> None:
    """With an ONNX Runtime baseline neither torch nor open_clip nor onnx is loaded."""
    code = (
        "import sys; from clipq.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, *sorted({'torch', 'open_clip', 'onnx'} & set(sys.modules)))"
    )
    arguments = ["eval", bundle, *DATA, *QUICK, "-q", "-o", tmp_path]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"


def test_bench_prints_a_table_and_json(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Latency of every engine, with machine and versions, without any data."""
    arguments = ["bench", str(bundle), "-o", str(tmp_path), "--bench-seconds", "0.05", "--threads", "1", "-q"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    record = json.loads((tmp_path / "bench.json").read_text())
    for engine_id in ("ort-fp32", "ort-int8-dynamic", "ort-int8-static"):
        assert table.count(engine_id) == 3
        assert set(record["bench"][engine_id]) == {"image-b1", "image-b32", "artefact"}
    assert record["threads"] == 1
    assert "onnxruntime" in record["versions"]
