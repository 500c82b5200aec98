"""The suite from bundle to report: schema, and every figure computed again by another way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from toy_bundle import MODEL, SIZE, make_toy_bundle, rewrite_manifest, words

from clipq.artifact import Bundle, EngineEntry
from clipq.calib_data.synthetic import open_synthetic
from clipq.errors import DataError, MissingRuntimeError, UsageError
from clipq.evaluate import provenance
from clipq.evaluate.selection import choose_engines
from clipq.evaluate.suite import EvalOptions, evaluate_bundle

ID, NEAR, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-near", "scenes-far"))
OPTIONS = EvalOptions(
    data=("synthetic:scenes",),
    ood=("synthetic:scenes-near", "synthetic:scenes-far"),
    baseline="ort-fp32",
    limit=120,
    bench_seconds=0,
    resamples=100,
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path, dict[str, Any]]:
    """One evaluation of the toy bundle that the tests only read."""
    folder = tmp_path_factory.mktemp("suite")
    bundle = make_toy_bundle(folder / "bundle")
    return bundle, folder / "out", evaluate_bundle(bundle, OPTIONS, folder / "out")


def _samples(folder: Path, **values: str) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / "samples.parquet").to_pydict()
    keep = [i for i in range(len(table["engine"])) if all(table[name][i] == value for name, value in values.items())]
    return {name: np.asarray([column[i] for i in keep]) for name, column in table.items()}


def test_report_follows_its_schema(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """report.json is what was returned, valid, and beside it stand the readable forms."""
    _, folder, report = evaluated
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    assert json.loads((folder / "report.json").read_text()) == report
    assert {path.name for path in folder.iterdir()} >= {"report.json", "report.md", "report.html", "samples.parquet", "embeddings"}
    assert list(report["engines"]) == ["ort-fp32", "ort-int8-dynamic", "ort-int8-static"]
    assert set(report["verdict"]) == set(report["paired"]) == {"ort-int8-dynamic", "ort-int8-static"}
    assert report["provenance"]["model"]["logit_scale"] == 30.0


def test_engines_are_the_files_that_ship(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Hashes and sizes are those of the manifest; the shared text tower is counted with each engine."""
    bundle, _, report = evaluated
    entry = report["engines"]["ort-int8-static"]
    names = {"engines/ort-int8-static/image.onnx", "towers/text.fp32.onnx"}
    assert entry["sha256"] == {name: bundle.manifest.files[name].sha256 for name in names}
    assert entry["size_bytes"] == sum((bundle.folder / name).stat().st_size for name in names)
    assert (entry["runtime"], entry["provider"], entry["precision"]) == ("onnxruntime", "CPUExecutionProvider", "int8")


def _slow_answers(bundle: Bundle, engine: str, image_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and embeddings by a loop over images and prompts: PIL, onnxruntime and formulas, none of our own code."""
    entry = bundle.manifest.engines[engine]
    image, text = (onnxruntime.InferenceSession(str(bundle.folder / entry.towers[tower])) for tower in ("image", "text"))
    scenes, vocabulary = open_synthetic("scenes"), words()
    classes = []
    for name in scenes.classnames:
        vectors = []
        for template in scenes.templates:
            spelled = template.replace("{c}", name).lower().replace(".", " . ").split()
            ids = [vocabulary.index(word) if word in vocabulary else 1 for word in spelled]
            (vector,) = text.run(None, {"tokens": np.asarray([ids + [0] * (16 - len(ids))], np.int32)})[0]
            vectors.append(vector / np.linalg.norm(vector))
        mean = np.mean(vectors, axis=0)
        classes.append(mean / np.linalg.norm(mean))
    embeddings = []
    for sample in scenes.read([int(Path(image_id).stem) for image_id in image_ids]):
        header, pixels = sample.data.split(b" 255\n", 1)
        width, height = map(int, header.split()[1:])
        drawn = Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
        small = np.asarray(drawn.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
        values = (small.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.25
        embeddings.append(image.run(None, {"pixels": values.astype(np.float32)})[0][0])
    unit = np.stack([vector / np.linalg.norm(vector) for vector in embeddings])
    return unit @ np.stack(classes).T, np.stack(embeddings)


@pytest.mark.parametrize("engine", ["ort-fp32", "ort-int8-static"])
def test_samples_agree_with_a_slow_loop(evaluated: tuple[Bundle, Path, dict[str, Any]], engine: str) -> None:
    """Predictions, confidences and scores of every image, computed one at a time by other means."""
    bundle, folder, _ = evaluated
    rows = _samples(folder, engine=engine, data=ID)
    cosine, _ = _slow_answers(bundle, engine, rows["image_id"].tolist())
    logit = 30 * cosine.astype(np.float64)
    p = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    q = np.exp(cosine) / np.exp(cosine).sum(axis=1, keepdims=True)
    assert (rows["prediction"] == p.argmax(axis=1)).mean() > 0.99  # rounding may decide a tie
    np.testing.assert_allclose(rows["confidence"], p.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(rows["mcm"], -q.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows["energy_logit"], -np.log(np.exp(logit).sum(axis=1)), rtol=1e-4)
    top5 = np.argsort(-logit, axis=1)[:, :5]
    assert np.mean(rows["correct5"] == [label in top for label, top in zip(rows["label"], top5, strict=True)]) > 0.99


def _slow_ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    total = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & ((confidence < (b + 1) / 15) | (b == 14))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_results_follow_from_the_samples(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Accuracy, calibration, deltas and paired differences recomputed from samples.parquet alone."""
    _, folder, report = evaluated
    rows = {engine: _samples(folder, engine=engine, data=ID) for engine in report["engines"]}
    before = rows["ort-fp32"]
    for engine, own in rows.items():
        figures = report["results"][engine][ID]
        correct = own["prediction"] == own["label"]
        values = {
            "acc1": correct.mean(),
            "acc5": own["correct5"].mean(),
            "mean_per_class_recall": np.mean([correct[own["label"] == label].mean() for label in np.unique(own["label"])]),
            "ece15": _slow_ece(own["confidence"], correct),
            "signed_gap": own["confidence"].mean() - correct.mean(),
        }
        assert {name: figures[name]["value"] for name in values} == pytest.approx(values, abs=1e-9)
        low, high = figures["acc1"]["ci95"]
        assert low <= figures["acc1"]["value"] <= high
        assert figures["acc1"]["n"] == 120
        if engine == "ort-fp32":
            assert figures["acc1"]["delta"] is None
            continue
        correct_before = before["prediction"] == before["label"]
        assert figures["acc1"]["delta"] == pytest.approx(correct.mean() - correct_before.mean(), abs=1e-12)
        paired = report["paired"][engine][ID]
        assert paired["disagreement"] == pytest.approx((own["prediction"] != before["prediction"]).mean())
        assert paired["flips"] == pytest.approx((correct != correct_before).mean())
        assert paired["flips_pos_to_neg"] == pytest.approx((correct_before & ~correct).mean())


def test_ood_figures_follow_from_the_samples(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Every pair and score against scikit-learn, OOD as the positive class unless the name says otherwise."""
    _, folder, report = evaluated
    for engine in report["engines"]:
        assert set(report["ood"][engine]) == {f"{ID}|{NEAR}", f"{ID}|{FAR}"}
        for other in (NEAR, FAR):
            inside = _samples(folder, engine=engine, data=ID)
            outside = _samples(folder, engine=engine, data=other, classifier=ID)
            truth = np.concatenate([np.zeros(120), np.ones(120)])
            for score, figures in report["ood"][engine][f"{ID}|{other}"].items():
                values = np.concatenate([inside[score], outside[score]])
                assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(truth, values), abs=1e-9)
                assert figures["aupr_out"]["value"] == pytest.approx(average_precision_score(truth, values), abs=1e-9)
                assert figures["aupr_in"]["value"] == pytest.approx(average_precision_score(1 - truth, -values), abs=1e-9)
                threshold = np.sort(inside[score])[113]  # 114 of 120 ID images are accepted: 95 %
                assert figures["fpr95_id_pos"]["value"] == pytest.approx((outside[score] <= threshold).mean(), abs=1e-9)


def test_embedding_drift_follows_from_the_graphs(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Plain and centred cosine between baseline and engine, from embeddings computed one at a time."""
    bundle, folder, report = evaluated
    image_ids = _samples(folder, engine="ort-fp32", data=ID)["image_id"].tolist()
    (_, before), (_, after) = (_slow_answers(bundle, name, image_ids) for name in ("ort-fp32", "ort-int8-static"))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (before, after)]
    centred = [rows - unit[0].mean(axis=0) for rows in unit]
    cosine = (unit[0] * unit[1]).sum(axis=1)
    centred_cosine = (centred[0] * centred[1]).sum(axis=1) / np.prod([np.linalg.norm(rows, axis=1) for rows in centred], axis=0)
    paired = report["paired"]["ort-int8-static"][ID]
    assert paired["cosine_mean"] == pytest.approx(cosine.mean(), abs=1e-5)
    assert paired["cosine_centred_mean"] == pytest.approx(centred_cosine.mean(), abs=1e-4)


def test_same_seed_same_figures(evaluated: tuple[Bundle, Path, dict[str, Any]], tmp_path: Path) -> None:
    """A second evaluation elsewhere gives every figure again, with other numbers of threads too."""
    bundle, _, report = evaluated
    again = evaluate_bundle(bundle, replace(OPTIONS, threads=1), tmp_path)
    for part in ("engines", "datasets", "results", "ood", "paired", "gates", "verdict"):
        assert again[part] == report[part], part


def test_class_texts_are_embedded_once(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Engines with the same text graph share one store; each image graph has one per data set."""
    _, folder, _ = evaluated
    facts = [json.loads(path.read_text())["facts"]["tower"] for path in folder.glob("embeddings/*/finished.json")]
    assert sorted(facts) == ["image"] * 9 + ["text"]


def _folder_of_scenes(folder: Path, n: int, broken: tuple[int, ...] = ()) -> str:
    for i, sample in enumerate(open_synthetic("scenes").read(range(n))):
        path = folder / ("a red dog", "a big cat")[i % 2] / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6 not an image" if i in broken else sample.data)
    return f"imagefolder:{folder}"


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    """They count in no figure of any engine, and the report names them."""
    data = _folder_of_scenes(tmp_path / "images", 200, broken=(5,))
    report = evaluate_bundle(make_toy_bundle(tmp_path / "bundle"), replace(OPTIONS, data=(data,), ood=(), limit=None), tmp_path / "out")
    (entry,) = report["datasets"].values()
    assert entry["n"] == 199
    assert entry["skipped"] == ["a big cat/5.ppm"]
    assert all(figures["n"] == 199 for tables in report["results"].values() for table in tables.values() for figures in table.values())
    assert len(_samples(tmp_path / "out", engine="ort-fp32")["image_id"]) == 199


@pytest.mark.parametrize("role", ["data", "ood"])
def test_calibration_images_are_refused(tmp_path: Path, role: str) -> None:
    """An image that was calibrated on is refused in ID and in OOD data, by content."""
    folder = tmp_path / "bundle"
    bundle = make_toy_bundle(folder)
    other = _folder_of_scenes(tmp_path / "images", 4)
    from clipq.files import sha256_file

    used = next((tmp_path / "images").rglob("2.ppm"))
    (folder / "calibration.csv").write_text(f"image_id,sha256\nanother/name.ppm,{sha256_file(used)}\n")
    bundle = rewrite_manifest(folder, bundle.manifest.engines)
    options = replace(OPTIONS, data=(other,), ood=()) if role == "data" else replace(OPTIONS, ood=(other,))
    with pytest.raises(DataError, match=r"1 of 4 images .* were used for calibration"):
        evaluate_bundle(bundle, options, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ()}, "no data set"),
        ({"ood": ("synthetic:scenes",)}, "by --data and by --ood"),
        ({"engines": ("ort-int4",)}, "unknown engine"),
        ({"baseline": "torch-fp32"}, "unknown engine"),
        ({"rules": ("nonsense",)}, "cannot read the gate"),
        ({"data": ("synthetic:scenes-far",), "ood": ()}, "no class names"),
    ],
)
def test_wrong_options_are_told_before_any_work(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    """One line, and nothing was embedded."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    with pytest.raises((UsageError, DataError), match=message):
        evaluate_bundle(bundle, replace(OPTIONS, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_torch_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without torch the default baseline cannot run: the line names the extra and the other baseline; there, torch is left out."""
    bundle = make_toy_bundle(tmp_path)
    bundle = rewrite_manifest(tmp_path, {"torch-fp32": EngineEntry("torch", "cpu", "fp32"), **bundle.manifest.engines})
    version = provenance.metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise provenance.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(provenance.metadata, "version", without_torch)
    with pytest.raises(MissingRuntimeError, match=r"clipq\[export\].*--baseline ort-fp32"):
        choose_engines(bundle, (), "torch-fp32")
    assert choose_engines(bundle, (), "ort-fp32") == ["ort-fp32", "ort-int8-dynamic", "ort-int8-static"]
    assert "leaving out torch-fp32" in capsys.readouterr().err
    with pytest.raises(MissingRuntimeError, match="torch is not installed"):
        choose_engines(bundle, ("torch-fp32",), "ort-fp32")


def test_sigmoid_models_go_their_own_way(tmp_path: Path) -> None:
    """With a logit bias the probabilities are normalised sigmoids, and the report says so."""
    bundle = make_toy_bundle(tmp_path / "bundle", model=replace(MODEL, logit_bias=-6.0))
    report = evaluate_bundle(bundle, replace(OPTIONS, ood=(), engines=("ort-fp32",)), tmp_path / "out")
    assert "sigmoid" in report["provenance"]["probabilities"]
    rows = _samples(tmp_path / "out", engine="ort-fp32")
    cosine, _ = _slow_answers(bundle, "ort-fp32", rows["image_id"].tolist())
    sigmoid = 1 / (1 + np.exp(6.0 - 30 * cosine.astype(np.float64)))
    np.testing.assert_allclose(rows["confidence"], sigmoid.max(axis=1) / sigmoid.sum(axis=1), rtol=1e-3)


def test_only_the_baseline_is_a_report_too(tmp_path: Path) -> None:
    """One engine has figures and no deltas, gates or verdict."""
    bundle = make_toy_bundle(tmp_path / "bundle")
    report = evaluate_bundle(bundle, replace(OPTIONS, engines=("ort-fp32",), ood=()), tmp_path / "out")
    assert (report["gates"], report["verdict"], report["paired"]) == ([], {}, {})
    assert report["results"]["ort-fp32"][ID]["acc1"]["delta"] is None
