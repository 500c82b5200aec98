"""The noise axis: mean error, mCE and relative mCE by hand and by a slow loop, light outcomes, and the whole way from the command line."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_bundle import MODEL, make_toy_bundle

from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import pixels_of
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.table import open_source
from clipq.cli.main import main
from clipq.errors import UsageError
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits, outcomes_from_predictions, outcomes_from_probabilities
from clipq.evaluate.metrics.probabilities import normalised_sigmoid
from clipq.evaluate.robustness.light import light_outcomes
from clipq.evaluate.robustness.noise import ALEXNET, CELL_METRICS, NoiseCells, noise_parts
from clipq.evaluate.robustness.noise_options import NoiseOptions, read_corruptions, read_severities
from clipq.evaluate.robustness.prepared import prepared
from clipq.evaluate.statistics.classification import classification_values, resample_classification

SCHEMA = json.loads((files("clipq.evaluate.report") / "report.schema.json").read_text())
ALL = (1, 2, 3, 4, 5)
PREPROCESS = Preprocess((24, 24), "shortest", "bicubic", (0.5,) * 3, (0.25,) * 3)


def outcomes(right: np.ndarray) -> Outcomes:
    """Return outcomes that are right where asked for."""
    labels = np.zeros(len(right), np.int64)
    return outcomes_from_predictions(labels, np.where(right, 0, 1), np.full(len(right), 0.7))


def share(right: float, n: int = 20) -> np.ndarray:
    """Return flags of which this share is right."""
    return np.arange(n) < round(right * n)


def cells(clean: np.ndarray, copies: dict[tuple[str, int], np.ndarray], resamples: int = 60) -> NoiseCells:
    """Return what was measured of one engine whose right answers are these."""
    made = {key: resample_classification(outcomes(right), resamples=resamples, metrics=["acc1"]) for key, right in copies.items()}
    return NoiseCells(resample_classification(outcomes(clean), resamples=resamples, metrics=["acc1"]), made)


def by_hand() -> dict[str, dict[str, NoiseCells]]:
    """Return two engines on two corruptions at two severities, with errors in twentieths."""
    base = {("fog", 1): share(0.8), ("fog", 3): share(0.6), ("snow", 1): share(0.7), ("snow", 3): share(0.5)}
    other = {("fog", 1): share(0.7), ("fog", 3): share(0.4), ("snow", 1): share(0.7), ("snow", 3): share(0.3)}
    return {"base": {"d": cells(share(0.9), base)}, "int8": {"d": cells(share(0.85), other)}}


def test_figures_by_hand() -> None:
    """Errors 0.2, 0.4 and 0.3, 0.5 against 0.3, 0.6 and 0.3, 0.7; clean 0.1 against 0.15."""
    parts = noise_parts(by_hand(), "base", "baseline")
    base, int8 = parts["base"]["d"], parts["int8"]["d"]
    assert base["mean_error"]["value"] == pytest.approx(0.35)
    assert int8["mean_error"]["value"] == pytest.approx(0.475)
    assert int8["mean_error"]["delta"] == pytest.approx(0.125)
    assert (base["mce"]["value"], base["relative_mce"]["value"]) == pytest.approx((1, 1))
    assert int8["mce"]["value"] == pytest.approx((0.9 / 0.6 + 1.0 / 0.8) / 2)
    assert int8["relative_mce"]["value"] == pytest.approx((0.6 / 0.4 + 0.7 / 0.6) / 2)
    assert int8["errors"]["fog"]["value"] == pytest.approx(0.45)
    assert int8["cells"]["snow"]["3"]["acc1"]["delta"] == pytest.approx(-0.2)
    assert int8["cells"]["snow"]["3"]["acc1"]["test"] == "mcnemar"
    assert (int8["corruptions"], int8["severities"], int8["reference"]) == (["fog", "snow"], [1, 3], "baseline")
    assert base["mean_error"]["delta"] is None


def test_p_values_are_corrected_over_engines() -> None:
    """With two engines to compare, the smaller p-value counts twice."""
    measured = by_hand()
    measured["int4"] = measured["int8"]
    part = noise_parts(measured, "base", "baseline")["int8"]["d"]
    assert part["mce"]["p_value_holm"] == pytest.approx(min(1, 2 * part["mce"]["p_value"]))


def test_intervals_are_those_of_a_loop_over_resamples() -> None:
    """Value and percentile interval of mCE come out of the same images drawn again and again, counted one by one."""
    rng = np.random.default_rng(0)
    n, names, severities = 40, ("fog", "snow", "frost"), (2, 5)
    right = {e: {(c, s): rng.random(n) < 0.6 for c in names for s in severities} for e in ("base", "int8")}
    clean = {engine: rng.random(n) < 0.9 for engine in right}
    measured = {engine: {"d": cells(clean[engine], right[engine], 50)} for engine in right}
    part = noise_parts(measured, "base", "baseline")["int8"]["d"]
    draws = []
    generator = np.random.Generator(np.random.SFC64([0, 0]))
    for rows in [np.arange(n)] + [generator.integers(0, n, size=n) for _ in range(50)]:
        ratios = []
        for name in names:
            own, other = (sum(1 - right[engine][name, s][rows].mean() for s in severities) for engine in ("int8", "base"))
            ratios.append(own / other)
        draws.append(np.mean(ratios))
    assert part["mce"]["value"] == pytest.approx(draws[0])
    assert part["mce"]["ci95"] == pytest.approx(np.percentile(draws[1:], (2.5, 97.5)).tolist())
    assert part["mce"]["delta"] == pytest.approx(draws[0] - 1)
    assert part["mce"]["interval"] == "percentile"
    assert part["mean_error"]["interval"] == "bca"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_an_engine_equal_to_the_baseline_loses_nothing(seed: int, n: int) -> None:
    """Without a difference mCE is 1 in every resample; the order of the corruptions does not matter; a mean lies between its parts."""
    rng = np.random.default_rng(seed)
    copies = {(name, severity): rng.random(n) < 0.5 for name in ("fog", "snow") for severity in (1, 2)}
    clean = rng.random(n) < 0.8
    same = cells(clean, copies, 20)
    turned = cells(clean, dict(reversed(copies.items())), 20)
    parts = noise_parts({"base": {"d": same}, "other": {"d": turned}}, "base", "baseline")
    part = parts["other"]["d"]
    assert part["mean_error"]["delta"] == pytest.approx(0, abs=1e-12)
    errors = [entry["value"] for entry in part["errors"].values()]
    assert min(errors) - 1e-12 <= part["mean_error"]["value"] <= max(errors) + 1e-12
    if all(error > 0 for error in errors):
        assert part["mce"]["value"] == pytest.approx(1)


def test_nothing_is_divided_by_a_loss_that_is_none() -> None:
    """A baseline that makes no error, or loses nothing to a corruption, leaves mCE or relative mCE without a value."""
    perfect = {"base": {"d": cells(share(1), {("fog", 1): share(1)})}, "int8": {"d": cells(share(1), {("fog", 1): share(0.5)})}}
    part = noise_parts(perfect, "base", "baseline")["int8"]["d"]
    assert part["mce"]["value"] is None
    assert part["relative_mce"]["value"] is None
    assert part["mce"]["ci95"] is None
    assert part["mean_error"]["value"] == pytest.approx(0.5)
    assert json.loads(json.dumps(part, allow_nan=False))


def test_alexnet_is_a_reference_of_all_fifteen() -> None:
    """An engine with AlexNet's own errors has an mCE near 1; with fewer corruptions or severities there is none."""
    assert len(ALEXNET) == 15
    assert (min(ALEXNET, key=ALEXNET.__getitem__), max(ALEXNET, key=ALEXNET.__getitem__)) == ("brightness", "impulse_noise")
    copies = {(name, severity): share(1 - error, 1000) for name, error in ALEXNET.items() for severity in ALL}
    part = noise_parts({"a": {"d": cells(share(1 - 0.435, 1000), copies, 5)}}, "a", "alexnet")["a"]["d"]
    assert part["mce"]["value"] == pytest.approx(1, abs=2e-3)
    assert part["relative_mce"]["value"] == pytest.approx(1, abs=2e-2)
    assert "224" in part["note"]
    few = {key: right for key, right in copies.items() if key[1] < 5}
    assert "mce" not in noise_parts({"a": {"d": cells(share(0.5, 1000), few, 5)}}, "a", "alexnet")["a"]["d"]


@pytest.mark.parametrize("bias", [None, -10.0])
def test_light_outcomes_are_the_outcomes(bias: float | None) -> None:
    """Predictions, confidences and proper scores are those of the full way, for softmax and sigmoid models."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    images, classes = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((7, 8)).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    labels = rng.integers(0, 7, 300)
    model = replace(MODEL, logit_bias=bias)
    found = light_outcomes(images, classes, model, labels, "test")
    logits = (images @ classes.T) * np.float32(model.logit_scale) + np.float32(bias or 0)
    full = outcomes_from_logits(logits, labels) if bias is None else outcomes_from_probabilities(normalised_sigmoid(logits), labels)
    assert np.array_equal(found.predictions, full.predictions)
    for name in ("confidence", "nll", "brier"):
        assert getattr(found, name) == pytest.approx(getattr(full, name), abs=1e-5), name
    wanted = classification_values(found, CELL_METRICS)
    assert sorted(wanted) == sorted(CELL_METRICS)
    assert wanted == pytest.approx({name: classification_values(full)[name] for name in CELL_METRICS}, abs=1e-5)


def test_only_what_is_asked_for_is_computed() -> None:
    """``only`` leaves out the values of other metrics and changes none."""
    flags = share(0.6, 50)
    full, few = (resample_classification(outcomes(flags), resamples=20, metrics=["acc1", "ece15"], only=only) for only in (False, True))
    assert set(few.values) == {"acc1", "ece15"}
    assert all(few.values[name] == full.values[name] and np.array_equal(few.draws[name], full.draws[name]) for name in few.values)


def test_images_are_decoded_once_and_left_as_they_are(tmp_path: Path) -> None:
    """The prepared source shows the pixels the model would see, and the file goes."""
    source = open_source("synthetic:scenes")
    index, preprocess = build_index(source, limit=9, seed=3), PREPROCESS
    expected = [pixels_of(sample, preprocess) for sample in source.read(index.positions.tolist())]
    with prepared(EvalSet(source, index), preprocess, 2, tmp_path) as found:
        samples = list(found.read(index.positions[4:].tolist()))
        assert [sample.id for sample in samples] == list(index.ids[4:])
        assert all(np.array_equal(pixels_of(sample, preprocess), pixels) for sample, pixels in zip(samples, expected[4:], strict=True))
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_stays_unreadable(tmp_path: Path) -> None:
    """What cannot be decoded has no bytes among the prepared images either, so that it is counted as before."""
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (30, 40), "red").save(tmp_path / "images" / "cat" / "a.png")
    (tmp_path / "images" / "cat" / "b.png").write_bytes(b"no image")
    source = open_source(f"imagefolder:{tmp_path / 'images'}")
    with prepared(EvalSet(source, build_index(source)), PREPROCESS, 2, tmp_path) as found:
        assert [bool(sample.data) for sample in found.read()] == [True, False]


def test_options_say_what_is_wrong() -> None:
    """Names, groups, severities and the reference are checked where they are read."""
    assert len(read_corruptions(["15"])) == 15
    assert len(read_corruptions(["15", "all", "fog"])) == 19
    assert read_severities(["5", "1"]) == (1, 5)
    with pytest.raises(UsageError, match="severity"):
        read_severities(["one"])
    with pytest.raises(UsageError, match="Did you mean 'snow'"):
        NoiseOptions(("snw",))
    with pytest.raises(UsageError, match="each once"):
        NoiseOptions(("fog", "fog"))
    with pytest.raises(UsageError, match="each once"):
        NoiseOptions((), ALL)
    with pytest.raises(UsageError, match="AlexNet"):
        NoiseOptions(("fog",), ALL, "alexnet")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle evaluated with two corruptions; one of their copies is named as a data set too."""
    folder = tmp_path_factory.mktemp("noise")
    make_toy_bundle(folder / "bundle")
    assert main(["eval", str(folder / "bundle"), *ARGUMENTS, "-o", str(folder / "out")]) == 0
    return folder


ARGUMENTS = [
    *("--baseline", "ort-fp32", "--no-bench", "--limit", "80", "--resamples", "60", "--quiet", "--engines", "ort-fp32,ort-int8-static"),
    *("--data", "synthetic:scenes,corrupt-synth:snow/5:synthetic:scenes", "--corruptions", "snow,contrast", "--severities", "1,5"),
]


def test_eval_measures_corrupted_copies(evaluated: Path) -> None:
    """From the command line to the report: the figures of a copy are those of the same copy as a data set of its own."""
    report = json.loads((evaluated / "out" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert report["provenance"]["corruptions"]["corruptions"] == ["snow", "contrast"]
    for engine in ("ort-fp32", "ort-int8-static"):
        part = report["robustness"][engine]["noise"]["synthetic:scenes"]
        whole = report["results"][engine]["corrupt-synth:snow/5:synthetic:scenes"]
        cell = part["cells"]["snow"]["5"]
        assert sorted(cell) == sorted(CELL_METRICS)
        for name, entry in cell.items():
            assert entry["value"] == pytest.approx(whole[name]["value"], abs=1e-6)
            assert entry["ci95"] == pytest.approx(whole[name]["ci95"], abs=1e-6)
        errors = [1 - part["cells"][name][severity]["acc1"]["value"] for name in ("snow", "contrast") for severity in ("1", "5")]
        assert part["mean_error"]["value"] == pytest.approx(np.mean(errors))
    page = (evaluated / "out" / "report.md").read_text()
    assert "Mean error" in page
    assert "Contrast" in page


def test_stores_are_used_again(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run with one more severity embeds that alone, and gives the same figures for the others."""
    before = json.loads((evaluated / "out" / "report.json").read_text())["robustness"]
    more = [*(argument for argument in ARGUMENTS if argument != "--quiet"), "--severities", "1,3,5"]
    assert main(["eval", str(evaluated / "bundle"), *more, "-o", str(evaluated / "out")]) == 0
    told = capsys.readouterr().err
    assert "Embedding corrupt-synth:contrast/3:synthetic:scenes" in told
    assert "Embedding corrupt-synth:contrast/5:synthetic:scenes" not in told
    after = json.loads((evaluated / "out" / "report.json").read_text())["robustness"]
    for engine in before:
        old, new = (found[engine]["noise"]["synthetic:scenes"]["cells"]["contrast"] for found in (before, after))
        assert {severity: new[severity] for severity in old} == old


def test_options_without_corruptions_are_refused(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would change nothing is an error of usage, told in one line."""
    for extra in (["--severities", "1"], ["--mce-reference", "alexnet"], ["--corruptions", "fogg"]):
        arguments = ["eval", str(evaluated / "bundle"), "--data", "synthetic:scenes", "-o", str(evaluated / "other"), *extra]
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
