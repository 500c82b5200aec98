"""Latency: engines interleaved, percentiles only with enough calls, memory of a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_bundle import make_toy_bundle

from clipq.engines.table import open_engine
from clipq.errors import EngineError, UsageError
from clipq.evaluate import latency
from clipq.evaluate.latency import CALLS_PER_TURN, WARM_UP, bench, bench_bundle, footprint, interleaved, measure_batch, summarise


class _Logged:
    """Not an engine, only something that is called like one."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log


class _Timed(_Logged):
    """The same on a device that keeps time."""

    def run(self, _tower: str, _pixels: object) -> None:
        self.log.append(f"{self.name} run")

    def device_seconds(self, _tower: str, batch: Any, calls: int) -> list[float]:
        self.log.append(f"{self.name} device")
        return [len(batch) * 0.25] * calls


def _count(engine: _Logged, calls: int) -> list[float]:
    engine.log += [engine.name] * calls
    return [1.0] * calls


def test_engines_take_turns() -> None:
    """After warm-up, each turn is one uncounted call and the counted ones, engine after engine, equally many each."""
    log: list[str] = []
    engines: dict[str, Any] = {name: _Logged(name, log) for name in "abc"}
    samples = interleaved(engines, _count, seconds=0.0)
    turn = 1 + CALLS_PER_TURN
    assert log == [name for name in "abc" for _ in range(WARM_UP)] + [name for name in "abc" for _ in range(turn)]
    assert {name: len(taken) for name, taken in samples.items()} == dict.fromkeys("abc", CALLS_PER_TURN)


def test_a_device_that_keeps_time_is_asked() -> None:
    """Its figures are a scenario of their own, beside the wall clock's, and say what they leave out; other engines have none."""
    log: list[str] = []
    engines: dict[str, Any] = {"gpu": _Timed("gpu", log)}
    made = measure_batch(engines, np.zeros((2, 3, 2, 2), np.float32), seconds=0.0)
    assert set(made["gpu"]) == {"image-b2", "image-b2-device"}
    device = made["gpu"]["image-b2-device"]
    assert (device["p50_s"], device["images_per_s"], device["n"]) == (0.5, 4.0, CALLS_PER_TURN)
    assert "nothing is copied" in device["includes"]
    assert made["gpu"]["image-b2"]["clock"] == "time.perf_counter"


@pytest.mark.parametrize(
    ("n", "p90", "p99"), [(4, False, False), (28, False, False), (29, True, False), (298, True, False), (299, True, True)]
)
def test_percentiles_need_samples_above_them(n: int, *, p90: bool, p99: bool) -> None:
    """A percentile that is given lies below the slowest call with 95 % confidence; what is left out says why."""
    made = summarise([0.01 * (i + 1) for i in range(n)], batch_size=2)
    assert (made["p90_s"] is not None, made["p99_s"] is not None) == (p90, p99)
    assert set(made["missing"]) == {name for name in ("p90_s", "p99_s") if made[name] is None}
    assert made["p50_s"] == pytest.approx(0.01 * (n + 1) / 2)
    assert made["images_per_s"] == pytest.approx(2 * n / (0.01 * n * (n + 1) / 2))
    assert len(made["samples_s"]) == made["n"] == n


def test_batch_that_an_engine_does_not_take_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan built for batches up to 1 has no scenario at 2, and a line says so; the others are measured there."""
    bundle = make_toy_bundle(tmp_path)

    def narrow(bundle: Any, engine_id: str, threads: int, **more: Any) -> Any:
        engine = open_engine(bundle, engine_id, threads, **more)
        engine.batches = (1, 1) if engine_id == "ort-int8-static" else engine.batches
        return engine

    monkeypatch.setattr(latency, "open_engine", narrow)
    made = bench(bundle, ["ort-fp32", "ort-int8-static"], threads=1, seconds=0.001, batch_sizes=(1, 2))
    assert set(made["ort-fp32"]) == {"image-b1", "image-b2", "artefact"}
    assert set(made["ort-int8-static"]) == {"image-b1", "artefact"}
    assert "ort-int8-static takes batches of 1 to 1: not measured at 2" in capsys.readouterr().err


def test_bench_measures_every_engine(tmp_path: Path) -> None:
    """Every batch asked for, with threads stated; size from the manifest; load time and memory from a fresh process."""
    bundle = make_toy_bundle(tmp_path)
    made = bench(bundle, ["ort-fp32", "ort-int8-static"], threads=1, seconds=0.01, batch_sizes=(1, 3, 32))
    assert set(made) == {"ort-fp32", "ort-int8-static"}
    for scenarios in made.values():
        assert set(scenarios) == {"image-b1", "image-b3", "image-b32", "artefact"}
        assert scenarios["image-b32"]["batch"] == 32
        assert scenarios["image-b1"]["threads"] == 1
        assert scenarios["image-b1"]["p50_s"] > 0
        assert scenarios["artefact"]["load_s"] > 0
        assert 20e6 < scenarios["artefact"]["peak_rss_bytes"] < 2e9
    files = ("towers/image.fp32.onnx", "towers/text.fp32.onnx")
    assert made["ort-fp32"]["artefact"]["size_bytes"] == sum((tmp_path / name).stat().st_size for name in files)


def test_memory_is_that_of_the_engine_alone(tmp_path: Path) -> None:
    """A parent that holds much memory does not show in the figure."""
    bundle = make_toy_bundle(tmp_path)
    small = footprint(bundle, "ort-fp32", 1)["peak_rss_bytes"]
    ballast = np.ones(60_000_000)
    large = footprint(bundle, "ort-fp32", 1)["peak_rss_bytes"]
    assert ballast.nbytes > 4e8
    assert large < small + 1e8


def test_a_failing_engine_is_one_line(tmp_path: Path) -> None:
    """The process's own line is handed on."""
    bundle = make_toy_bundle(tmp_path)
    (tmp_path / "towers/image.fp32.onnx").write_bytes(b"x")
    with pytest.raises(EngineError, match="not the file the manifest names"):
        footprint(bundle, "ort-fp32", 1)


def test_numbers_that_make_no_sense_are_usage_errors(tmp_path: Path) -> None:
    """Zero threads or seconds measure nothing."""
    bundle = make_toy_bundle(tmp_path)
    with pytest.raises(UsageError, match="--threads is too small"):
        bench_bundle(bundle, (), threads=0, seconds=1)
    with pytest.raises(UsageError, match="--bench-seconds is wrong"):
        bench_bundle(bundle, (), threads=None, seconds=0)
    with pytest.raises(UsageError, match="--bench-seconds is wrong; found nan"):
        bench_bundle(bundle, (), threads=None, seconds=float("nan"))
    with pytest.raises(UsageError, match="--batch is wrong; found 0,1"):
        bench_bundle(bundle, (), threads=None, seconds=1, batch_sizes=(0, 1))
