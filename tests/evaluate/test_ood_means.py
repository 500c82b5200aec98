"""Means over near and far OOD sets: by hand, against simulations, and in the report, computed again from its samples."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from toy_bundle import make_toy_bundle

from clipq.calib_data.synthetic import open_synthetic
from clipq.cli.main import main
from clipq.errors import DataError, UsageError
from clipq.evaluate.datasets import load_sets
from clipq.evaluate.difference import between_engines, between_reports
from clipq.evaluate.ood_means import mean_estimates, sets_to_average
from clipq.evaluate.report.ood_means import ood_mean_tables
from clipq.evaluate.report.read import read_report
from clipq.evaluate.report.samples import read_samples, select
from clipq.evaluate.statistics.bootstrap import compare
from clipq.evaluate.statistics.ood import resample_ood
from clipq.evaluate.statistics.ood_mean import mean_of_sets
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.evaluate.suites.read import read_suite
from clipq.evaluate.verdict import judge

ID, NOISE, NEAR, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-noise", "scenes-near", "scenes-far"))
ODD = "synthetic:scenes-spurious"


def _drawn(seed: int, shifts: tuple[float, ...], n: int = 60) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n), [shift + rng.standard_normal(n + 10 * i) for i, shift in enumerate(shifts)]


def _resampled(inside: np.ndarray, outside: list[np.ndarray], resamples: int = 200, metrics: tuple[str, ...] | None = None) -> list[Any]:
    return [resample_ood(inside, scores, resamples=resamples, stream=i, metrics=metrics) for i, scores in enumerate(outside, start=1)]


def test_mean_by_hand() -> None:
    """One set told apart wholly and one not at all: the mean AUROC is 0.75, whatever their sizes."""
    inside = np.array([0.0, 1.0])
    sets = _resampled(inside, [np.array([5.0, 6.0, 7.0]), np.array([0.0, 1.0])])
    mean = mean_of_sets(sets)
    assert mean.values["auroc"] == 0.75
    assert mean.n == 7


@given(st.integers(0, 2**31), st.lists(st.floats(-1, 2), min_size=1, max_size=4))
def test_mean_is_the_mean_of_every_resample(seed: int, shifts: list[float]) -> None:
    """Values and draws are means, set by set and resample by resample; the order of the sets changes nothing; one set is itself."""
    inside, outside = _drawn(seed, tuple(shifts), 8)
    sets = _resampled(inside, outside, 20)
    mean, backwards = mean_of_sets(sets), mean_of_sets(sets[::-1])
    for name, value in mean.values.items():
        assert value == pytest.approx(sum(part.values[name] for part in sets) / len(sets))
        assert value == pytest.approx(backwards.values[name])
        slow = [sum(part.draws[name][row] for part in sets) / len(sets) for row in range(20)]
        np.testing.assert_allclose(mean.draws[name], slow)
    if len(sets) == 1:
        assert compare(None, mean) == compare(None, sets[0])


def test_influence_is_that_of_leaving_an_image_out() -> None:
    """What each ID or foreign image adds to the mean AUROC, against the jackknife done the slow way."""
    inside, outside = _drawn(3, (0.5, 1.0), 12)
    mean = mean_of_sets(_resampled(inside, outside, 2)).influence["auroc"]

    def slow_auroc(known: np.ndarray, foreign: list[np.ndarray]) -> float:
        return float(np.mean([roc_auc_score(np.r_[np.zeros(len(known)), np.ones(len(part))], np.r_[known, part]) for part in foreign]))

    whole = slow_auroc(inside, outside)
    for i in range(len(inside)):
        left = (len(inside) - 1) * (whole - slow_auroc(np.delete(inside, i), outside))
        assert mean[0][i] == pytest.approx(left)
    for which, scores in enumerate(outside):
        for i in range(len(scores)):
            shorter = [np.delete(part, i) if place == which else part for place, part in enumerate(outside)]
            assert mean[1 + which][i] == pytest.approx((len(scores) - 1) * (whole - slow_auroc(inside, shorter)))


def test_sets_are_drawn_independently() -> None:
    """Two sets with the same scores: their foreign images are drawn apart, so the mean of two spreads less than one alone."""
    scores = np.random.default_rng(0).standard_normal(40)
    known = np.random.default_rng(1).standard_normal(4000)
    first, second = _resampled(known, [scores, scores], 400, ("auroc",))
    assert first.values == second.values
    assert abs(np.corrcoef(first.draws["auroc"], second.draws["auroc"])[0, 1]) < 0.2
    assert np.std(mean_of_sets([first, second]).draws["auroc"]) == pytest.approx(np.std(first.draws["auroc"]) / np.sqrt(2), rel=0.15)


def test_sets_share_their_known_images() -> None:
    """Few ID images and many foreign ones: the mean of two sets is no surer than one, because both stand on the same ID images."""
    known = np.random.default_rng(2).standard_normal(30)
    outside = [0.5 + np.random.default_rng(seed).standard_normal(4000) for seed in (3, 4)]
    first, second = _resampled(known, outside, 400, ("auroc",))
    assert np.corrcoef(first.draws["auroc"], second.draws["auroc"])[0, 1] > 0.9
    assert np.std(mean_of_sets([first, second]).draws["auroc"]) > 0.9 * np.std(first.draws["auroc"])


def test_interval_covers_the_truth() -> None:
    """The mean of three AUROCs of known distributions lies in its interval in about 95 of 100 repetitions."""
    from scipy.stats import norm

    shifts = (0.3, 0.8, 1.5)
    truth = float(np.mean(norm.cdf(np.array(shifts) / np.sqrt(2))))
    hits = 0
    for seed in range(100):
        estimate = compare(None, mean_of_sets(_resampled(*_drawn(seed, shifts), 200, ("auroc",))))["auroc"]
        assert estimate.ci95 is not None
        hits += estimate.ci95[0] <= truth <= estimate.ci95[1]
    assert 88 <= hits <= 99


def test_no_difference_is_seldom_found() -> None:
    """Two engines with equally good scores: DeLong's p-value of the mean is below 5 % in few repetitions, and seldom tiny."""
    p_values = []
    for seed in range(150):
        inside, outside = _drawn(seed, (0.5, 1.0))
        rng = np.random.default_rng(10_000 + seed)
        noisy = [[scores + 0.3 * rng.standard_normal(len(scores)) for scores in (inside, *outside)] for _ in range(2)]
        before, after = (mean_of_sets(_resampled(side[0], side[1:], 20, ("auroc",))) for side in noisy)
        estimate = compare(before, after)["auroc"]
        assert estimate.test == "delong"
        p_values.append(estimate.p_value)
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.11


@pytest.mark.parametrize(
    "sets",
    [
        [],
        [resample_ood(np.arange(4.0), np.arange(3.0), resamples=5)] * 2,
        [resample_ood(np.arange(n), np.arange(3.0), resamples=5, stream=int(n)) for n in (4.0, 5.0)],
    ],
)
def test_sets_that_do_not_go_together_are_refused(sets: list[Any]) -> None:
    """No set, sets that were drawn alike, and sets with other ID images have no mean."""
    with pytest.raises(DataError, match=r"average"):
        mean_of_sets(sets)


def test_groups_follow_the_names() -> None:
    """Near and far where named, all where there are several, nothing for one set without a name."""
    assert sets_to_average({"a": None}) == {}
    assert sets_to_average({"a": None, "b": None}) == {"all": ["a", "b"]}
    assert sets_to_average({"a": "far"}) == {"far": ["a"]}
    assert sets_to_average({"a": "near", "b": "far", "c": "near", "d": None}) == {"near": ["a", "c"], "far": ["b"], "all": list("abcd")}


def test_scores_that_a_set_lacks_have_no_mean() -> None:
    """A score is averaged over all sets of a group or not at all."""
    inside, outside = _drawn(0, (0.0, 1.0))
    near, far = _resampled(inside, outside, 5)
    scored = {("a", "mcm"): near, ("b", "mcm"): far, ("a", "gl_mcm"): near}
    found = mean_estimates(None, scored, {"near": ["a"], "all": ["a", "b"]})
    assert {group: list(scores) for group, scores in found.items()} == {"near": ["mcm", "gl_mcm"], "all": ["mcm"]}
    assert found["near"]["gl_mcm"]["auroc"] == compare(None, near)["auroc"]


# --- from the command line to the report ---


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One evaluation with a near, a far and an unnamed foreign set."""
    folder = tmp_path_factory.mktemp("means")
    bundle = make_toy_bundle(folder / "bundle")
    options = EvalOptions(
        data=("synthetic:scenes", "synthetic:scenes-noise"),
        ood=(ODD,),
        ood_near=("synthetic:scenes-near",),
        ood_far=("synthetic:scenes-far",),
        baseline="ort-fp32",
        limit=60,
        bench_seconds=0,
        resamples=60,
    )
    return folder / "out", evaluate_bundle(bundle, options, folder / "out")


def test_report_has_the_means(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """Values are the means of the sets' own, differences those of the means; all is valid by the schema."""
    _, report = evaluated
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    assert {data: facts["distance"] for data, facts in report["datasets"].items() if "distance" in facts} == {NEAR: "near", FAR: "far"}
    groups = {"near": [NEAR], "far": [FAR], "all": [NEAR, FAR, open_synthetic("scenes-spurious").id]}
    for engine, means in report["ood_means"].items():
        for data in (ID, NOISE):
            assert set(means[data]) == set(groups)
            for group, sets in groups.items():
                for score, metrics in means[data][group].items():
                    for metric, found in metrics.items():
                        each = [report["ood"][engine][f"{data}|{other}"][score][metric]["value"] for other in sets]
                        assert found["value"] == pytest.approx(np.mean(each))
                        if engine != "ort-fp32":
                            before = report["ood_means"]["ort-fp32"][data][group][score][metric]["value"]
                            assert found["delta"] == pytest.approx(found["value"] - before)
                            assert 0 <= found["p_value_holm"] <= 1
    near = report["ood"]["ort-int8-static"][f"{ID}|{NEAR}"]["mcm"]["auroc"]
    assert report["ood_means"]["ort-int8-static"][ID]["near"]["mcm"]["auroc"] == near


def test_mean_over_all_equals_the_samples(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """Scikit-learn's AUROC of every set from samples.parquet, averaged."""
    folder, report = evaluated
    samples = read_samples(folder / "samples.parquet")
    rows = select(samples, engine="ort-int8-static", classifier=ID)
    sets = [name for name, facts in report["datasets"].items() if facts["role"] == "ood"]
    assert len(sets) == 3
    known = select(rows, data=ID)["mcm"]
    aurocs = []
    for data in sets:
        foreign = select(rows, data=data)["mcm"]
        aurocs.append(roc_auc_score(np.r_[np.zeros(len(known)), np.ones(len(foreign))], np.r_[known, foreign]))
    assert report["ood_means"]["ort-int8-static"][ID]["all"]["mcm"]["auroc"]["value"] == pytest.approx(np.mean(aurocs))


def test_tables_show_near_and_far(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """A table per metric for the data set that is not altered, a row per engine and group, and a note which sets are which."""
    folder, report = evaluated
    tables = ood_mean_tables(report)
    assert [table.title.endswith(ID) for table in tables] == [True] * 3
    assert [name for name, _ in tables[0].rows][:3] == ["ort-fp32, near", "ort-fp32, far", "ort-fp32, all"]
    assert tables[0].note == f"Means of 3 sets; near: {NEAR}; far: {FAR}."
    page = (folder / "report.md").read_text()
    assert "OOD detection near and far" in page
    assert f"near: {NEAR}" in page
    assert ood_mean_tables({**report, "ood_means": {}}) == []


def test_a_single_unnamed_set_has_no_means(tmp_path: Path) -> None:
    """Where nothing is averaged, nothing stands in the report."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    options = EvalOptions(data=("synthetic:scenes",), ood=(ODD,), baseline="ort-fp32", limit=20, bench_seconds=0, resamples=5)
    report = evaluate_bundle(bundle, options, tmp_path / "out")
    assert report["ood_means"] == {}
    assert "near and far" not in (tmp_path / "out" / "report.md").read_text()


def test_names_are_checked(tmp_path: Path) -> None:
    """A set is near or far and not both; known data is no foreign data; a set named twice over counts once, with its name."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    options: dict[str, Any] = {"limit": 5, "seed": 0}
    with pytest.raises(UsageError, match="by --ood-near and by --ood-far"):
        load_sets(bundle, [ID], [], near=[NEAR], far=[NEAR], **options)
    with pytest.raises(UsageError, match="named by --data and by --ood"):
        load_sets(bundle, [ID], [], near=[ID], **options)
    _, outside = load_sets(bundle, [ID], [NEAR, FAR], near=[NEAR], **options)
    assert {data: images.distance for data, images in outside.items()} == {NEAR: "near", FAR: None}
    _, again = load_sets(bundle, [ID], [FAR], near=[NEAR], **options)
    assert [replace(images, source=None, index=None) for images in again.values()] == [
        replace(images, source=None, index=None) for images in outside.values()
    ]


def test_command_line_names_near_and_far(tmp_path: Path) -> None:
    """--ood-near and --ood-far alone are OOD data enough."""
    bundle = make_toy_bundle(tmp_path / "bundle").folder
    quick = ["--baseline", "ort-fp32", "--engines", "ort-int8-static", "--no-bench", "--limit", "20", "--resamples", "5", "-q"]
    arguments = ["--data", "synthetic:scenes", "--ood-near", "synthetic:scenes-near", "--ood-far", "synthetic:scenes-far"]
    assert main(["eval", str(bundle), *arguments, *quick, "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["ood_means"]["ort-int8-static"][ID]) == {"near", "far", "all"}


def test_two_engines_of_a_report_are_compared_in_their_means(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """The difference of the means is paired, image by image; against itself a report shows none, against its baseline its own."""
    folder, report = evaluated
    stored = read_report(folder)
    means = report["ood_means"]
    found = between_engines(stored, "ort-int8-dynamic", "ort-int8-static", resamples=40)["ood_means"]["ort-int8-static"]
    for data in (ID, NOISE):
        for group in ("near", "far", "all"):
            first, second = (means[engine][data][group]["mcm"]["auroc"]["value"] for engine in ("ort-int8-dynamic", "ort-int8-static"))
            entry = found[data][group]["mcm"]["auroc"]
            assert (entry["first"], entry["value"], entry["paired"]) == (pytest.approx(first), pytest.approx(second), True)
            assert entry["delta"] == pytest.approx(second - first)
            assert entry["delta_ci95"][0] <= entry["delta"] <= entry["delta_ci95"][1]
            assert 0 <= entry["p_value_holm"] <= 1
    same = between_reports(stored, stored, ["ort-int8-static"], resamples=40)["ood_means"]["ort-int8-static"]
    assert all(entry["delta"] == 0 for entry in same[ID]["all"]["mcm"].values() if entry["delta"] is not None)
    assert between_engines(stored, "ort-fp32", "ort-int8-static")["ood_means"] == {"ort-int8-static": means["ort-int8-static"]}


def test_gates_read_the_means_of_a_comparison(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """They are judged in a comparison as they are in a report."""
    folder, report = evaluated
    value = report["ood_means"]["ort-int8-static"][ID]["near"]["mcm"]["auroc"]["value"]
    stored = read_report(folder)
    compared = between_engines(stored, "ort-int8-dynamic", "ort-int8-static", resamples=10)
    rules = ["near.mcm.auroc:threshold=0", f"near.mcm.auroc.value>{value - 0.01}"]
    gates, _ = judge(compared, rules)
    outcomes = {(gate["rule"], gate["data"]): gate["outcome"] for gate in gates}
    assert outcomes[rules[0], f"{ID}|near mcm"] == "pass"
    assert outcomes[rules[1], f"{ID}|near mcm"] == "fail"


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [
        ("standard", {"ssb_hard", "ninco"}, {"inaturalist", "textures", "openimage_o"}),
        ("cifar10", {"cifar100", "tin"}, {"mnist", "svhn", "texture", "places365"}),
        ("cifar100", {"cifar10", "tin"}, {"mnist", "svhn", "texture", "places365"}),
        ("demo", {"synthetic:scenes-near"}, {"synthetic:scenes-far"}),
    ],
)
def test_suites_name_near_and_far_as_openood_does(name: str, near: set[str], far: set[str]) -> None:
    """OpenOOD v1.5's own division, and that of the drawn scenes."""
    suite = read_suite(name)
    assert {entry.id.rpartition("/")[2] for entry in suite.ood_near} == near
    assert {entry.id.rpartition("/")[2] for entry in suite.ood_far} == far
