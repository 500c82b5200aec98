"""Training from end to end on a tiny model: the bundle, interruptions, NaN, bad data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipq.artifact import Bundle
from clipq.calib_data.sampling import read_calibration_list
from clipq.engines.table import open_engine
from clipq.errors import DataError, ExportError, MissingRuntimeError, UsageError
from clipq.export.pipeline import complete, export_bundle
from clipq.export.qat import train as train_module
from clipq.export.qat.pairs import TrainingData
from clipq.export.qat.train import rate, rows_of
from clipq.export.qat.write import device_of
from clipq.files import sha256_file
from clipq.recipe import Recipe

GRAPH, TABLE = "towers/image.w8a8-lsq-mse.onnx", "towers/image.w8a8-lsq-mse.training.csv"


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Callable[[str], str]) -> Recipe:
    """The tiny ViT trained for a moment on a few drawn scenes."""
    return Recipe(
        tiny_checkpoint("vit"),
        ("ort-w8a8-lsq-mse",),
        qat_data="synthetic:scenes:calibration",
        qat_pairs=24,
        qat_steps=6,
        qat_batch=8,
        qat_every=2,
    )


@pytest.fixture(scope="module")
def bundle(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its bundle; shared, so do not change it."""
    return export_bundle(recipe, tmp_path_factory.mktemp("trained") / "new")


def test_the_bundle_holds_the_graph_its_table_and_the_list_of_pairs(bundle: Bundle) -> None:
    """Nothing else of training is left, and the list counts as seen by every evaluation."""
    from clipq.evaluate.datasets import calibration_hashes

    present = {str(path.relative_to(bundle.folder)) for path in bundle.folder.rglob("*") if path.is_file()}
    assert present == {*bundle.manifest.files, "manifest.json", ".lock"}
    assert {GRAPH, TABLE, "training_pairs.csv"} <= present
    assert "calibration.csv" not in present, "only training needs images, and it has its own"
    pairs = read_calibration_list(bundle.file("training_pairs.csv"))
    assert len(pairs) == 28
    assert calibration_hashes(bundle) == set(pairs.values())


def test_the_table_has_a_row_for_each_saved_state(bundle: Bundle) -> None:
    """Losses are means since the row before; the exam is in [0, 1]; the last row is in engine.json."""
    rows = list(csv.DictReader(bundle.file(TABLE).read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "2", "4", "6"]
    assert rows[0]["loss"] == ""
    for row in rows[1:]:
        assert float(row["loss"]) == pytest.approx(float(row["distillation"]) + float(row["features"]), rel=1e-5)
        assert 0 <= float(row["held_out_accuracy"]) <= 1
        assert 0.9 < float(row["held_out_cosine"]) <= 1.0001
    said = json.loads(bundle.file("engines/ort-w8a8-lsq-mse/engine.json").read_text())["graphs"][GRAPH]
    assert said["training"]["last"]["held_out_cosine"] == float(rows[-1]["held_out_cosine"])
    assert (said["training"]["layers"], said["training"]["steps"], said["training"]["stopped"]) == (8, 6, "")
    assert said["parity_torch"]["agreement"] == 1
    assert said["parity_torch"]["cosine"] > 0.9999
    assert said["scheme"].startswith("W8A8 QDQ")
    assert "images" not in said, "nothing was calibrated"
    assert len(said["ranges"]) == 8
    assert all(list(known) == ["clip"] for known in said["ranges"].values())


def test_the_engine_runs_and_is_near_fp32(bundle: Bundle) -> None:
    """Opened like any other engine, on inputs of the bundle."""
    with np.load(bundle.file("golden.npz"), allow_pickle=False) as golden, open_engine(bundle, "ort-w8a8-lsq-mse", threads=1) as engine:
        found, expected = engine.run("image", golden["pixels"]), golden["image_embedding"]
    cosine = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


_CHILD = """
import os, signal, sys
from pathlib import Path
from clipq.export.pipeline import export_bundle
from clipq.export.qat import train
from clipq.recipe import Recipe
import json
step = train.Run._step
def dying(self, number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number)
if sys.argv[1] == "kill":
    train.Run._step = dying
values = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[3]).items()}
export_bundle(Recipe(**values), Path(sys.argv[2]), resume=sys.argv[1] != "kill")
"""


def _child(how: str, folder: Path, recipe: Recipe) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, how, str(folder), json.dumps(recipe.to_json())]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_ends_in_the_same_engine(recipe: Recipe, bundle: Bundle, tmp_path: Path) -> None:
    """Kill -9 between two saved states, then --resume in another process: the bytes of an uninterrupted run."""
    folder = tmp_path / "killed"
    assert _child("kill", folder, recipe).returncode == -9
    assert (folder / "training" / "image.w8a8-lsq-mse.safetensors").exists()
    ended = _child("resume", folder, recipe)
    assert ended.returncode == 0, ended.stderr
    assert "Training goes on behind step 4" in ended.stderr
    for name in (GRAPH, TABLE):
        assert sha256_file(folder / name) == bundle.manifest.files[name].sha256, name
    assert not (folder / "training").exists()


def test_an_interrupted_run_ends_in_the_same_engine(
    recipe: Recipe, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in step 6, then --resume: behind step 4, to the bytes of an uninterrupted run."""
    step = train_module.Run._step

    def interrupted(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Run, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(recipe, tmp_path / "new")
    made = export_bundle(recipe, tmp_path / "new", resume=True)
    assert "Training goes on behind step 4" in capsys.readouterr().err
    for name in (GRAPH, TABLE):
        assert made.manifest.files[name].sha256 == bundle.manifest.files[name].sha256, name


def _spoiled(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Make the loss NaN from a step on."""
    losses = train_module.Lesson.losses
    count = Counter[str]()

    def wrong(self, names, embedding, rows):
        count["steps"] += 1
        return losses(self, names, embedding * (float("nan") if count["steps"] > first else 1), rows)

    monkeypatch.setattr(train_module.Lesson, "losses", wrong)


def test_nan_keeps_the_last_good_step(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss is NaN in step 4: step 2 becomes the engine, and a line says so."""
    _spoiled(monkeypatch, 3)
    made = export_bundle(recipe, tmp_path / "new")
    assert "Training stopped: the loss of step 4 is nan; step 2 is kept" in capsys.readouterr().err
    said = json.loads(made.file("engines/ort-w8a8-lsq-mse/engine.json").read_text())["graphs"][GRAPH]["training"]
    assert (said["steps"], said["stopped"], said["last"]["step"]) == (2, "the loss of step 4 is nan", 2)
    assert made.file(TABLE).read_text().count("\n") == 3


def test_nan_at_once_is_an_error(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a good step there is nothing to keep, and no graph."""
    _spoiled(monkeypatch, 0)
    with pytest.raises(ExportError, match=r"training failed; found the loss of step 1 is nan\. Lower --qat-lr"):
        export_bundle(recipe, tmp_path / "new")
    assert not (tmp_path / "new" / GRAPH).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qat_batch": 25}, "too few pairs to train on in synthetic:scenes:calibration; found 20 with 2"),
        ({"qat_data": "synthetic:captions"}, "unknown synthetic data set"),
    ],
)
def test_unusable_pairs_are_told_in_a_line(recipe: Recipe, changes: dict, message: str, tmp_path: Path) -> None:
    """Fewer pairs than a batch, and data that is not there."""
    with pytest.raises((DataError, UsageError), match=message):
        export_bundle(replace(recipe, **changes), tmp_path / "new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engines": ("ort-fp32",)}, "nothing is trained; found --qat-data, --qat-pairs"),
        ({"engines": ("ort-w8a8-ste",), "qat_train": "scales"}, "ste learns no scales"),
        ({"patch_tokens": True}, "methods with training have no patch tokens; found lsq-mse"),
        ({"qat_data": ""}, "ort-w8a8-lsq-mse needs calibration images"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(recipe: Recipe, changes: dict, message: str) -> None:
    """Before any work."""
    with pytest.raises(UsageError, match=message):
        complete(replace(recipe, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"qat_steps": 0},
        {"qat_batch": 1},
        {"qat_every": 0},
        {"qat_pairs": 1},
        {"qat_lr": 0.0},
        {"qat_scale_lr": float("nan")},
        {"qat_train": "x"},
    ],
)
def test_numbers_that_make_no_sense_are_usage_errors(changes: dict) -> None:
    """The recipe refuses them itself."""
    with pytest.raises(UsageError):
        Recipe("demo", **changes)


def test_cuda_where_there_is_none() -> None:
    """Asked for by name it is an error, left open it is the processor."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert device_of("auto").type == device_of("cpu").type == "cpu"
    with pytest.raises(MissingRuntimeError, match="no CUDA device here"):
        device_of("cuda")


def test_every_pair_is_seen_once_per_round() -> None:
    """Across the borders of rounds and batches, and the same for the same seed."""
    drawn = np.concatenate([rows_of(step, 4, 10, seed=3) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])
    assert list(rows_of(2, 4, 10, seed=3)) == list(drawn[8:12])


def test_the_rate_rises_and_falls() -> None:
    """Never above 1 or below 0, and highest at the end of the warm-up."""
    rates = [rate(step, 200) for step in range(200)]
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert (max(rates), rates[10]) == (1, 1)
    assert 0 <= rates[-1] < 0.001


def test_captions_of_images_are_used_where_there_are_any(tmp_path: Path, recipe: Recipe, tiny_checkpoint: Callable[[str], str]) -> None:
    """Data with captions needs no class names: each image brings one of its own, and the held-out ones are the candidates."""
    from clipq.calib_data.scene_captions import captions_of
    from clipq.engines.torch.checkpoint import load_checkpoint
    from clipq.export.tokenizer import export_tokenizer

    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    export_tokenizer(checkpoint, tmp_path / "tokenizer", ())
    data = TrainingData(replace(recipe, qat_data="synthetic:scenes-captions"), tmp_path, checkpoint.preprocess)
    said = data.write_list()
    assert (said["pairs"], said["held_out"]) == (20, 8)
    assert all(text in captions_of(position) for text, position in zip(data._captions(), data.index.positions, strict=True))
    pairs = data.pairs(checkpoint, said["digest"])
    assert pairs.right is None
    assert pairs.pixels.dtype == np.uint8
    assert len(pairs.pixels) == len(pairs.tokens) == len(pairs.groups) == 28
    np.testing.assert_allclose(np.linalg.norm(pairs.images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        pairs.images[:2], [row / np.linalg.norm(row) for row in checkpoint.embed("image", data.normalised(pairs.pixels[:2]))], atol=1e-5
    )
    with pytest.raises(DataError, match="changed during the export"):
        data.pairs(checkpoint, "another")
    data.clear()
    assert not (tmp_path / "training").exists()
