"""An arm per engine with a logit scale fitted elsewhere: planted errors of scale are found and mended, nothing else moves."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from toy_bundle import MODEL, make_toy_bundle

from clipq.calib_data.synthetic import open_synthetic
from clipq.cli.main import main
from clipq.errors import DataError, UsageError
from clipq.evaluate.arms import arm_of, describe_arms, fit_scales, require_softmax
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.metrics.probabilities import softmax
from clipq.evaluate.scoring import score
from clipq.evaluate.store import Store
from clipq.evaluate.zeroshot import l2_normalised

ID, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-far"))
CLASSES, DIM, SCALE = 6, 16, 20.0
ENGINES = ("torch-fp32", "int8")


def _store(folder: Path, name: str, rows: np.ndarray) -> Store:
    store = Store(folder, {"name": name})
    store.append(rows.astype(np.float32))
    store.finish()
    return store


def _embedded(folder: Path, seed: int, *, n: int = 4000, foreign: bool = False) -> Embedded:
    """Embeddings whose labels are drawn from the softmax at scale 20: at that scale they are calibrated, engine by engine alike."""
    rng = np.random.default_rng(seed)
    texts = np.random.default_rng(0).standard_normal((CLASSES, DIM)).astype(np.float32)
    images = rng.standard_normal((n, DIM)).astype(np.float32)
    cosines = l2_normalised(images, "") @ l2_normalised(texts, "").T
    labels = (rng.uniform(size=(n, 1)) > softmax(SCALE * cosines).cumsum(axis=1)).sum(axis=1).clip(max=CLASSES - 1)
    index = SimpleNamespace(data_id="d", labels=labels, ids=tuple(map(str, range(n))), digest=f"{seed:064d}")
    here: Any = SimpleNamespace(index=index, source=SimpleNamespace(templates=("{c}",), classnames=("x",) * CLASSES), distance=None)
    moved = {name: images + 0.01 * i * rng.standard_normal(images.shape) for i, name in enumerate(ENGINES)}
    stores = {"d": {name: _store(folder, f"{name} {seed}", rows) for name, rows in moved.items()}}
    outside: dict[str, Any] = {}
    if foreign:
        outside["o"] = SimpleNamespace(index=SimpleNamespace(data_id="o", labels=np.full(n, -1), ids=index.ids), source=None, distance=None)
        stores["o"] = {name: _store(folder, f"{name} {seed} o", rng.standard_normal((n, DIM))) for name in ENGINES}
    texts_of = {"d": dict.fromkeys(ENGINES, _store(folder, f"texts {seed}", texts))}
    readable = dict.fromkeys(stores, np.ones(n, np.bool_))
    return Embedded(ENGINES, {"d": here}, outside, readable, stores, texts_of)


def test_a_wrong_scale_is_found_and_mended(tmp_path: Path) -> None:
    """Logits scaled by 2 too much: the arms find 20 again on other images, their ECE falls to chance; MCM does not move at all."""
    wrong = replace(MODEL, logit_scale=2 * SCALE)
    scales = fit_scales(_embedded(tmp_path, 1), wrong)
    assert scales["torch-fp32"] == pytest.approx(SCALE, rel=0.05)
    assert scales["int8"] == pytest.approx(SCALE, rel=0.05)
    found = score(_embedded(tmp_path, 2, foreign=True), wrong, resamples=50, seed=0, scales=scales)
    assert list(found.results) == ["torch-fp32", "int8", "torch-fp32+scale", "int8+scale"]
    for engine in ENGINES:
        plain, arm = (found.results[name]["d"] for name in (engine, arm_of(engine)))
        assert plain["ece15"]["value"] > 0.07
        assert arm["ece15"]["value"] < 0.03
        assert arm["acc1"]["value"] == plain["acc1"]["value"]
        assert arm["temperature"]["value"] == pytest.approx(1.0, rel=0.06)
        ood, ood_arm = (found.ood[name]["d|o"] for name in (engine, arm_of(engine)))
        for name in ("mcm", "energy_cos", "maxlogit"):
            assert ood_arm[name]["auroc"]["value"] == ood[name]["auroc"]["value"], name
        assert found.thresholds[arm_of(engine)]["d"]["mcm"] == found.thresholds[engine]["d"]["mcm"]
    base = found.results["torch-fp32"]["d"]
    for engine in ("int8", "torch-fp32+scale", "int8+scale"):
        entry = found.results[engine]["d"]["ece15"]
        assert entry["delta"] == pytest.approx(entry["value"] - base["ece15"]["value"])
        assert entry["p_value_holm"] >= entry["p_value"]
    assert set(found.paired) == {"int8", "torch-fp32+scale", "int8+scale"}
    assert found.paired["torch-fp32+scale"]["d"]["disagreement"] == 0
    assert found.paired["torch-fp32+scale"]["d"]["temperature_ratio"] == pytest.approx(0.5, rel=0.06)


def test_arms_are_what_their_scale_makes_of_the_logits(tmp_path: Path) -> None:
    """The arm's figures are those of the cosines times its scale, computed apart."""
    embedded = _embedded(tmp_path, 3, n=300)
    found = score(embedded, replace(MODEL, logit_scale=40.0), resamples=5, seed=0, scales={"int8": 7.0})
    assert list(found.results) == [*ENGINES, "int8+scale"]
    cosines = l2_normalised(embedded.images("int8", "d"), "") @ embedded.classes("int8", "d").T
    outcomes = outcomes_from_logits(7.0 * cosines, embedded.inside["d"].index.labels)
    assert found.results["int8+scale"]["d"]["nll"]["value"] == pytest.approx(outcomes.nll.mean(), rel=1e-6)
    rows = found.samples["engine"] == "int8+scale"
    np.testing.assert_allclose(found.samples["confidence"][rows].astype(float), outcomes.confidence, rtol=1e-5)


def test_without_errors_there_is_no_best_scale(tmp_path: Path) -> None:
    """A set on which everything is right says nothing about the scale."""
    embedded = _embedded(tmp_path, 4, n=50)
    cosines = l2_normalised(embedded.images("torch-fp32", "d"), "") @ embedded.classes("torch-fp32", "d").T
    embedded.inside["d"].index.labels = cosines.argmax(axis=1)
    with pytest.raises(DataError, match="no logit scale is the best for torch-fp32 on d"):
        fit_scales(embedded, MODEL)


def test_sigmoid_models_are_refused() -> None:
    """SigLIP's scale and bias belong together."""
    require_softmax(MODEL)
    with pytest.raises(UsageError, match="sigmoid with a bias"):
        require_softmax(replace(MODEL, logit_bias=-5.0))


def test_an_arm_tells_what_it_is(tmp_path: Path) -> None:
    """Its entry is the engine's without what ran, with the scale and the digest and number of the images it was fitted on."""
    engines = {"int8": {"sha256": {"f": "0"}, "runtime": "r", "layers": {"source": "s"}}}
    (entry,) = describe_arms(engines, {"int8": 7.0}, _embedded(tmp_path, 5, n=20)).values()
    tuned_on = {"data": "d", "sha256": f"{5:064d}", "n": 20}
    assert entry == {"sha256": {"f": "0"}, "runtime": "r", "arm_of": "int8", "logit_scale": 7.0, "tuned_on": tuned_on}


def test_the_command_judges_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--tune-scale``: arms of all engines in a valid report with verdict and page; none of its images may be judged."""
    make_toy_bundle(tmp_path / "bundle")
    command = ["eval", str(tmp_path / "bundle"), "--data", "synthetic:scenes", "--ood", "synthetic:scenes-far", "--baseline", "ort-fp32"]
    command += ["--limit", "60", "--no-bench", "--resamples", "30", "-q", "-o", str(tmp_path / "out")]
    assert main([*command, "--tune-scale", "synthetic:scenes-noise"]) == 1  # the toy guesses, so the flattest answer is the best
    assert "no logit scale is the best for ort-fp32" in capsys.readouterr().err
    monkeypatch.setattr("clipq.evaluate.arms.fit_temperature", lambda *_: 2.0)
    assert main([*command, "--tune-scale", "synthetic:scenes-noise", "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    arms = [name for name in report["engines"] if name.endswith("+scale")]
    assert arms == ["ort-fp32+scale", "ort-int8-dynamic+scale", "ort-int8-static+scale"]
    assert set(report["verdict"]) == {"ort-int8-dynamic", "ort-int8-static", *arms}
    assert report["engines"]["ort-fp32+scale"]["logit_scale"] == MODEL.logit_scale / 2
    assert report["engines"]["ort-fp32+scale"]["tuned_on"]["data"] == open_synthetic("scenes-noise").id
    assert report["ood"]["ort-fp32+scale"][f"{ID}|{FAR}"]["mcm"]["auroc"]["delta"] == 0
    page = (tmp_path / "out/report.html").read_text()
    assert f"ort-int8-static with logit scale 15, fitted on 60 images of {open_synthetic('scenes-noise').id}" in page
    capsys.readouterr()
    assert main([*command, "--tune-scale", "synthetic:scenes"]) == 1
    assert "60 of 60 images" in capsys.readouterr().err
