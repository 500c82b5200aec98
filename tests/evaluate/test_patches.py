"""Patch tokens in an evaluation: reduced while images are embedded, killed and resumed, and told where an engine has none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax
from toy_bundle import make_toy_bundle
from toy_patches import GRID, make_patch_bundle

from clipq.artifact import Bundle
from clipq.calib_data.pipeline import decode
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.synthetic import open_synthetic
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.table import open_engine
from clipq.errors import EngineError, RefusedError
from clipq.evaluate.embed import Reduction, Work, embed_images
from clipq.evaluate.patches import PatchStores, fourier_energy, local_scores
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.store import Store, Stores
from clipq.evaluate.suite import EvalOptions, evaluate_bundle

ID, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-far"))
OPTIONS = EvalOptions(
    data=("synthetic:scenes",), ood=("synthetic:scenes-far",), baseline="ort-fp32", limit=60, bench_seconds=0, resamples=50
)
ENGINES = ("ort-fp32", "ort-int8-dynamic", "ort-int8-static")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path, dict[str, Any]]:
    """One evaluation that the tests only read."""
    folder = tmp_path_factory.mktemp("patches")
    bundle = make_patch_bundle(folder / "bundle")
    return bundle, folder / "out", evaluate_bundle(bundle, OPTIONS, folder / "out")


def _both_outputs(bundle: Bundle, engine: str, data: str, image_ids: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return embeddings, patches and class embeddings by ONNX Runtime alone, image by image."""
    entry = bundle.manifest.engines[engine]
    image, text = (onnxruntime.InferenceSession(str(bundle.folder / entry.towers[tower])) for tower in ("image", "text"))
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    source, scenes = open_synthetic(data.split(":")[1]), open_synthetic("scenes")
    outputs = []
    for sample in source.read([int(Path(image_id).stem) for image_id in image_ids]):
        pixels = preprocess.normalise(preprocess.pixels_u8(decode(sample.data))[None])
        outputs.append(image.run(["embedding", "patches"], {"pixels": pixels}))
    tokenizer = Tokenizer.from_files(bundle.folder / "tokenizer")
    classes = []
    for name in scenes.classnames:
        vectors = [text.run(None, {"tokens": tokenizer.tokens([template.replace("{c}", name)])})[0][0] for template in scenes.templates]
        mean = np.mean([vector / np.linalg.norm(vector) for vector in vectors], axis=0)
        classes.append(mean / np.linalg.norm(mean))
    return np.concatenate([out[0] for out in outputs]), np.concatenate([out[1] for out in outputs]), np.stack(classes)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("data", [ID, FAR])
def test_scores_are_those_of_a_slow_loop(evaluated: tuple[Bundle, Path, dict[str, Any]], engine: str, data: str) -> None:
    """GL-MCM of every image as the paper's code writes it: softmax of cosines, the highest of the image plus the highest of any patch."""
    bundle, folder, _ = evaluated
    rows = [row for row in pq.read_table(folder / "samples.parquet").to_pylist() if (row["engine"], row["data"]) == (engine, data)]
    embeddings, patches, classes = _both_outputs(bundle, engine, data, [row["image_id"] for row in rows])
    for row, embedding, own in zip(rows, embeddings, patches, strict=True):
        whole = softmax(embedding / np.linalg.norm(embedding) @ classes.T).max()
        local = max(softmax(patch / np.linalg.norm(patch) @ classes.T).max() for patch in own)
        assert row["gl_mcm"] == pytest.approx(-(whole + local), rel=1e-5)
        assert row["mcm"] == pytest.approx(-whole, rel=1e-5)


def test_report_has_the_score_and_the_frequencies(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """GL-MCM stands beside the other OOD scores, the energy sums to one, and the schema takes both."""
    _, folder, report = evaluated
    jsonschema.validate(report, json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text()))
    assert report["provenance"]["patch_tokens"] == {"grid": [4, 4], "temperature": 1.0, "local_weight": 1.0, "left_out": {}}
    for engine in ENGINES:
        assert report["ood"][engine][f"{ID}|{FAR}"]["gl_mcm"]["auroc"]["n"] == 120
        fourier = report["spectral"][engine][ID]["fourier"]
        assert fourier["radius"] == [0.0, 1.0, 2.0, 3.0]
        assert sum(fourier["energy"]) == pytest.approx(1, abs=1e-5)
    text = (folder / "report.md").read_text()
    assert "GL-MCM" in text
    assert "Energy by spatial frequency" in text


def test_energy_is_that_of_every_image(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Ring by ring from numpy's transform of the patch grid of each image, as unit vectors."""
    bundle, folder, report = evaluated
    rows = [row for row in pq.read_table(folder / "samples.parquet").to_pylist() if (row["engine"], row["data"]) == ("ort-fp32", ID)]
    _, patches, _ = _both_outputs(bundle, "ort-fp32", ID, [row["image_id"] for row in rows])
    total = np.zeros(4)
    for own in patches:
        unit = own / np.linalg.norm(own, axis=1, keepdims=True)
        power = np.abs(np.fft.fft2(unit.reshape(4, 4, -1), axes=(0, 1))) ** 2
        for row in range(4):
            for column in range(4):
                radius = round(np.hypot(min(row, 4 - row), min(column, 4 - column)))
                total[radius] += power[row, column].sum() / 16**2 / len(patches)
    assert report["spectral"]["ort-fp32"][ID]["fourier"]["energy"] == pytest.approx(total.tolist(), rel=1e-4)


def test_an_engine_without_them_has_no_row(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """A report whose engines only partly have patch tokens is still readable."""
    _, _, report = evaluated
    part = json.loads(json.dumps(report))
    del part["spectral"]["ort-int8-static"][ID]["fourier"], part["ood"]["ort-int8-static"][f"{ID}|{FAR}"]["gl_mcm"]
    assert "Energy by spatial frequency" in render_markdown(part)


def test_a_bundle_without_patch_tokens_says_nothing_of_them(tmp_path: Path) -> None:
    """Neither score, nor column, nor provenance."""
    report = evaluate_bundle(make_toy_bundle(tmp_path / "bundle"), replace(OPTIONS, limit=20), tmp_path / "out")
    assert "gl_mcm" not in json.dumps(report)
    assert "patch_tokens" not in report["provenance"]
    assert "gl_mcm" not in pq.read_schema(tmp_path / "out" / "samples.parquet").names


def test_what_is_there_is_not_computed_again(evaluated: tuple[Bundle, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run opens no engine to embed; one with another data set of the same classes adds its images only."""
    bundle, folder, report = evaluated
    monkeypatch.setattr("clipq.evaluate.embed.Engine.run_patches", lambda *_: pytest.fail("ran again"))
    assert evaluate_bundle(bundle, OPTIONS, folder)["ood"] == report["ood"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from clipq.artifact import Bundle
from clipq.evaluate import store
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
store.SHARD_ROWS = 8
flush, calls = store.Store.flush, []
def killing(self):
    flush(self)
    calls.append(self)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
store.Store.flush = killing
options = EvalOptions(data=("synthetic:scenes",), ood=("synthetic:scenes-far",), baseline="ort-fp32", limit=60, bench_seconds=0,
                      resamples=50, batch_size=4)
evaluate_bundle(Bundle.open(Path(sys.argv[1])), options, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("flushes", [9, 20])
def test_killed_and_resumed(evaluated: tuple[Bundle, Path, dict[str, Any]], tmp_path: Path, flushes: int) -> None:
    """Killed between two stores of the same batch, a run goes on, and ends with the figures of one that was never killed."""
    bundle, _, _ = evaluated
    command = [sys.executable, "-c", _KILLED, str(bundle.folder), str(tmp_path), str(flushes)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    options = replace(OPTIONS, batch_size=4)
    resumed = evaluate_bundle(bundle, replace(options, resume=True), tmp_path)
    whole = evaluate_bundle(bundle, options, tmp_path / "whole")
    assert resumed["ood"] == whole["ood"]
    assert resumed["spectral"] == whole["spectral"]


def test_unreadable_images_keep_their_place(tmp_path: Path, evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Rows of NaN in what is kept of the patches too, also where a whole batch is unreadable."""
    from clipq.calib_data.index import build_index
    from clipq.calib_data.source import Sample
    from clipq.evaluate.datasets import EvalSet

    class Broken:
        """Two hundred scenes; the second and the ninth cannot be read."""

        def __init__(self) -> None:
            drawn = open_synthetic("scenes")
            self.id, self.classnames, self.templates = "test:broken", drawn.classnames, drawn.templates
            self.labels = drawn.labels[:200]
            self.samples = list(drawn.read(range(200)))
            for position in (1, 8):
                self.samples[position] = Sample(self.samples[position].id, 0, b"no image")

        def __len__(self) -> int:
            return len(self.samples)

        def read(self, positions: Any = None) -> Any:
            return (self.samples[position] for position in (range(len(self)) if positions is None else positions))

    source: Any = Broken()
    bundle, classes = evaluated[0], np.eye(3, 8, dtype=np.float32)
    images = EvalSet(source, build_index(source))
    embeddings, local = Store(tmp_path, {"what": "embeddings"}), Store(tmp_path, {"what": "local"})
    with open_engine(bundle, "ort-fp32", 1) as engine:
        kept = {"a": [Reduction(local, 1, local_scores(classes))]}
        work = Work(batch_size=1, streams=2, threads=1, workers=1)
        embed_images({"a": engine}, {"a": embeddings}, images, Preprocess.from_file(bundle.file("preprocess.json")), work, kept)
    assert np.flatnonzero(np.isnan(embeddings.read()).all(axis=1)).tolist() == [1, 8]
    assert np.flatnonzero(np.isnan(local.read()[:, 0])).tolist() == [1, 8]


def test_plans_are_told_to_have_none(evaluated: tuple[Bundle, Path, dict[str, Any]], tmp_path: Path) -> None:
    """TensorRT's plans give embeddings only; the others keep theirs."""
    facts = {ID: {"ort-fp32": {"tower": "a"}, "trt-fp16": {"tower": "b"}}}
    planned = PatchStores.planned(evaluated[0], Stores(tmp_path, resume=False), facts, facts)
    assert planned is not None
    assert planned.left_out == {"trt-fp16": "its plans give embeddings only"}
    assert planned.unfinished() == {"ort-fp32"}
    both = PatchStores.planned(
        evaluated[0], Stores(tmp_path, resume=False), {**facts, FAR: facts[ID], "other": facts[ID]}, {**facts, "other": facts[ID]}
    )
    assert both is not None
    assert set(both.local) == {(ID, ID), ("other", "other"), (FAR, ID), (FAR, "other")}
    assert set(both.fourier) == {ID, "other"}
    assert planned.local_scores("trt-fp16", ID, ID, np.ones(3, np.bool_)) is None
    assert planned.energy("trt-fp16", ID, np.ones(3, np.bool_)) is None


@pytest.mark.parametrize("grid", [[4], [4, 0], [4, -4], ["4", "4"], [True, 16], 16, {"rows": 4}])
def test_a_wrong_grid_is_refused(tmp_path: Path, grid: object) -> None:
    """A manifest may say anything."""
    bundle = make_patch_bundle(tmp_path, grid)
    with pytest.raises(RefusedError, match="names no grid of patches"):
        open_engine(bundle, "ort-fp32")


def test_a_graph_without_them_is_an_error(tmp_path: Path) -> None:
    """The manifest promises what the graph does not give; nothing runs."""
    bundle = make_patch_bundle(tmp_path, without=["towers/image.fp32.onnx"])
    with pytest.raises(EngineError, match=r"has other inputs or outputs than its manifest says.*patches"), open_engine(bundle, "ort-fp32"):
        pytest.fail("it opened")
    other = make_patch_bundle(tmp_path / "other", (2, 3))
    with pytest.raises(EngineError, match="has other inputs or outputs"), open_engine(other, "ort-fp32"):
        pytest.fail("it opened")


def test_reducers_see_each_image_alone() -> None:
    """A batch gives the rows of its images; lengths of patches change nothing; a patch without direction is an error."""
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((5, 16, 8)).astype(np.float32)
    lengths = rng.uniform(0.5, 2, (5, 16, 1)).astype(np.float32)
    classes = np.eye(3, 8, dtype=np.float32)
    for reduce in (local_scores(classes), fourier_energy(GRID)):
        whole = reduce(patches)
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, np.concatenate([reduce(patches[row : row + 1]) for row in range(5)]), rtol=1e-6)
        np.testing.assert_allclose(whole, reduce(patches * lengths), rtol=1e-4, atol=1e-6)
        with pytest.raises(EngineError, match="without direction: patch tokens"):
            reduce(np.zeros((1, 16, 8), np.float32))
