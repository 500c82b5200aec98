"""The export command: its options reach the recipe, its streams are clean, its exit codes are the published ones."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipq.artifact import Bundle
from clipq.cli.main import export_main, main
from clipq.evaluate.classifiers import classifier_names, read_classifier, read_vectors
from clipq.export import pipeline
from clipq.export.keep import ChooseKept
from clipq.recipe import Recipe


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of the pipeline, which is not run."""
    seen: dict[str, Any] = {}

    def record(recipe: Recipe, folder: Path, *, resume: bool, choose_kept: ChooseKept | None) -> Bundle:
        seen.update(recipe=recipe, folder=folder, resume=resume, search=choose_kept is not None)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export_bundle", record)
    return seen


def test_every_option_reaches_the_recipe(asked: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is dropped on the way; an interrupt ends with 130."""
    options = "--engines ort-fp32,ort-int8-static --towers image,text --calib wds:/data:train --calib-n 64 --calib-method mse"
    mixed = "--mha int8 --sensitivity --max-drop acc1=0.01 --max-drop fpr95=0.02 --calib-ood wds:/other"
    rest = "--calib-sampling balanced --batch 1,8,16 --graphs-only --compat version --compute-capability 8.9,12.0 --seed 3 --resume"
    assert main(["export", "M:P", "-o", str(tmp_path), *options.split(), *mixed.split(), *rest.split()]) == 130
    expected = Recipe(
        model="M:P",
        engines=("ort-fp32", "ort-int8-static"),
        towers=("image", "text"),
        calib="wds:/data:train",
        calib_n=64,
        calib_method="mse",
        calib_sampling="balanced",
        mha="int8",
        sensitivity=True,
        max_drop=("acc1=0.01", "fpr95=0.02"),
        calib_ood="wds:/other",
        batch=(1, 8, 16),
        graphs_only=True,
        compatibility=("version",),
        compute_capabilities=("8.9", "12.0"),
        seed=3,
    )
    assert asked == {"recipe": expected, "folder": tmp_path, "resume": True, "search": True}


def test_the_defaults_are_the_recipes(asked: dict[str, Any], tmp_path: Path) -> None:
    """``clipq-export MODEL -o DIR`` is the shortest form."""
    assert export_main(["demo", "-o", str(tmp_path)]) == 130
    assert asked == {"recipe": Recipe("demo"), "folder": tmp_path, "resume": False, "search": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engines", "ort-int8-statik"], "Did you mean 'ort-int8-static'"),
        (["--towers", "imag"], "Did you mean 'image'"),
        (["--calib-method", "entropie"], "Did you mean 'entropy'"),
        (["--calib-n", "0"], "--calib-n is too small; found 0"),
        (["--calib-n", "many"], "invalid int value"),
        (["--calib-sampling", "fair"], "invalid choice"),
        ([], "ort-int8-static needs calibration images"),
        (["--batch", "1,8"], "--batch is wrong; found 1,8"),
        (["--batch", "8,4,16"], "--batch is wrong; found 8,4,16"),
        (["--batch", "one"], "invalid batch 'one'"),
        (["--mha", "int4"], "Did you mean 'int8'"),
        (["--compat", "versions"], "Did you mean 'version'"),
        (["--engines", "ort-fp32", "--max-drop", "acc1=0.01"], "--sensitivity and --max-drop are about static quantization"),
        (["--rebuild", "bundle"], "--rebuild takes a bundle instead of a model"),
        (["--batch", "1,32,100000000"], "largest up to 65536"),
    ],
)
def test_wrong_options_are_usage_errors(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, exit code 2, and no folder is made."""
    assert export_main(["ViT-B-32:openai", "-o", str(tmp_path / "new"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "new").exists()


def test_rebuild_drops_no_option_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would make other graphs is refused where graphs are not made."""
    command = ["--rebuild", "bundle", "-o", str(tmp_path / "new"), "--graphs-only", "--calib-n", "3", "--max-drop", "acc1=0.1"]
    assert export_main([*command, "--classifier", "scenes=synthetic:scenes"]) == 2
    assert "found --calib-n, --graphs-only, --max-drop, --classifier" in capsys.readouterr().err


def test_without_the_export_extra_the_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On an edge install the command ends with 4 and what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    assert export_main(["demo", "-o", str(tmp_path / "new")]) == 4
    assert "onnx is not installed. Run: pip install 'clipq[export]'" in capsys.readouterr().err


def test_json_on_stdout_and_nothing_else(tiny_checkpoint: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script can read stdout as it is; --quiet empties stderr."""
    command = [tiny_checkpoint("vit"), "-o", str(tmp_path / "b"), "--engines", "ort-fp32", "--json", "-", "--quiet"]
    assert export_main(command) == 0
    streams = capsys.readouterr()
    summary = json.loads(streams.out)
    assert streams.err == ""
    assert list(summary["engines"]) == ["torch-fp32", "ort-fp32"]
    assert summary["engines"]["ort-fp32"]["size_bytes"] > 1_000_000
    assert summary["parity"]["image"]["min_cosine"] > 0.999999


def test_classifiers_are_made_with_the_bundle_and_added_to_a_finished_one(
    tiny_checkpoint: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class embeddings by PyTorch and by the ONNX text tower, of the data that is named; what cannot be made is told first."""
    command = [tiny_checkpoint("vit"), "-o", str(tmp_path / "b"), "--engines", "ort-fp32", "--quiet"]
    assert export_main([*command, "--classifier", "scenes"]) == 2
    assert "--classifier scenes names no data" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert export_main([*command, "--classifier", "scenes=synthetic:scenes"]) == 0
    assert export_main([*command, "--classifier", "again=synthetic:scenes:calibration", "--resume"]) == 0
    bundle = Bundle.open(tmp_path / "b")
    bundle.verify()
    assert classifier_names(bundle) == ["again", "scenes"]
    found = read_classifier(bundle, "scenes")
    torch, onnx = (read_vectors(bundle, found, engine_id) for engine_id in ("torch-fp32", "ort-fp32"))
    np.testing.assert_allclose(torch, onnx, atol=1e-5)
    assert not np.array_equal(torch, onnx)


def test_json_into_a_file(tiny_checkpoint: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes go to stderr and name the next command; stdout stays empty."""
    command = [tiny_checkpoint("vit"), "-o", str(tmp_path / "b"), "--engines", "torch-fp32", "--json", str(tmp_path / "s.json")]
    assert export_main(command) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert f"clipq eval {tmp_path / 'b'}" in streams.err
    assert json.loads((tmp_path / "s.json").read_text())["bundle"] == str(tmp_path / "b")
