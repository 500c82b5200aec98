"""The axes of shift and spurious correlation: which data sets belong together, every figure by a slow loop, and the report of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from toy_bundle import make_toy_bundle

from clipq.cli.main import main
from clipq.errors import UsageError
from clipq.evaluate.difference import between_engines, between_reports
from clipq.evaluate.gates.parse import parse_gate
from clipq.evaluate.gates.readings import readings
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions
from clipq.evaluate.report.markdown import render_markdown
from clipq.evaluate.report.read import read_report
from clipq.evaluate.report.robustness import robustness_cell, robustness_tables
from clipq.evaluate.robustness.block import Evaluated, robustness_parts
from clipq.evaluate.robustness.cells import find_cells
from clipq.evaluate.robustness.measured import Accuracy, TwoSets
from clipq.evaluate.robustness.noise import CELL_METRICS
from clipq.evaluate.robustness.pairs import axis_of, check_groups, find_pairs
from clipq.evaluate.robustness.published import published_line
from clipq.evaluate.robustness.shift import line_for, shift_entry
from clipq.evaluate.robustness.spurious import class_rows, spurious_entry, worst_group
from clipq.evaluate.statistics.bootstrap import resample_counts
from clipq.evaluate.statistics.classification import resample_classification

SCHEMA = json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text())
RESAMPLES, SEED = 150, 3
KNOWN, SHIFTED = "imagenet:/val", "imagenet-r:/r"
COMMON, COUNTER = "waterbirds:/w:common", "waterbirds:/w:counter"


# --- which data sets belong together -------------------------------------------------------------------------------------


def test_pairs_that_ids_tell() -> None:
    """The whole of ImageNet goes with every relative, a subset with its own set alone; groups need the same folder."""
    ids = [
        *(KNOWN, "imagenet:/val:r", SHIFTED, "imagenet-a:/a", "imagenet-v2:/v", "imagenet-sketch:/s", "objectnet:/o"),
        *(COMMON, COUNTER, "waterbirds:/other:counter", "waterbirds:/w", "counteranimal:/c:counter", "wds:/data/cifar10"),
        *("synthetic:scenes", "synthetic:scenes-noise", "synthetic:scenes-shift", "synthetic:scenes-spurious"),
    ]
    found = find_pairs(ids)
    assert set(found.shift) == {
        *((KNOWN, other) for other in (SHIFTED, "imagenet-a:/a", "imagenet-v2:/v", "imagenet-sketch:/s", "objectnet:/o")),
        *(("imagenet:/val:r", SHIFTED), ("synthetic:scenes", "synthetic:scenes-shift")),
    }
    assert found.spurious == ((COMMON, COUNTER), ("synthetic:scenes", "synthetic:scenes-spurious"))
    assert found.noise == (("synthetic:scenes", "synthetic:scenes-noise"),)


def test_pairs_that_were_asked_for() -> None:
    """They come first, and once, though their ids tell them too; without a partner there is no pair."""
    asked = ("wds:/a", "wds:/b")
    assert find_pairs(["synthetic:scenes-shift", "corrupt-synth:fog/1:synthetic:scenes-shift"]).shift == ()
    assert find_pairs([KNOWN, SHIFTED, *asked], shift=[asked, (KNOWN, SHIFTED)]).shift == (asked, (KNOWN, SHIFTED))
    assert find_pairs(asked, spurious=[asked]).spurious == (asked,)


def test_groups_share_their_names() -> None:
    """Two groups that are told apart by other names are no two groups."""
    check_groups({"a": ("x", "y"), "b": ("x", "y")}, [("a", "b")])
    with pytest.raises(UsageError, match="no two groups"):
        check_groups({"a": ("x", "y"), "b": ("y", "x")}, [("a", "b")])


@pytest.mark.parametrize(
    ("data", "axis"),
    [
        *(("synthetic:scenes", None), ("synthetic:scenes-noise", "noise"), ("synthetic:scenes-spurious", "spurious")),
        *(("corrupt-synth:fog/1:synthetic:scenes", "noise"), ("cifar10-c:/c:fog/1", "noise"), (SHIFTED, "shift"), (KNOWN, None)),
        *((COMMON, None), (COUNTER, "spurious"), ("imagefolder:/my-noise", None)),
    ],
)
def test_axis_of_a_data_id(data: str, axis: str | None) -> None:
    """Only ids whose kind says so lie on an axis; a folder may be called what it likes."""
    assert axis_of(data) == axis


def test_corrupted_copies_are_found() -> None:
    """By the set they name, or the one CIFAR that is there; severities that some corruption lacks are left out."""
    clean, copies = "synthetic:scenes", [f"corrupt-synth:{cell}:synthetic:scenes" for cell in ("fog/1", "fog/3", "snow/3")]
    assert find_cells([clean, *copies]) == {clean: {("fog", 3): copies[1], ("snow", 3): copies[2]}}
    assert find_cells([clean, copies[0], copies[2]]) == {}
    assert find_cells(copies) == {}
    published = "cifar10-c:/data/c:gaussian_noise/5"
    assert find_cells(["cifar10:/a", published]) == {"cifar10:/a": {("gaussian_noise", 5): published}}
    assert find_cells(["cifar10:/a", "cifar10:/b", published]) == {}
    assert find_cells(["cifar100:/a", published]) == {}


# --- figures, each by a slow loop -----------------------------------------------------------------------------------------


def _flags(n: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def _accuracy(flags: np.ndarray) -> Accuracy:
    draws = [flags[np.repeat(np.arange(len(flags)), counts)].mean() for counts in resample_counts(len(flags), RESAMPLES, SEED)]
    return Accuracy(np.array([flags.mean(), *draws]), len(flags))


FIRST = {"before": _flags(300, 0.8, 0), "after": _flags(300, 0.7, 1)}
SECOND = {"before": _flags(200, 0.5, 2), "after": _flags(200, 0.4, 3)}


def _sets(when: str) -> TwoSets:
    return TwoSets.of(_accuracy(FIRST[when]), _accuracy(SECOND[when]))


def _slow(figure: Any) -> tuple[float, list[float]]:
    """Return a figure of (known before, known after, shifted before, shifted after) and its resamples, the second set's moved by one."""
    rows = [_accuracy(flags).row for flags in (FIRST["before"], FIRST["after"], SECOND["before"], SECOND["after"])]
    draws = [
        figure(rows[0][1 + b], rows[1][1 + b], rows[2][1 + (b - 1) % RESAMPLES], rows[3][1 + (b - 1) % RESAMPLES]) for b in range(RESAMPLES)
    ]
    return figure(*(row[0] for row in rows)), draws


def _effective(known_before: float, known: float, shifted_before: float, shifted: float) -> float:
    odds = shifted_before / (1 - shifted_before) * (known / (1 - known)) / (known_before / (1 - known_before))
    return shifted - odds / (1 + odds)


FIGURES = {
    "relative_loss_known": lambda nb, na, _sb, _sa: (nb - na) / nb,
    "relative_loss_shifted": lambda _nb, _na, sb, sa: (sb - sa) / sb,
    "effective_robustness": _effective,
    "relative_loss_common": lambda nb, na, _sb, _sa: (nb - na) / nb,
    "relative_loss_counter": lambda _nb, _na, sb, sa: (sb - sa) / sb,
    "vuln_add": lambda nb, na, sb, sa: (sb - sa) / sb - (nb - na) / nb,
}
DIFFERENCES = {
    "accuracy_drop": (lambda nb, _na, sb, _sa: nb - sb, lambda _nb, na, _sb, sa: na - sa),
    "rsg": (lambda nb, _na, sb, _sa: (nb - sb) / nb, lambda _nb, na, _sb, sa: (na - sa) / na),
}


def _both() -> dict[str, Any]:
    return shift_entry(_sets("after"), _sets("before")) | spurious_entry(_sets("after"), _sets("before"))


@pytest.mark.parametrize("metric", FIGURES)
def test_comparisons_by_a_slow_loop(metric: str) -> None:
    """Value, interval and p-value of what compares with the baseline itself."""
    entry, (value, draws) = _both()[metric], _slow(FIGURES[metric])
    assert entry["value"] == pytest.approx(value)
    assert entry["ci95"] == pytest.approx(np.percentile(draws, [2.5, 97.5]).tolist())
    tail = min(sum(draw <= 0 for draw in draws), sum(draw >= 0 for draw in draws))
    assert entry["p_value"] == pytest.approx(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)))
    assert (entry["delta"], entry["delta_ci95"], entry["test"], entry["n"]) == (None, None, "bootstrap", 200)


@pytest.mark.parametrize("metric", DIFFERENCES)
def test_differences_by_a_slow_loop(metric: str) -> None:
    """Value and difference to the baseline, paired resample by resample."""
    entry = _both()[metric]
    before, after = (_slow(figure) for figure in DIFFERENCES[metric])
    deltas = np.subtract(after[1], before[1])
    assert entry["value"] == pytest.approx(after[0])
    assert entry["ci95"] == pytest.approx(np.percentile(after[1], [2.5, 97.5]).tolist())
    assert entry["delta"] == pytest.approx(after[0] - before[0])
    assert entry["delta_ci95"] == pytest.approx(np.percentile(deltas, [2.5, 97.5]).tolist())
    assert 0 < entry["p_value"] <= 1


def test_paper_identities() -> None:
    """The rise of the gap and the added vulnerability tell the same story: ``dRSG = (1 - RSG(f)) Vuln_add / (1 - delta_N)``."""
    found, base = _both(), spurious_entry(_sets("before"), None)
    expected = (1 - base["rsg"]["value"]) * found["vuln_add"]["value"] / (1 - found["relative_loss_common"]["value"])
    assert found["rsg"]["delta"] == pytest.approx(expected)


def test_baseline_has_no_comparison_with_itself() -> None:
    """It has its own drop and gap; an engine that answers alike has no difference, and p is 1."""
    assert set(shift_entry(_sets("before"), None)) == {"accuracy_drop"}
    assert set(spurious_entry(_sets("before"), None)) == {"rsg"}
    same = shift_entry(_sets("before"), _sets("before")) | spurious_entry(_sets("before"), _sets("before"))
    for metric in FIGURES:
        assert (same[metric]["value"], same[metric]["ci95"], same[metric]["p_value"]) == (0.0, [0.0, 0.0], 1.0)
    for metric in DIFFERENCES:
        assert (same[metric]["delta"], same[metric]["p_value"]) == (0.0, 1.0)


def test_nothing_to_divide_by() -> None:
    """An engine that is never right on the common group has no gap, and the report says null, not infinity."""
    none = TwoSets.of(_accuracy(np.zeros(50, np.bool_)), _accuracy(FIRST["after"]))
    entry = spurious_entry(none, none)
    assert [entry[metric]["value"] for metric in ("rsg", "relative_loss_common", "vuln_add")] == [None] * 3
    assert entry["rsg"]["ci95"] is None
    assert entry["relative_loss_counter"]["value"] == 0.0


def test_resamples_of_two_sets_are_independent() -> None:
    """Two sets with equally many images draw the same positions; their difference must not profit from it."""
    flags = _flags(400, 0.6, 5)
    twins = TwoSets.of(_accuracy(flags), _accuracy(flags))
    assert np.std(twins.first.row - twins.second.row) > np.std(twins.first.row)
    assert abs(np.corrcoef(twins.first.row[1:], twins.second.row[1:])[0, 1]) < 0.3
    assert twins.second.row[0] == flags.mean()
    assert sorted(twins.second.row) == sorted(twins.first.row)


def test_worst_group_by_a_slow_loop() -> None:
    """The lowest accuracy of four groups of class and cue, on all images and on every resample."""
    rng = np.random.default_rng(7)
    labels, correct = ([rng.integers(0, 2, n) for n in (120, 80)], [rng.random(n) < 0.7 for n in (120, 80)])
    rows = [class_rows(*side, resamples=RESAMPLES, seed=SEED) for side in zip(labels, correct, strict=True)]
    worst = worst_group(rows)
    assert worst[0] == min(c[y == k].mean() for y, c in zip(labels, correct, strict=True) for k in (0, 1))
    counts = [list(resample_counts(n, RESAMPLES, SEED)) for n in (120, 80)]
    for b in (0, 1, RESAMPLES - 1):
        drawn = [counts[0][b], counts[1][(b - 1) % RESAMPLES]]
        slow = [
            np.repeat(c[y == k], w[y == k]).mean() for y, c, w in zip(labels, correct, drawn, strict=True) for k in (0, 1)
        ]  # fmt: skip
        assert worst[1 + b] == pytest.approx(min(slow))
    assert worst_group([class_rows(np.array([4, 4]), np.array([True, False]), resamples=2, seed=0)])[0] == 0.5


def test_class_that_a_resample_lacks_is_no_worst_group() -> None:
    """Of a single image of its class hardly every resample has one; where it is absent the other class decides."""
    labels, correct = np.array([0] * 9 + [1]), np.array([True] * 9 + [False])
    rows = class_rows(labels, correct, resamples=200, seed=0)
    absent = np.isnan(rows[:, 1])
    assert 0 < absent.sum() < 200
    assert worst_group([rows])[absent].tolist() == [1.0] * int(absent.sum())


def test_published_line_is_for_the_whole_of_imagenet() -> None:
    """A subset, other classes and other sets have no published accuracies to be compared with."""
    assert line_for(KNOWN, SHIFTED, 1000) == "imagenet-r"
    assert line_for("wds:/imagenet1k", "objectnet:/o", 1000) == "objectnet"
    assert line_for("imagenet:/val:r", SHIFTED, 200) == line_for("imagenet:/val:r", SHIFTED, 1000) == ""
    assert line_for("synthetic:scenes", "synthetic:scenes-shift", 60) == line_for(KNOWN, "wds:/r", 1000) == ""


def test_residual_off_the_published_line() -> None:
    """Accuracy on the shifted set less what the line foretells, with the line beside it and its difference to the baseline."""
    line = published_line("imagenet-r")
    entry = shift_entry(_sets("after"), _sets("before"), "imagenet-r")["line_residual"]
    foretold = [1 / (1 + math.exp(-(line.intercept + line.slope * math.log(p / (1 - p))))) for p in (FIRST[w].mean() for w in FIRST)]
    residuals = [SECOND[when].mean() - expected for when, expected in zip(FIRST, foretold, strict=True)]
    assert entry["value"] == pytest.approx(residuals[1])
    assert entry["delta"] == pytest.approx(residuals[1] - residuals[0])
    assert (entry["line"]["models"], entry["line"]["slope"]) == (line.models, line.slope)
    assert "commit" in entry["line"]["source"]


# --- the whole part of a report -------------------------------------------------------------------------------------------


def _evaluated(accuracies: dict[str, dict[str, float]], classes: dict[str, int], n: int = 240) -> Evaluated:
    """Return engines that are right by chance with given shares, as scoring would leave them."""
    resampled, samples = {}, []
    for number, (engine, shares) in enumerate(accuracies.items()):
        resampled[engine] = {}
        for place, (data, share) in enumerate(shares.items()):
            labels = np.arange(n) % min(classes[data], 5)
            right = np.random.default_rng(place).random(n) < share - 0.01 * number
            predictions = np.where(right, labels, (labels + 1) % classes[data])
            outcomes = outcomes_from_predictions(labels, predictions, np.full(n, 0.5))
            resampled[engine][data] = resample_classification(outcomes, resamples=RESAMPLES, seed=SEED).only(CELL_METRICS)
            columns = {"engine": np.full(n, engine), "data": np.full(n, data), "classifier": np.full(n, data)}
            samples.append({**columns, "label": labels, "prediction": predictions})
    table = {name: np.concatenate([part[name] for part in samples]) for name in samples[0]}
    scores: Any = SimpleNamespace(results=accuracies, resampled=resampled, samples=table)
    sets: Any = {data: SimpleNamespace(source=SimpleNamespace(classnames=("x",) * count)) for data, count in classes.items()}
    return Evaluated(scores, sets, next(iter(accuracies)), SEED)


SHARES = {KNOWN: 0.7, SHIFTED: 0.6, COMMON: 0.9, COUNTER: 0.5}
CLASSES = {KNOWN: 1000, SHIFTED: 200, COMMON: 2, COUNTER: 2}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Three engines on ImageNet with ImageNet-R and on Waterbirds."""
    evaluated = _evaluated({"fp32": SHARES, "int8": SHARES, "worse": {**SHARES, COUNTER: 0.3}}, CLASSES)
    return robustness_parts(evaluated, find_pairs(list(SHARES)))


def test_part_of_the_report(parts: dict[str, Any]) -> None:
    """Axes that were not measured are absent, the schema holds, p-values are corrected over the engines."""
    assert {engine: list(axes) for engine, axes in parts.items()} == {key: ["shift", "spurious"] for key in ("fp32", "int8", "worse")}
    jsonschema.validate(parts, SCHEMA["properties"]["robustness"] | {"$defs": SCHEMA["$defs"]})
    assert json.loads(json.dumps(parts, allow_nan=False)) == parts
    pair = f"{COMMON}|{COUNTER}"
    values = [parts[engine]["spurious"][pair]["rsg"] for engine in ("int8", "worse")]
    assert sorted(value["p_value_holm"] for value in values) >= sorted(value["p_value"] for value in values)
    assert parts["worse"]["spurious"][pair]["vuln_add"]["p_value_holm"] < 0.05
    assert parts["worse"]["spurious"][pair]["worst_group"]["delta"] < 0
    assert "line_residual" in parts["int8"]["shift"][f"{KNOWN}|{SHIFTED}"]


def test_worst_of_many_groups_is_left_out() -> None:
    """With a thousand classes the worst group is a matter of luck."""
    pair = ("counteranimal:/c:common", "counteranimal:/c:counter")
    many = robustness_parts(_evaluated({"fp32": dict.fromkeys(pair, 0.6)}, dict.fromkeys(pair, 1000)), find_pairs(pair))
    assert set(many["fp32"]["spurious"]["|".join(pair)]) == {"rsg"}


def test_nothing_belongs_together() -> None:
    """Without pairs there is no part."""
    assert robustness_parts(_evaluated({"fp32": {KNOWN: 0.7}}, {KNOWN: 1000}), find_pairs([KNOWN])) == {}


def test_gates_name_the_axes(parts: dict[str, Any]) -> None:
    """By metric, by axis and metric, with or without a field; each reads its own numbers."""
    report = {"robustness": parts, "engines": dict.fromkeys(parts), "baseline": "fp32"}

    def read(rule: str) -> list[tuple[str, float | None]]:
        return [(reading.engine, reading.value) for reading in readings(parse_gate(rule), report)]

    spurious, shift = f"{COMMON}|{COUNTER}", f"{KNOWN}|{SHIFTED}"
    expected = [(engine, parts[engine]["spurious"][spurious]["rsg"]["delta"]) for engine in ("int8", "worse")]
    assert read("rsg.delta>0.02") == read("spurious.rsg.delta_pp>2") == read("rsg:max-degradation=0.02") == expected
    value = parts["int8"]["shift"][shift]["effective_robustness"]["value"]
    assert read("int8:effective_robustness<-0.01") == read("int8: shift.effective_robustness.value_pp < -1") == [("int8", value)]
    assert read("noise.mce.delta>0.1") == read("mean_error.delta>0.01") == read("noise.accuracy_drop.delta>0") == []
    assert parse_gate("mce.delta>0.1").kind == "results"
    assert parse_gate("noise.mce>1.1").quantity.label == "mCE"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("vuln_add.delta>0.01", ["unknown field of vuln_add", "value"]),
        ("spurious.rgs.delta>0.01", ["unknown metric of robustness", "Did you mean 'rsg'"]),
        ("vuln_add:max-degradation=0.01", ["comparison with the baseline itself"]),
        ("effective_robustnes<-0.01", ["cannot read"]),
    ],
)
def test_gates_that_mean_nothing(rule: str, words: list[str]) -> None:
    """A slip is told in one line."""
    with pytest.raises(UsageError) as caught:
        parse_gate(rule)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_tables_keep_the_axes_apart(parts: dict[str, Any]) -> None:
    """A table per pair, in the order of the axes, with both accuracies first and a note a newcomer understands."""
    results = {engine: {data: {"acc1": _measured(0.5), "ece15": _measured(0.1)} for data in SHARES} for engine in parts}
    datasets = {data: {"n": 240, "classes": CLASSES[data]} for data in SHARES}
    report = {"robustness": parts, "results": results, "datasets": datasets, "baseline": "fp32"}
    shift, spurious, calibration = robustness_tables(report)
    assert shift.title == f"Covariate shift: {KNOWN} to {SHIFTED}"
    assert list(shift.columns[:3]) == ["Top-1, known", "Top-1, shifted", "Accuracy drop"]
    assert "1,000 and 200 classes" in shift.note
    assert "published line is of" in shift.note
    assert spurious.title == f"Spurious correlation: {COMMON} to {COUNTER}"
    assert spurious.columns[-1] == "Worst group"
    assert "leans on the cue" in spurious.note
    worse = dict(spurious.rows)["worse"][spurious.columns.index("Added vulnerability")]
    assert (worse.tone, worse.word, worse.value[0]) == ("worse", "worse", "+")
    assert [cell.value for cell in dict(spurious.rows)["fp32"][3:6]] == ["–"] * 3
    assert list(calibration.columns) == ["imagenet", "waterbirds common", "imagenet-r", "waterbirds counter"]
    assert len(shift.hints) == len(shift.columns)
    assert len(spurious.hints) == len(spurious.columns)


def _measured(value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value, value], "n": 240, "delta": None, "delta_ci95": None, "p_value": None}


def test_cell_of_a_comparison() -> None:
    """Its own interval says better or worse; without one there is neither, and nothing is shown for it."""
    entry = {**_measured(-0.05), "ci95": [-0.08, -0.02], "p_value": 0.01, "p_value_holm": 0.02}
    cell = robustness_cell("effective_robustness", entry)
    assert (cell.value, cell.interval, cell.word) == ("−5.00 pp", "[−8.00, −2.00]", "worse")
    assert robustness_cell("relative_loss_shifted", entry).word == "better"
    assert robustness_cell("relative_loss_shifted", entry).value == "−5.00 %"
    assert robustness_cell("vuln_add", {**entry, "ci95": [-0.08, 0.01]}).word == "within noise"
    assert robustness_cell("vuln_add", {**entry, "p_value_holm": 0.2}).word == "within noise"
    unsure = {**entry, "ci95": [-0.08, 0.01], "minimum_detectable": 0.064}
    assert robustness_cell("effective_robustness", unsure).word == "within noise (6.40 pp would show)"
    assert robustness_cell("effective_robustness", {**unsure, "ci95": [-0.08, -0.02]}).word == "worse"
    assert robustness_cell("vuln_add", {**entry, "ci95": None}).interval == ""
    assert robustness_cell("vuln_add", None).value == "–"


# --- from the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, forty birds before land and water, and two folders of pictures of the same classes."""
    folder, rng = tmp_path_factory.mktemp("robustness"), np.random.default_rng(0)
    make_toy_bundle(folder / "bundle")
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(40):
        y, place = number % 2, number // 2 % 2
        lines.append(f"{number},{number}.png,{y},2,{place},x")
        (folder / "birds").mkdir(exist_ok=True)
        _picture(folder / "birds" / f"{number}.png", rng)
    (folder / "birds" / "metadata.csv").write_text("\n".join(lines))
    for name in ("plain", "drawn", "other"):
        for number in range(12):
            place = folder / name / ("cat" if number % 2 else "dog" if name != "other" else "cow") / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            _picture(place, rng)
    return folder


def _picture(path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(path)


def _eval(folder: Path, out: str, *more: str) -> int:
    fixed = ["--baseline", "ort-fp32", "--no-bench", "--resamples", "60", "-q", "-o", str(folder / out)]
    return main(["eval", str(folder / "bundle"), *more, *fixed])


def test_waterbirds_from_the_command_line(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both groups of one folder are paired by their ids; the worst group is that of the samples table."""
    data = f"waterbirds:{birds}/birds:common,waterbirds:{birds}/birds:counter"
    assert _eval(birds, "birds-out", "--data", data, "--fail-on", "worst_group<0") == 0
    report = json.loads((birds / "birds-out" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    from clipq.evaluate.report.samples import read_samples

    rows = read_samples(birds / "birds-out" / "samples.parquet")
    for engine, axes in report["robustness"].items():
        (entry,) = axes["spurious"].values()
        slow = [
            (rows["prediction"] == rows["label"])[(rows["engine"] == engine) & (rows["data"] == name) & (rows["label"] == label)].mean()
            for name in set(rows["data"])
            for label in (0, 1)
        ]
        assert entry["worst_group"]["value"] == pytest.approx(min(slow))
    text = (birds / "birds-out" / "report.md").read_text()
    page = (birds / "birds-out" / "report.html").read_text()
    for words in ("Robustness, axis by axis", "Spurious correlation: waterbirds:", "Relative spurious gap"):
        assert words in text
        assert words in page
    assert "spurious.rsg" in page
    assert render_markdown(report) == text


def test_pairs_from_the_command_line(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--shift`` and ``--spurious`` bring their data along, by whatever spelling of a path, and a gate on them ends with 3."""
    pair = f"imagefolder:{birds}/plain/../plain=imagefolder:{birds}/drawn"
    assert _eval(birds, "pairs", "--shift", pair, "--spurious", pair, "--fail-on", "effective_robustness>-1") == 3
    report = json.loads((birds / "pairs" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert list(report["datasets"]) == [f"imagefolder:{birds}/plain", f"imagefolder:{birds}/drawn"]
    for axes in report["robustness"].values():
        assert list(axes["shift"]) == list(axes["spurious"]) == ["|".join(report["datasets"])]
    assert "effective_robustness>-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shift", "imagefolder:{0}/plain"], ["--shift", "with = between"]),
        (["--shift", "a=b=c"], ["--shift", "with = between"]),
        (["--spurious", "imagefolder:{0}/plain=imagefolder:{0}/plain"], ["two data ids"]),
        (["--shift", "imagefolder:{0}/plain=imagefolder:{0}/plain/."], ["compared with itself"]),
        (["--shift", "imagefolder:{0}/plain=imagefolder:{0}/nowhere"], ["no data set at"]),
        (["--spurious", "imagefolder:{0}/plain=imagefolder:{0}/other"], ["no two groups"]),
    ],
)
def test_pairs_that_are_none(options: list[str], words: list[str], birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no pair of data sets ends with 2 and one line, before anything is embedded."""
    assert _eval(birds, "never", *(option.format(birds) for option in options)) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (birds / "never" / "embeddings").exists()


def test_corrupted_copies_named_as_data(birds: Path) -> None:
    """Copies that ``--data`` names are put together with their clean set: the mean error is that of their accuracies."""
    copies = [f"corrupt-synth:{name}/2:synthetic:scenes" for name in ("fog", "contrast")]
    assert _eval(birds, "copies", "--data", ",".join(["synthetic:scenes", *copies]), "--limit", "60") == 0
    report = json.loads((birds / "copies" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    for engine, axes in report["robustness"].items():
        (noise,) = axes["noise"].values()
        errors = [1 - report["results"][engine][copy]["acc1"]["value"] for copy in copies]
        assert noise["mean_error"]["value"] == pytest.approx(np.mean(errors))
        assert (noise["corruptions"], noise["severities"]) == (["fog", "contrast"], [2])
    text = (birds / "copies" / "report.md").read_text()
    assert "### Error by corruption: synthetic:scenes" in text
    assert "2 corruptions at severity 2" in text


def test_axes_between_engines_of_a_report(birds: Path) -> None:
    """From the samples alone, the figures of one engine against another are those the report has against its baseline."""
    assert _eval(birds, "between", "--data", f"waterbirds:{birds}/birds:common,waterbirds:{birds}/birds:counter") == 0
    stored = read_report(birds / "between")
    own = stored.report["robustness"]["ort-int8-static"]["spurious"]
    elsewhere = replace(stored, report={**stored.report, "baseline": "torch-fp32"})
    found = between_engines(elsewhere, "ort-fp32", "ort-int8-static", resamples=60)["robustness"]["ort-int8-static"]["spurious"]
    for pair, metrics in own.items():
        assert found[pair].keys() == metrics.keys()
        for metric, entry in metrics.items():
            assert (found[pair][metric]["value"], found[pair][metric]["delta"]) == (entry["value"], entry["delta"])
    direct = between_engines(stored, "ort-fp32", "ort-int8-static")
    assert direct["robustness"]["ort-int8-static"] == stored.report["robustness"]["ort-int8-static"]


def test_gate_of_an_axis_between_reports(birds: Path) -> None:
    """A report compared with itself has no added vulnerability, and a gate on it finds the figure of every engine."""
    assert _eval(birds, "again", "--data", f"waterbirds:{birds}/birds:common,waterbirds:{birds}/birds:counter") == 0
    stored = read_report(birds / "again")
    comparison = between_reports(stored, stored, resamples=40)
    for rule in ("rsg.delta>0.9", "vuln_add>=0"):
        found = [(reading.engine, reading.value) for reading in readings(parse_gate(rule), comparison)]
        assert found == [(engine, 0.0) for engine in stored.report["engines"]]
