"""The GPU run: its plan, its time limit, its targets and its page, and the rehearsal of everything that needs no GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipq.engines.tensorrt.device import require_device
from clipq.errors import MissingRuntimeError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
MODEL, LARGE = "ViT-B-32:random", "ViT-L-14:random"


def _has_device() -> bool:
    try:
        require_device()
    except MissingRuntimeError:
        return False
    return True


without_gpu = pytest.mark.skipif(_has_device(), reason="there is a GPU here")


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _setting(tmp_path: Path, **options: Any) -> Any:
    return _module("schedule").Setting(tmp_path, **{"split": False, "fp8": False, "shared": Path("photos"), **options})


@pytest.mark.parametrize("split", [False, True])
def test_a_plan_is_in_order(tmp_path: Path, *, split: bool) -> None:
    """Names are unique, and what a part needs comes before it."""
    parts = _module("schedule").whole_plan(_setting(tmp_path, split=split))
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    for number, part in enumerate(parts):
        assert set(part.needs) <= set(names[:number]), part.name
        module, function = part.worker.split(":")
        assert f"def {function}(" in (FOLDER / f"{module}.py").read_text()


def test_all_that_is_asked_for_is_planned(tmp_path: Path) -> None:
    """Every engine at every batch for both sizes of model, and the suite on all photograph models."""
    parts = {part.name: part for part in _module("schedule").whole_plan(_setting(tmp_path, fp8=True))}
    wanted = {
        "torch-cuda-fp32",
        "torch-cuda-bf16-compiled",
        "ort-cuda-fp32",
        "ort-cuda-fp16",
        "trt-fp32",
        "trt-fp16",
        "trt-int8",
        "trt-fp8",
    }
    for model in (MODEL, LARGE):
        arguments = parts[f"latency {model}"].arguments
        assert {engine for _, engines in arguments["groups"] for engine in engines} == wanted
        assert arguments["batch_sizes"] == [1, 8, 32, 128]
        assert {f"build {model}", f"layers {model}", f"bare loop {model}", f"throughput {model}"} <= set(parts)
    for model in ("photo-base", "photo-over", "photo-under"):
        assert set(parts[f"suite {model}"].arguments["engines"]) == {name for name in wanted if not name.startswith("torch")}
    assert parts[f"export {MODEL} mha-int8"].arguments["mha"] == "int8"


def test_what_cannot_run_is_not_planned(tmp_path: Path) -> None:
    """Without TensorRT there is no part for it; without photographs no suite; the yardstick stays."""
    schedule = _module("schedule")
    reasons = dict.fromkeys((*schedule.PLANS, schedule.FP8, *schedule.ORT_ENGINES), "not here")
    parts = schedule.whole_plan(_setting(tmp_path, shared=None, left_out=reasons, split=True))
    assert {part.interpreter for part in parts} == {"torch"}
    assert {part.worker for part in parts} == {"bundles:export", "speed:latency"}


def test_two_pythons_share_the_suite(tmp_path: Path) -> None:
    """The Python with torch stores FP32 PyTorch's embeddings where the other one looks for them."""
    parts = {part.name: part for part in _module("schedule").whole_plan(_setting(tmp_path, split=True))}
    first, second = parts["suite photo-base (torch)"], parts["suite photo-base (tensorrt)"]
    assert first.arguments["output"] == second.arguments["output"]
    assert second.arguments["after"] == str(tmp_path / "results" / f"{first.name}.json")
    assert first.name in second.needs


_FAKE = """
import json, os, sys, time
_, _, worker, arguments, output = sys.argv
seconds = json.load(open(arguments)).get("seconds", 0)
time.sleep(seconds)
if worker == "crash":
    os.abort()
if worker == "refuse":
    sys.exit(print("first\\nthe reason", file=sys.stderr) or 5)
json.dump({"end": time.time()}, open(output, "w"))
"""


def _run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: list[Any], seconds: float, known: dict[str, Any] | None = None) -> Any:
    """Run parts whose program is a few lines that sleep, write, refuse or crash."""
    run = _module("run")
    program = tmp_path / "program"
    program.mkdir()
    (program / "__main__.py").write_text(_FAKE)
    monkeypatch.setattr(run, "HERE", program)
    monkeypatch.setattr(run, "_END_S", 0.0)
    seen: list[list[str]] = []
    deadline = time.monotonic() + seconds
    runner = run.Runner(
        parts=parts,
        pythons={"torch": sys.executable},
        work=tmp_path / "work",
        deadline=deadline,
        changed=lambda outcomes: seen.append(list(outcomes)),
        known=known or {},
    )
    return runner.run(), seen


def _part(
    name: str, worker: str = "ok", estimate_s: float = 1, kind: str = "suite", needs: tuple[str, ...] = (), seconds: float = 0
) -> Any:
    return _module("schedule").Part(name, worker, "torch", estimate_s, {"seconds": seconds}, kind, needs)


def test_one_failure_is_a_line_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A crash, a refusal, what needs them and what does not fit each have their reason; the record grows part by part."""
    parts = [
        _part("crash", "crash"),
        _part("refuse", "refuse"),
        _part("after", needs=("crash",)),
        _part("long", estimate_s=1000),
        _part("good"),
    ]
    outcomes, seen = _run(monkeypatch, tmp_path, parts, 60)
    assert {name: found["status"] for name, found in outcomes.items()} == {
        "crash": "failed",
        "refuse": "failed",
        "after": "not run",
        "long": "left out",
        "good": "done",
    }
    assert outcomes["crash"]["why"] == "ended by SIGABRT"
    assert outcomes["refuse"]["why"] == "exit code 5: the reason"
    assert outcomes["after"]["why"] == "it needs crash, which is failed"
    assert outcomes["long"]["why"].startswith("about 1000 s, ")
    assert sorted(map(len, seen)) == [1, 2, 3, 4, 5]


def test_nothing_runs_over_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A part that estimated too little is stopped when the time is up, and what comes after it is left out."""
    start = time.monotonic()
    outcomes, _ = _run(monkeypatch, tmp_path, [_part("slow", seconds=60), _part("next", needs=("slow",))], 2)
    assert time.monotonic() - start < 20
    assert (outcomes["slow"]["status"], outcomes["slow"]["why"]) == ("stopped", "the time was up")
    assert outcomes["next"]["status"] == "left out"


def test_times_are_taken_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A measurement waits for what runs, and nothing starts beside it."""
    parts = [_part("export", kind="export", seconds=1), _part("measure", kind="measure"), _part("suite")]
    outcomes, _ = _run(monkeypatch, tmp_path, parts, 60)
    ends = [outcomes[name]["result"]["end"] for name in ("export", "measure", "suite")]
    assert ends == sorted(ends)


def test_a_second_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was done with the same arguments is kept; what failed or was asked differently runs again."""
    first, _ = _run(monkeypatch, tmp_path, [_part("kept"), _part("changed"), _part("failed", "refuse")], 60)
    (tmp_path / "again").mkdir()
    again = [_part("kept"), _part("changed", seconds=0.1), _part("failed")]
    second, seen = _run(monkeypatch, tmp_path / "again", again, 60, known=first)
    assert second["kept"] == first["kept"]
    assert second["changed"]["result"]["end"] > first["changed"]["result"]["end"]
    assert second["failed"]["status"] == "done"
    assert len(seen) == 2


def test_intervals_are_of_turns() -> None:
    """An interval holds the percentile of independent turns, and is wider when the calls of a turn are alike."""
    figures = _module("figures")
    rng = np.random.default_rng(0)
    independent = rng.exponential(1, 400)
    alike = np.repeat(rng.exponential(1, 100), 4)
    low, high = figures.interval(list(independent), 50, 4)
    assert low < np.median(independent) < high
    wide = figures.interval(list(alike), 50, 4)
    assert wide[1] - wide[0] > 1.3 * (high - low)
    assert figures.interval([0.5] * 8, 50, 4) == [0.5, 0.5]


def test_a_ratio_is_how_many_times_as_fast() -> None:
    """Twice the median is 2, whatever drift both share."""
    drift = np.linspace(1, 3, 200)
    found = _module("figures").ratio(list(2 * drift), list(drift), 4)
    assert found["value"] == pytest.approx(2)
    assert found["ci95"][0] <= 2 <= found["ci95"][1]


def _done(result: Any) -> dict[str, Any]:
    return {"status": "done", "seconds": 1.0, "estimate_s": 1, "result": result}


def _summary(p50_s: float) -> dict[str, Any]:
    ends = {f"p{q}_s_ci95": [0.9 * p50_s, 1.1 * p50_s] if q < 99 else None for q in (50, 90, 99)}
    return {"p50_s": p50_s, "p90_s": 1.2 * p50_s, "p99_s": None, "images_per_s": 32 / p50_s, "n": 100, **ends}


def _layers(precision: str, share: float, attention: str, reformats: int) -> dict[str, Any]:
    return {"multiply_adds": {precision: share}, "attention": attention, "reformats": reformats}


def _outcomes(ratio: float, ours: float, suite: float) -> dict[str, Any]:
    """Return outcomes as workers give them; the numbers are made up for reading, none was measured."""
    value = {"value": ratio, "ci95": [ratio - 0.02, ratio + 0.02], "turns": 25}
    bench = {"trt-fp16": {"image-b32": _summary(0.003), "image-b32-device": _summary(0.002)}}
    layers = {"trt-int8": _layers("int8", 0.6, "not fused", 48), "trt-fp16": _layers("fp16", 1.0, "fused", 2)}
    near = {"value": ours, "ci95": [ours - 0.001, ours + 0.001]}
    rates = {"suite_images_per_s": suite, "engine_images_per_s": 1000.0}
    loop = {"ours_p50_s": 0.002, "bare_p50_s": 0.0019, "ours_over_bare": near, "trtexec": {"missing": "trtexec is not on the PATH"}}
    plan = {"size_bytes": 2_500_000, "build_seconds": 12.5, "layers": 300}
    return {
        f"build {MODEL}": _done({"plans": {"trt-fp16": {"image": plan}}, "failed": {"trt-int8": "node X was refused"}}),
        f"latency {MODEL}": _done({"bench": bench, "int8_over_fp16": {"image-b32-device": value}, "failed": {}}),
        f"latency {MODEL} mha-int8": _done({"bench": {"trt-fp16": {}}, "int8_over_fp16": {}, "failed": {}}),
        f"layers {MODEL}": _done({"layers": layers, "failed": {}}),
        f"bare loop {MODEL}": _done({"loops": {"trt-fp16": {"1": loop}}, "failed": {}}),
        f"throughput {MODEL}": _done({"decoding_images_per_s": 800.0, "engines": {"trt-fp16": rates}, "failed": {}}),
        f"latency {LARGE}": {"status": "left out", "seconds": 0.0, "estimate_s": 90, "why": "about 90 s, 12 s were left"},
    }


@pytest.mark.parametrize(
    ("ratio", "ours", "suite", "expected"),
    [(1.4, 1.01, 950.0, ["met"] * 3), (1.1, 1.03, 700.0, ["missed"] * 3), (0.95, 0.99, 900.0, ["missed", "met", "met"])],
)
def test_targets_are_held_against_the_record(ratio: float, ours: float, suite: float, expected: list[str]) -> None:
    """Each target of a measured model is met or missed; those of a model that was left out are not measured, with the reason."""
    found = _module("targets").targets(_outcomes(ratio, ours, suite))
    assert [target["outcome"] for target in found] == [*expected, *["not measured"] * 3]
    assert found[3]["why"] == f"latency {LARGE}: about 90 s, 12 s were left"


def test_a_dominated_int8_is_said_with_its_layers() -> None:
    """INT8 that is no faster is called dominated, and the layers of both engines say why; a faster one is not."""
    targets = _module("targets").targets
    why = targets(_outcomes(0.95, 1, 1000))[0]["why"]
    assert why.startswith(
        "INT8 is dominated by FP16 here: 0.95x [0.93, 0.97]. Layers of INT8: 60 % of the multiply-adds in INT8, attention not"
    )
    assert "of FP16: 100 % of the multiply-adds in FP16, attention fused, 2 reformats" in why
    assert "dominated" not in targets(_outcomes(1.1, 1, 1000))[0]["why"]


def test_the_page_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    """Only what stands between the marks is replaced: by the machine, targets, speed, plans, layers and what did not run."""
    outcomes = _outcomes(0.95, 1.0, 950)
    device = {"name": "Card", "sm": "8.9", "driver": "1.2"}
    record = {"created": "2026-01-02", "device": device, "pythons": {}, "engines_left_out": {"trt-fp8": "FP8 takes TensorRT 10"}}
    record |= {"parts": outcomes, "targets": _module("targets").targets(outcomes)}
    page, file = tmp_path / "gpu.md", tmp_path / "card-2026-01-02.json"
    page.write_text("# Title\nby hand\n<!-- tables: begin -->\nold\n<!-- tables: end -->\nend\n")
    file.write_text(json.dumps(record))
    assert _gpu("--from-record", str(file), "--page", str(page)).returncode == 0
    text = page.read_text()
    assert text.startswith("# Title\nby hand\n")
    assert text.endswith("\nend\n")
    assert "old" not in text
    assert "Recorded 2026-01-02 on Card, compute capability 8.9, driver 1.2" in text
    assert "| trt-fp16 | 32 | 2.000 [1.800, 2.200] | 2.400 | – | 3.000 [2.700, 3.300] |" in text
    assert "| trt-fp16 | image | 2.5 | 12.5 | 300 |" in text
    assert "| trt-fp16 | 1 | 2.000 | 1.900 | – | trtexec is not on the PATH | +0.0 |" in text
    assert "| image-b32-device | 0.95 [0.93, 0.97] | 25 |" in text
    assert "- trt-fp8: FP8 takes TensorRT 10" in text
    assert f"- build {MODEL}, trt-int8: node X was refused" in text
    assert f"- latency {LARGE}: left out: about 90 s, 12 s were left" in text


def test_the_pages_marks_are_there() -> None:
    """The page that a run writes into has its marks, once each."""
    text, page = (ROOT / "docs" / "results" / "gpu.md").read_text(), _module("page")
    assert (text.count(page.BEGIN), text.count(page.END)) == (1, 1)


def _gpu(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FOLDER), *options], capture_output=True, text=True, check=False, cwd=ROOT)


@without_gpu
def test_without_a_gpu_it_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    """Nothing is run and nothing is written."""
    run = _gpu("--work", str(tmp_path / "work"))
    assert run.returncode == 4
    assert run.stderr.startswith("nothing can be measured; found no ")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_latency_of_what_runs_here(tmp_path: Path) -> None:
    """The part that measures opens every engine by itself: those that cannot run are named, the others measured."""
    from toy_bundle import make_toy_bundle

    make_toy_bundle(tmp_path / "bundle")
    arguments = {"groups": [[str(tmp_path / "bundle"), ["ort-fp32", "trt-fp16"]], ["nowhere", ["trt-int8"]]], "batch_sizes": [2]}
    arguments |= {"seconds": 0.01, "samples": str(tmp_path / "samples.json"), "compiled": str(tmp_path)}
    made = _module("speed").latency(arguments)
    assert set(made["bench"]) == {"ort-fp32"}
    summary = made["bench"]["ort-fp32"]["image-b2"]
    assert summary["p50_s_ci95"][0] <= summary["p50_s"] <= summary["p50_s_ci95"][1]
    assert "samples_s" not in summary
    assert len(json.loads((tmp_path / "samples.json").read_text())["ort-fp32"]["image-b2"]) == summary["n"]
    assert made["failed"]["trt-int8"] == "no bundle"
    assert "unknown engine" in made["failed"]["trt-fp16"]


@without_gpu
def test_rehearsal(tmp_path: Path) -> None:
    """Without a GPU, graphs, plans of TensorRT-RTX, the suite, the record and the page are really made, then it ends with 4."""
    run = _gpu("--rehearse", "--work", str(tmp_path))
    assert run.returncode == 4, run.stderr
    record = json.loads((tmp_path / "rehearsal.json").read_text())
    statuses = {name: part["status"] for name, part in record["parts"].items()}
    built = statuses.pop("build demo:under")
    assert statuses == {"export demo:under": "done", "suite demo:under": "done"}
    rtx = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
    assert built == ("done" if rtx else "failed"), record["parts"]["build demo:under"]
    if rtx:
        assert set(record["parts"]["build demo:under"]["result"]["plans"]) == {"trtrtx-fp32", "trtrtx-fp16", "trtrtx-int8"}
    assert {target["outcome"] for target in record["targets"]} == {"not measured"}
    assert record["device"] is None
    page = (tmp_path / "rehearsal.md").read_text()
    assert "**no GPU: a rehearsal, no figure**" in page
    assert "| demo:under | scenes | ort-fp32 |" in page
    assert "### Latency" not in page
