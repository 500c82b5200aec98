"""Retrieval and means from bundle to report: figures again from the stores by a slow loop, gates, the command line."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from toy_bundle import make_toy_bundle

from clipq.artifact import Bundle
from clipq.calib_data.captions import open_captioned
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.tokenizer import Tokenizer
from clipq.cli.main import main
from clipq.errors import DataError, UsageError
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.retrieval import load_caption_sets

DATA = "synthetic:scenes-captions"
LIMIT = 50
ARGUMENTS = ["--data", "synthetic:scenes,synthetic:scenes:calibration", "--retrieval", DATA, "--limit", str(LIMIT)]
QUICK = ["--baseline", "ort-fp32", "--no-bench", "--resamples", "60", "-q"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path, dict[str, Any]]:
    """One evaluation of the toy bundle that the tests only read."""
    folder = tmp_path_factory.mktemp("retrieval")
    bundle = make_toy_bundle(folder / "bundle")
    gates = ["--fail-on", "i2t_recall_at_1.value>1", "--fail-on", "recall_at_10:max-degradation=0.9"]
    assert main(["eval", str(bundle.folder), *ARGUMENTS, *QUICK, *gates, "-o", str(folder / "out")]) == 0
    return bundle, folder / "out", json.loads((folder / "out" / "report.json").read_text())


def _slow_recall(bundle: Bundle, engine: str, k: int) -> tuple[float, float]:
    """Return recall at k of both directions by CLIP_benchmark's words: any positive among the k best of each query."""
    captions = load_caption_sets(bundle, [DATA], limit=LIMIT, seed=0)[DATA]
    towers = bundle.manifest.engines[engine].towers
    image, text = (onnxruntime.InferenceSession(str(bundle.folder / towers[tower])) for tower in ("image", "text"))
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    pixels = np.concatenate([batch.pixels for batch in batches(captions.images.source, captions.images.index, preprocess)])
    tokens = Tokenizer.from_files(bundle.folder / "tokenizer").tokens(captions.texts)
    one, two = image.run(None, {"pixels": pixels})[0], text.run(None, {"tokens": tokens})[0]
    one, two = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (one, two))
    scores = two @ one.T
    by_text = [captions.owner[row] in np.argsort(-scores[row], kind="stable")[:k] for row in range(len(scores))]
    by_image = [row in captions.owner[np.argsort(-scores[:, row], kind="stable")[:k]] for row in range(len(one))]
    return float(np.mean(by_image)), float(np.mean(by_text))


@pytest.mark.parametrize("engine", ["ort-fp32", "ort-int8-static"])
def test_recall_agrees_with_a_slow_loop(evaluated: tuple[Bundle, Path, dict[str, Any]], engine: str) -> None:
    """Both directions from the graphs themselves; a rounding may move one query."""
    bundle, _, report = evaluated
    figures = report["retrieval"][engine][DATA]
    for k in (1, 5, 10):
        by_image, by_text = _slow_recall(bundle, engine, k)
        assert figures[f"i2t_recall_at_{k}"]["value"] == pytest.approx(by_image, abs=1.01 / LIMIT)
        assert figures[f"t2i_recall_at_{k}"]["value"] == pytest.approx(by_text, abs=1.01 / (2 * LIMIT))
        both = figures[f"i2t_recall_at_{k}"]["value"] + figures[f"t2i_recall_at_{k}"]["value"]
        assert figures[f"recall_at_{k}"]["value"] == pytest.approx(both / 2)
    assert 0 < figures["recall_at_10"]["value"] < 1


def test_report_holds_retrieval(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """The schema, the sets, agreement of the quantized engines alone, gates, and both sections in words."""
    _, folder, report = evaluated
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    described = report["datasets"][DATA]
    assert (described["n"], described["captions"], described["role"]) == (LIMIT, 2 * LIMIT, "retrieval")
    assert "i2t_overlap_at_10" not in report["retrieval"]["ort-fp32"][DATA]
    static = report["retrieval"]["ort-int8-static"][DATA]
    assert 0 < static["i2t_overlap_at_10"]["value"] <= 1
    assert -1 <= static["t2i_rank_correlation"]["value"] < 1
    assert static["i2t_recall_at_5"]["test"] == "mcnemar"
    judged = {(gate["rule"], gate["engine"]): gate for gate in report["gates"]}
    assert judged["i2t_recall_at_1.value>1", "ort-int8-static"]["data"] == DATA
    assert "Recall@10" in judged["recall_at_10:max-degradation=0.9", "ort-int8-dynamic"]["why"]
    page = (folder / "report.md").read_text()
    assert "## Retrieval: images and captions find each other" in page
    assert f"{LIMIT} images, {2 * LIMIT} captions." in page
    assert "Text to image, recall@5" in (folder / "report.html").read_text()


def test_report_holds_the_mean_over_data_sets(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """The mean of both sets, engine by engine, with the difference of the means."""
    _, folder, report = evaluated
    sets = ["synthetic:scenes", "synthetic:scenes:calibration"]
    assert report["means"]["data"] == sets
    for engine, own in report["means"]["results"].items():
        for metric in ("acc1", "ece15", "nll"):
            values = [report["results"][engine][data][metric]["value"] for data in sets]
            assert own[metric]["value"] == pytest.approx(np.mean(values))
        assert own["acc1"]["n"] == 2 * LIMIT
    first, static = (report["means"]["results"][engine]["nll"] for engine in ("ort-fp32", "ort-int8-static"))
    assert static["delta"] == pytest.approx(static["value"] - first["value"])
    assert "### Mean of 2 data sets" in (folder / "report.md").read_text()


def test_a_limit_counts_images_with_all_their_captions(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Every caption belongs to the row of its image."""
    bundle = evaluated[0]
    chosen = load_caption_sets(bundle, [DATA], limit=7, seed=3)[DATA]
    captions = open_captioned(DATA).captions
    assert len(chosen.texts) == 14
    for text, row in zip(chosen.texts, chosen.owner, strict=True):
        assert text in captions[chosen.images.index.positions[row]]


def test_calibration_images_are_refused(evaluated: tuple[Bundle, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that the engines were calibrated on are no evidence here either."""
    bundle = evaluated[0]
    seen = set(load_caption_sets(bundle, [DATA], limit=7, seed=3)[DATA].images.index.sha256[:1])
    monkeypatch.setattr("clipq.evaluate.retrieval.calibration_hashes", lambda _bundle: seen)
    with pytest.raises(DataError, match=r"1 of 7 images .* used for calibration"):
        load_caption_sets(bundle, [DATA], limit=7, seed=3)


def test_reports_are_compared_by_recall_too(evaluated: tuple[Bundle, Path, dict[str, Any]], tmp_path: Path) -> None:
    """Between two reports the difference is that of independent samples; of one report it is the report's own."""
    _, folder, report = evaluated
    arguments = ["--fail-on", "recall_at_5.delta_pp<-100", "--json", str(tmp_path / "two.json"), "-q"]
    assert main(["compare", str(folder), str(folder), *arguments]) == 0
    comparison = json.loads((tmp_path / "two.json").read_text())
    entry = comparison["retrieval"]["ort-int8-static"][DATA]["recall_at_5"]
    assert (entry["delta"], entry["paired"]) == (0.0, False)
    assert entry["delta_ci95"][0] < 0 < entry["delta_ci95"][1]
    assert not [name for name in comparison["retrieval"]["ort-int8-static"][DATA] if "recall" not in name]
    assert main(["compare", str(folder), "--fail-on", "recall_at_5.value<0", "--json", str(tmp_path / "one.json"), "-q"]) == 0
    own = json.loads((tmp_path / "one.json").read_text())["retrieval"]["ort-int8-static"]
    assert own == report["retrieval"]["ort-int8-static"]


def test_gates_know_the_names_of_retrieval() -> None:
    """Recall has differences and goals; a slip names the nearest."""
    assert parse_gate("recall_at_1.delta_pp<-1").kind == "retrieval"
    assert parse_gate("t2i_recall_at_5:percent-max-degradation=1").field == "delta_percent"
    assert parse_gate("i2t_overlap_at_10.value<0.9").op == "<"
    with pytest.raises(UsageError, match="Did you mean 'recall_at_1'"):
        parse_gate("recal_at_1.value<0.5")


def test_unknown_retrieval_data_is_a_usage_error(
    evaluated: tuple[Bundle, Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kind of data without captions ends with 2, in one line."""
    bundle = evaluated[0]
    arguments = ["--data", "synthetic:scenes", "--retrieval", "imagefolder:/x", "--limit", "5", *QUICK, "-o", str(tmp_path)]
    assert main(["eval", str(bundle.folder), *arguments]) == 2
    assert "kind of data id with captions" in capsys.readouterr().err
