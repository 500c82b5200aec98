"""Planted outliers: the function stays, plain W8A8 fails, and SmoothQuant and rotation do not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from toy_clip import embed, inputs_of, random_clip, relative_difference

from clipq.artifact import Bundle
from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.table import open_source
from clipq.engines.table import open_engine
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.evaluate.zeroshot import classifier, cosines, prompts
from clipq.export.pipeline import export_bundle
from clipq.recipe import Recipe

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "planted.py"
METHODS = ("percentile", "minmax", "smoothquant", "rotation")
IMAGES = 1000
FACTOR = 100.0  # at 50 the demo model loses 1 to 9 points, with 4 channels: two bits are nearly enough for its scenes


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    """Return the script that plants them."""
    spec = importlib.util.spec_from_file_location("planted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tower", ["image", "text"])
def test_planting_leaves_the_function(planted: ModuleType, tower: str) -> None:
    """Embeddings stay, and what the first block reads has a channel 50 times as large as it was."""
    model = random_clip()
    block = (model.visual if tower == "image" else model).transformer.resblocks[0]
    before, scale = embed(model, tower, inputs_of(tower)), block.ln_1.weight.clone()
    planted.plant(model, tower)
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-4
    grown = block.ln_1.weight / scale
    assert torch.isclose(grown, torch.tensor(50.0)).sum() == planted.CHANNELS
    assert torch.isclose(grown, torch.tensor(1.0)).sum() == len(grown) - planted.CHANNELS


@pytest.fixture(scope="module")
def accuracy(planted: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """Return a function from an engine to its accuracy in per cent, of a demo model with planted outliers."""
    folder = tmp_path_factory.mktemp("planted")
    model_id = planted.write_planted("demo:under", folder / "model", factor=FACTOR)
    engines = ("torch-fp32", *(f"ort-w8a8-{name}" for name in METHODS))
    recipe = Recipe(model=model_id, engines=engines, calib="synthetic:scenes:calibration", calib_n=64)
    bundle = export_bundle(recipe, folder / "bundle")
    checkpoint, source = load_checkpoint("demo:under"), open_source("synthetic:scenes:test")
    tokens = np.asarray(checkpoint.tokenizer(prompts(source.classnames, source.templates))).astype(np.int32)
    classes = classifier(checkpoint.embed("text", tokens), len(source.templates), "demo")
    index = build_index(source, limit=IMAGES, seed=0)
    found = list(batches(source, index, checkpoint.preprocess))
    labels = np.concatenate([np.asarray(index.labels)[np.asarray(batch.rows)] for batch in found])
    return lambda engine_id: _accuracy(bundle, engine_id, [np.asarray(batch.pixels) for batch in found], labels, classes)


def _accuracy(bundle: Bundle, engine_id: str, pixels: list[np.ndarray], labels: np.ndarray, classes: np.ndarray) -> float:
    with open_engine(bundle, engine_id) as engine:
        embeddings = np.concatenate([engine.run("image", batch) for batch in pixels])
    return float(100 * np.mean(cosines(embeddings, classes, engine_id).argmax(axis=1) == labels))


@pytest.mark.slow
def test_outliers_break_plain_ranges_alone(accuracy: Callable[[str], float]) -> None:
    """Plain W8A8 loses more than 10 points, with either range; the methods made for outliers lose less than 1."""
    exact = accuracy("torch-fp32")
    lost = {name: exact - accuracy(f"ort-w8a8-{name}") for name in METHODS}
    assert lost["percentile"] > 10
    assert lost["minmax"] > 10
    assert lost["smoothquant"] < 1
    assert lost["rotation"] < 1
