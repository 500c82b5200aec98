"""The suite on a real export: a tiny open_clip model against FP32 PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipq.artifact import Bundle
from clipq.engines.table import open_engine
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.export.pipeline import export_bundle
from clipq.recipe import Recipe

OPTIONS = EvalOptions(data=("synthetic:scenes",), ood=("synthetic:scenes-far",), limit=64, bench_seconds=0, resamples=50)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with every engine that runs on a CPU; the tests only read it."""
    recipe = Recipe(model=tiny_checkpoint("vit"), calib="synthetic:scenes:calibration", calib_n=16, calib_method="minmax")
    return export_bundle(recipe, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture(scope="module")
def report(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its report against the default baseline."""
    return evaluate_bundle(exported, OPTIONS, tmp_path_factory.mktemp("report"))


def test_every_engine_is_compared_with_pytorch(report: dict[str, Any]) -> None:
    """torch-fp32 is the baseline, ships no file, and has no deltas; the others do and have."""
    assert report["baseline"] == "torch-fp32"
    assert set(report["verdict"]) == {"ort-fp32", "ort-int8-dynamic", "ort-int8-static"}
    assert report["engines"]["torch-fp32"]["size_bytes"] is None
    assert report["engines"]["torch-fp32"]["sha256"] == {}
    assert report["engines"]["ort-int8-static"]["size_bytes"] < report["engines"]["ort-fp32"]["size_bytes"]
    assert "layers" not in report["engines"]["torch-fp32"]
    for engine in ("ort-int8-static", "ort-int8-dynamic"):
        assert report["engines"][engine]["layers"]["multiply_adds"]["int8"] > 0.8
        assert "fallback" not in report["engines"][engine]["layers"]
    assert report["engines"]["ort-fp32"]["layers"]["multiply_adds"] == {"fp32": 1.0}
    (metrics,) = report["results"]["ort-int8-static"].values()
    assert metrics["acc1"]["delta"] is not None


def test_fp32_graph_answers_as_pytorch(report: dict[str, Any]) -> None:
    """The exported FP32 graph is the same model: no class changes, embeddings agree to rounding even after centring."""
    (paired,) = report["paired"]["ort-fp32"].values()
    assert paired["disagreement"] == 0
    assert paired["js_divergence"] < 1e-8
    assert paired["cosine_centred_mean"] > 1 - 1e-5
    (static,) = report["paired"]["ort-int8-static"].values()
    assert 0.9 < static["cosine_centred_mean"] < 1 - 1e-6


def test_towers_agree_engine_by_engine(exported: Bundle) -> None:
    """The same pixels and tokens through PyTorch and through ONNX Runtime, by the one protocol."""
    rng = np.random.default_rng(0)
    with open_engine(exported, "torch-fp32", 1) as torch_engine, open_engine(exported, "ort-fp32", 1) as ort_engine:
        pixels = rng.standard_normal((3, *ort_engine.towers["image"].input_shape)).astype(np.float32)
        tokens = rng.integers(1, 400, (3, *ort_engine.towers["text"].input_shape)).astype(np.int32)
        tokens[:, 10] = 49407  # the end of text
        np.testing.assert_allclose(ort_engine.run("image", pixels), torch_engine.run("image", pixels), atol=2e-5)
        np.testing.assert_allclose(ort_engine.run("text", tokens), torch_engine.run("text", tokens), atol=2e-5)
