"""The spectral diagnosis from stored embeddings to the report: recomputed from the stores, in the schema, in both renderings."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import numpy as np
import pytest
from toy_bundle import DIM, make_toy_bundle

from clipq.evaluate.report.html import render_html
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.read import read_report
from clipq.evaluate.report.spectral import spectral_panels, spectral_tables
from clipq.evaluate.report.view import glossary
from clipq.evaluate.suite import EvalOptions, evaluate_bundle

OPTIONS = EvalOptions(data=("synthetic:scenes",), baseline="ort-fp32", limit=80, bench_seconds=0, resamples=50)
DATA = "synthetic:scenes:test"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """One evaluation of the toy bundle: its folder and its report."""
    folder = tmp_path_factory.mktemp("spectral")
    return folder / "out", evaluate_bundle(make_toy_bundle(folder / "bundle"), OPTIONS, folder / "out")


def _stored(folder):
    """Every store of image embeddings, normalised."""
    stored = [
        np.concatenate([np.load(part) for part in sorted(store.glob("*.npy"))])
        for store in (folder / "embeddings").iterdir()
        if store.is_dir()
    ]
    return [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in stored if len(rows) == OPTIONS.limit]


def test_diagnosis_is_that_of_the_stored_embeddings(evaluated):
    """By numpy's SVD of the stored unit vectors: some pair of stores gives the ratio and the effective rank of each engine."""
    folder, report = evaluated
    (data,) = report["spectral"]["ort-fp32"]
    stores = _stored(folder)
    for engine in ("ort-int8-dynamic", "ort-int8-static"):
        entry = report["spectral"][engine][data]
        assert [band["ranks"] for band in entry["bands"]] == [[0, DIM]]
        found = []
        for first in stores:
            for second in stores:
                if first is not second:
                    signal = ((first - first.mean(axis=0)) ** 2).sum()
                    values = np.linalg.svd(second - second.mean(axis=0), compute_uv=False)
                    p = values / values.sum()
                    found.append((10 * np.log10(signal / ((second - first) ** 2).sum()), np.exp(-(p * np.log(p)).sum())))
        assert any((entry["bands"][0]["sqnr_db"], entry["effective_rank"]) == pytest.approx(pair, rel=1e-4) for pair in found)


def test_all_ranks_give_the_accuracy_of_the_whole(evaluated):
    """One band over every rank is the embedding itself; energy is whole; the baseline has no noise to tell."""
    _, report = evaluated
    for engine, entries in report["spectral"].items():
        for data, entry in entries.items():
            assert entry["bands"][0]["acc1"] == pytest.approx(report["results"][engine][data]["acc1"]["value"])
            assert entry["bands"][0]["energy"] == pytest.approx(1.0)
            assert ("sqnr_db" in entry["bands"][0]) == (engine != report["baseline"])


def test_less_noise_has_a_higher_ratio(evaluated):
    """The toy engine with a quarter of the noise has about twelve decibels more."""
    _, report = evaluated
    dynamic, static = (
        next(iter(report["spectral"][name].values()))["bands"][0]["sqnr_db"] for name in ("ort-int8-dynamic", "ort-int8-static")
    )
    assert 6 < dynamic - static < 18


def test_report_shows_tables_panel_and_glossary(evaluated):
    """Schema, Markdown, page and glossary know the diagnosis."""
    folder, report = evaluated
    jsonschema.validate(report, json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text()))
    titles = [table.title for table in spectral_tables(report)]
    assert [title.rpartition(": ")[2] for title in titles] == [
        "Signal to noise by rank",
        "Singular values by rank",
        "Right answers by rank",
    ]
    page, text = (folder / "report.html").read_text(), render_markdown(report)
    assert all(title in page and title in text for title in titles)
    (panel,) = spectral_panels(report)
    assert panel in page
    assert panel.count("<polyline") == 2
    assert {"sqnr_db", "singular_ratio", "acc1_of_ranks", "effective_rank"} <= {key for key, _ in glossary(report)}


def test_engine_without_noise_says_so(evaluated):
    """Equal embeddings have no ratio: words in the table, no line in the panel; without a diagnosis there is no section."""
    folder, report = evaluated
    engines = {engine: {DATA: json.loads(json.dumps(next(iter(entries.values()))))} for engine, entries in report["spectral"].items()}
    for band in engines["ort-int8-static"][DATA]["bands"]:
        band["sqnr_db"] = None
    changed = {**report, "spectral": engines}
    noise = spectral_tables(changed)[0]
    assert [cell.value for cell in dict(noise.rows)["ort-int8-static"]] == ["no noise"]
    assert spectral_panels(changed)[0].count("<polyline") == 1
    without = {key: value for key, value in report.items() if key != "spectral"}
    assert spectral_tables(without) == spectral_panels(without) == []
    assert 'id="spectral"' not in render_html(without, read_report(folder).samples)


def test_one_image_has_no_axes(tmp_path):
    """A single image is scored as ever, and no diagnosis is made."""
    report = evaluate_bundle(make_toy_bundle(tmp_path / "bundle"), replace(OPTIONS, limit=1), tmp_path / "out")
    assert report["spectral"] == {}
    assert report["results"]["ort-fp32"]
