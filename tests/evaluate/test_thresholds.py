"""Thresholds to deploy and their transfer: by hand, against slow loops, in the report, and saved into a bundle."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_bundle import make_toy_bundle, rewrite_manifest

from clipq.artifact import Bundle
from clipq.calib_data.synthetic import open_synthetic
from clipq.cli.main import main
from clipq.errors import BusyError, ClipqError, DataError, RefusedError
from clipq.evaluate import thresholds
from clipq.evaluate.report.thresholds import threshold_tables
from clipq.evaluate.statistics.bootstrap import resample_counts
from clipq.evaluate.statistics.ood import ood_estimates, resample_ood
from clipq.evaluate.statistics.quantile import quantile_interval, thresholds_of
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.evaluate.thresholds import save_thresholds, thresholds_name
from clipq.evaluate.verdict import judge
from clipq.files import locked

SCORES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=40).map(np.array)
ID, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-far"))
OPTIONS = EvalOptions(
    data=("synthetic:scenes",), ood=("synthetic:scenes-far",), baseline="ort-fp32", limit=100, bench_seconds=0, resamples=50
)


def accepted(scores: np.ndarray, tuned: np.ndarray) -> float:
    """The share of scores at or below the lowest value that at least 95 % of ``tuned`` do not exceed, by a loop."""
    for threshold in sorted(tuned):
        if sum(value <= threshold for value in tuned) >= 0.95 * len(tuned) - 1e-9:
            return sum(bool(value <= threshold) for value in scores) / len(scores)
    raise AssertionError


def test_a_threshold_by_hand() -> None:
    """Nineteen of twenty known images lie at or below 18; without ties the share kept is 95 % exactly."""
    found = thresholds_of({"mcm": np.random.default_rng(0).permutation(np.arange(20.0))})
    assert found["mcm"]["threshold"] == 18
    assert (found["mcm"]["n"], found["mcm"]["tpr"]) == (20, 0.95)


def test_the_interval_of_a_threshold_covers_the_truth() -> None:
    """Of 400 samples with a known 95 % quantile, about 95 % of the intervals hold it (99.9 % binomial limits)."""
    rng = np.random.default_rng(1)
    truth = -np.log(0.05)  # of the exponential distribution
    ends = [quantile_interval(rng.exponential(size=300), 0.95) for _ in range(400)]
    assert 366 <= sum(low <= truth <= high for low, high in ends) <= 396


def test_transfer_by_hand() -> None:
    """The baseline's threshold is 94; an engine whose scores are all 2 higher keeps 93 of 100 and lets one of four in."""
    inside, outside = np.arange(100.0), np.array([50.0, 93.0, 94.0, 200.0])
    found = ood_estimates((inside, outside), (inside + 2, outside + 2), resamples=200)
    assert (found["tpr_transfer"].value, found["fpr_transfer"].value) == (0.93, 0.25)
    assert found["tpr_transfer"].delta == pytest.approx(-0.02)
    assert found["fpr_transfer"].delta == 0.25 - 0.75
    assert found["fpr95_id_pos"].value == 0.75  # with a threshold of its own nothing changed
    low, high = found["tpr_transfer"].delta_ci95
    assert low <= -0.02 <= high < 0


@given(SCORES, SCORES, st.randoms())
def test_transfer_is_that_of_a_slow_loop(inside: np.ndarray, outside: np.ndarray, random) -> None:
    """Values and every resample, ties and single images included; the threshold is chosen anew in each resample."""
    tuned = np.array([random.choice(inside) for _ in inside])
    found = resample_ood(inside, outside, tuned_on=tuned, resamples=4, seed=2)
    assert found.values["tpr_transfer"] == pytest.approx(accepted(inside, tuned))
    assert found.values["fpr_transfer"] == pytest.approx(accepted(outside, tuned))
    counts = zip(resample_counts(len(inside), 4, 2, stream=0), resample_counts(len(outside), 4, 2, stream=1), strict=True)
    for draw, (id_counts, ood_counts) in enumerate(counts):
        drawn = np.repeat(tuned, id_counts)
        assert found.draws["tpr_transfer"][draw] == pytest.approx(accepted(np.repeat(inside, id_counts), drawn))
        assert found.draws["fpr_transfer"][draw] == pytest.approx(accepted(np.repeat(outside, ood_counts), drawn))


@given(SCORES, SCORES)
def test_an_engine_on_its_own_threshold_is_fpr95(inside: np.ndarray, outside: np.ndarray) -> None:
    """Transferred to itself a threshold keeps at least 95 %, and what it lets in is FPR95."""
    found = resample_ood(inside, outside, tuned_on=inside, resamples=3)
    assert found.values["fpr_transfer"] == found.values["fpr95_id_pos"]
    assert found.values["tpr_transfer"] >= 0.95
    np.testing.assert_array_equal(found.draws["fpr_transfer"], found.draws["fpr95_id_pos"])


def test_thresholds_of_other_images_are_refused() -> None:
    """A threshold is transferred between engines on the same images only; without one, nothing is."""
    with pytest.raises(DataError, match="found 3 scores; expected 4"):
        resample_ood(np.zeros(4), np.zeros(2), tuned_on=np.zeros(3), resamples=2)
    assert not {"tpr_transfer", "fpr_transfer"} & set(ood_estimates(None, (np.zeros(4), np.ones(2)), resamples=2))
    alone = ood_estimates(None, (np.zeros(4), np.ones(2)), tuned_on=np.zeros(4), resamples=2)
    assert (alone["tpr_transfer"].value, alone["fpr_transfer"].value, alone["fpr_transfer"].delta) == (1.0, 0.0, None)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory):
    """A toy bundle and its report."""
    folder = tmp_path_factory.mktemp("thresholds")
    bundle = make_toy_bundle(folder / "bundle")
    return bundle, evaluate_bundle(bundle, OPTIONS, folder / "out"), folder


def test_the_report_says_what_becomes_of_the_threshold(evaluated) -> None:
    """Thresholds and transfer follow from samples.parquet, fit the schema, stand in tables and can be judged."""
    from clipq.evaluate.report.samples import read_samples, select

    _, report, folder = evaluated
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    samples = read_samples(folder / "out/samples.parquet")
    tuned = select(samples, engine="ort-fp32", data=ID)["energy_logit"]
    engine = "ort-int8-static"
    inside, outside = (select(samples, engine=engine, data=data)["energy_logit"] for data in (ID, FAR))
    assert report["thresholds"][engine][ID]["energy_logit"]["threshold"] == np.sort(inside)[94]
    found = report["ood"][engine][f"{ID}|{FAR}"]["energy_logit"]
    assert found["tpr_transfer"]["value"] == pytest.approx(accepted(inside, tuned))
    assert found["fpr_transfer"]["value"] == pytest.approx(accepted(outside, tuned))
    titles = [table.title for table in threshold_tables(report)]
    assert [title.split(":")[0] for title in titles] == [
        "Thresholds that keep 95 % of synthetic",
        "Known kept, baseline's threshold",
        "Foreign accepted, baseline's threshold",
    ]
    gates, _ = judge(report, ["energy_logit.tpr_transfer.value<=1", "fpr_transfer:max-degradation=0.99"])
    failed = {(gate["rule"], gate["data"]) for gate in gates if gate["engine"] == engine and gate["outcome"] == "fail"}
    assert failed == {("energy_logit.tpr_transfer.value<=1", f"{ID}|{FAR} energy_logit")}
    assert len(gates) == 2 + 2 * len(report["ood"][engine][f"{ID}|{FAR}"])
    assert "Thresholds to deploy" in (folder / "out/report.html").read_text()
    assert "Thresholds to deploy" in (folder / "out/report.md").read_text()


def test_thresholds_are_saved_into_the_bundle(evaluated) -> None:
    """The file holds data digest, n, scores, hashes, model and date; the manifest names it, and everything verifies."""
    bundle, report, folder = evaluated
    assert save_thresholds(bundle.folder, report) == [thresholds_name(name) for name in report["engines"]]
    again = Bundle.open(bundle.folder)
    again.verify()
    saved = json.loads(again.file(thresholds_name("ort-int8-static")).read_text())
    assert saved["files"] == report["engines"]["ort-int8-static"]["sha256"]
    assert saved["model"]["id"] == bundle.manifest.model.id
    (data,) = saved["data"].values()
    assert (data["sha256"], data["n"]) == (report["datasets"][ID]["sha256"], 100)
    assert data["created"] == report["provenance"]["created"]
    assert data["scores"]["mcm"] == report["thresholds"]["ort-int8-static"][ID]["mcm"]
    assert evaluate_bundle(again, replace(OPTIONS, resume=True), folder / "out")["results"] == report["results"]


def test_later_thresholds_replace_those_of_the_same_data(tmp_path: Path, evaluated) -> None:
    """Those of other data stay, unless the engine is another one by now."""
    _, report, _ = evaluated
    bundle = make_toy_bundle(tmp_path)
    other = {**report, "thresholds": {e: {"else": sets[ID]} for e, sets in report["thresholds"].items()}}
    other["datasets"] = {"else": report["datasets"][ID]}
    save_thresholds(tmp_path, other)
    changed = json.loads(json.dumps(report))
    changed["thresholds"]["ort-fp32"][ID]["mcm"]["threshold"] = 7.0
    save_thresholds(tmp_path, report)
    save_thresholds(tmp_path, changed)
    saved = json.loads((tmp_path / thresholds_name("ort-fp32")).read_text())
    assert list(saved["data"]) == ["else", ID]
    assert saved["data"][ID]["scores"]["mcm"]["threshold"] == 7.0
    graph = tmp_path / "engines/ort-int8-static/image.onnx"
    graph.write_bytes((tmp_path / "engines/ort-int8-dynamic/image.onnx").read_bytes())
    rewrite_manifest(tmp_path, bundle.manifest.engines)
    with pytest.raises(RefusedError, match=r"ort-int8-static of .* is not what was evaluated"):
        save_thresholds(tmp_path, report)


def stopped_after(function, allowed: int):
    """The function, interrupted instead of being called once more than allowed."""
    calls: list[int] = []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopping


@pytest.mark.parametrize("stop", ["write_json", "describe_file", "write_manifest"])
def test_an_interruption_leaves_a_whole_bundle(tmp_path: Path, evaluated, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    """Wherever it stops, first time or replacing, the manifest opens and every file it names is whole; the next run mends the rest."""
    _, report, _ = evaluated
    make_toy_bundle(tmp_path)
    for _ in range(2):
        for allowed in range(2 if stop == "write_manifest" else 3):
            with monkeypatch.context() as patch:
                patch.setattr(thresholds, stop, stopped_after(getattr(thresholds, stop), allowed))
                with pytest.raises(KeyboardInterrupt):
                    save_thresholds(tmp_path, report)
            Bundle.open(tmp_path).verify()
        save_thresholds(tmp_path, report)
        assert thresholds_name("ort-fp32") in Bundle.open(tmp_path).manifest.files
        Bundle.open(tmp_path).verify()


def test_a_bundle_in_use_is_left_alone(tmp_path: Path, evaluated) -> None:
    """While another run reads or writes the bundle, saving ends with one line and changes nothing."""
    _, report, _ = evaluated
    make_toy_bundle(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path, exclusive=False):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(BusyError, match="in use by another clipq run"):
        save_thresholds(tmp_path, report)
    done.set()
    thread.join()
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_the_command_saves_thresholds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--save-thresholds`` writes them after the report; a bundle that nobody may write is told before any work."""
    make_toy_bundle(tmp_path / "bundle")
    command = [
        "eval",
        str(tmp_path / "bundle"),
        "--data",
        "synthetic:scenes",
        "--baseline",
        "ort-fp32",
        "--limit",
        "40",
        "--no-bench",
        "-q",
    ]
    assert main([*command, "-o", str(tmp_path / "out"), "--save-thresholds"]) == 0
    Bundle.open(tmp_path / "bundle").file(thresholds_name("ort-fp32"))
    monkeypatch.setattr(thresholds.os, "access", lambda *_: False)
    with pytest.raises(ClipqError, match="cannot save thresholds"):
        thresholds.require_writable(tmp_path)
    assert main([*command, "-o", str(tmp_path / "never"), "--save-thresholds"]) == 1
    assert "no right to write there" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
