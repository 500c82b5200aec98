"""A fresh environment with the base install and ONNX Runtime alone verifies, measures and evaluates a bundle: torch is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_golden import make_golden_bundle

from clipq.artifact import Bundle
from clipq.calib_data.synthetic import open_synthetic
from clipq.evaluate.classifier_making import add_classifiers

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "torchvision", "open_clip", "onnx", "jinja2", "pyarrow")
Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs a program of an environment into which the wheel was installed with ``[cpu]``."""
    folder = tmp_path_factory.mktemp("edge")
    venv.create(folder, with_pip=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
        assert done.returncode == code, done.stderr
        return done

    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = wheels.glob("clipq-*.whl")
    run("python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a toy bundle with golden files and a classifier."""
    folder = tmp_path_factory.mktemp("bundle")
    make_golden_bundle(folder)
    return add_classifiers(folder, {"scenes": "synthetic:scenes"})


@pytest.mark.parametrize("library", ABSENT)
def test_it_is_not_there(edge: Run, library: str) -> None:
    """Neither torch nor anything of the export or report extras can be imported."""
    assert "ModuleNotFoundError" in edge("python", "-c", f"import {library}", code=1).stderr


def test_verify_runs(edge: Run, bundle: Bundle, tmp_path: Path) -> None:
    """Every engine is verified, the pixels are compared, and another file than the manifest's ends with 5."""
    edge("clipq", "verify", bundle.folder, "--json", tmp_path / "edge.json", "--bench-seconds", "0.1")
    found = json.loads((tmp_path / "edge.json").read_text())
    assert found["problems"] == []
    assert set(found["engines"]) == set(found["bench"]) == set(bundle.manifest.engines)
    assert found["preprocessing"]["pictures"] == 7
    assert not {"torch", "torchvision", "open_clip_torch", "onnx"} & set(found["provenance"]["versions"])
    edge("clipq", "compare", tmp_path / "edge.json", tmp_path / "edge.json", "--fail-on", "cosine_min.value<0.9")


def test_bench_runs(edge: Run, bundle: Bundle, tmp_path: Path) -> None:
    """Latency of every engine."""
    edge("clipq", "bench", bundle.folder, "--bench-seconds", "0.1", "--batch", "1", "-o", tmp_path)
    assert set(json.loads((tmp_path / "bench.json").read_text())["bench"]) == set(bundle.manifest.engines)


@pytest.mark.parametrize("classifier", [(), ("--classifier", "scenes")])
def test_eval_runs(edge: Run, bundle: Bundle, tmp_path: Path, classifier: tuple[str, ...]) -> None:
    """A folder of pictures is evaluated, by the tokenizer or by the classifier of the bundle; the report is JSON and Markdown."""
    scenes = open_synthetic("scenes")
    for sample in scenes.read(range(60)):
        folder = tmp_path / "photos" / scenes.classnames[sample.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sample.id.rpartition("/")[2]).write_bytes(sample.data)
    options = ("--baseline", "ort-fp32", "--limit", "40", "--resamples", "20", "--no-bench", *classifier)
    done = edge("clipq", "eval", bundle.folder, "--data", f"imagefolder:{tmp_path / 'photos'}", *options, "-o", tmp_path / "out")
    assert "report.html will not be written" in done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    (facts,) = report["datasets"].values()
    assert facts["n"] == 40
    assert (tmp_path / "out/report.md").stat().st_size > 0


def test_the_baseline_that_is_not_there_is_named(edge: Run, bundle: Bundle, tmp_path: Path) -> None:
    """FP32 PyTorch is missing here: asked for, it ends with 2 in a bundle without it."""
    done = edge("clipq", "eval", bundle.folder, "--data", "synthetic:scenes", "--no-bench", "-o", tmp_path, code=2)
    assert "torch-fp32" in done.stderr
