"""Classifiers in a bundle: the figures of an evaluation without them, no tokenizer, and nothing of another tower."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import DIM, MODEL, make_toy_bundle, rewrite_manifest, text_graph
from toy_golden import make_golden_bundle
from toy_plans import GRAPHS, planned

from clipq.artifact import Bundle
from clipq.calib_data.synthetic import open_synthetic
from clipq.cli.classifiers import classifiers_asked
from clipq.cli.main import main
from clipq.engines.table import open_engine
from clipq.errors import DataError, RefusedError, UsageError
from clipq.evaluate import classifier_making
from clipq.evaluate.classifier_making import add_classifiers
from clipq.evaluate.classifiers import classifier_name, classifier_names, read_classifier, read_vectors, text_tower
from clipq.evaluate.embeddings import tokenise
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.evaluate.thresholds import save_thresholds, thresholds_name
from clipq.evaluate.verify.verify import VerifyOptions, verify_bundle
from clipq.files import write_json

OPTIONS = EvalOptions(
    data=("synthetic:scenes",), ood=("synthetic:scenes-far",), baseline="ort-fp32", limit=60, bench_seconds=0, resamples=20
)
VECTORS = "classifiers/scenes/text.fp32.npy"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A toy bundle with a classifier of the synthetic scenes."""
    make_toy_bundle(tmp_path / "bundle")
    return add_classifiers(tmp_path / "bundle", {"scenes": "synthetic:scenes"})


def test_class_embeddings_are_those_of_a_slow_loop(bundle: Bundle) -> None:
    """One prompt at a time through the text tower: normalised, averaged over the templates, normalised again."""
    scenes, found = open_synthetic("scenes"), read_classifier(bundle, "scenes")
    vectors = read_vectors(bundle, found, "ort-int8-static")
    assert vectors.shape == (len(scenes.classnames), DIM)
    with open_engine(bundle, "ort-fp32") as engine:
        for row in (0, 17, 59):
            prompts = [template.replace("{c}", scenes.classnames[row]) for template in scenes.templates]
            single = [engine.run("text", tokenise(bundle, {"t": [prompt]})["t"])[0].astype(np.float64) for prompt in prompts]
            mean = sum(vector / np.sqrt((vector**2).sum()) for vector in single) / len(single)
            np.testing.assert_allclose(vectors[row], mean / np.sqrt((mean**2).sum()), atol=1e-6)


def test_engines_with_one_text_tower_share_their_class_embeddings(bundle: Bundle) -> None:
    """The manifest names a description and one file, whose hashes verify; the name says which tower made it."""
    bundle.verify()
    assert classifier_names(bundle) == ["scenes"]
    assert [name for name in bundle.manifest.files if name.startswith("classifiers/")] == [classifier_name("scenes"), VECTORS]
    assert {text_tower(bundle, name) for name in bundle.manifest.engines} == {"towers/text.fp32.onnx"}


def test_an_evaluation_with_a_classifier_is_the_one_without(bundle: Bundle, tmp_path: Path) -> None:
    """Results, OOD figures, thresholds and spectra are the same to the last digit, and the report says which classifier it was."""
    without = evaluate_bundle(bundle, OPTIONS, tmp_path / "without")
    having = evaluate_bundle(bundle, replace(OPTIONS, classifier="scenes"), tmp_path / "with")
    for part in ("results", "ood", "thresholds", "paired", "spectral"):
        assert having[part] == without[part]
    assert having["provenance"]["classifier"] == {"name": "scenes", "data": "synthetic:scenes", "classes": 60}
    assert having["datasets"] == without["datasets"]


def test_a_folder_needs_neither_tokenizer_nor_text_tower(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Class folders of some classes, evaluated where no text can be tokenised: labels follow the folder names."""
    scenes = open_synthetic("scenes")
    for sample in scenes.read(list(range(40))):
        folder = tmp_path / "photos" / scenes.classnames[sample.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sample.id.rpartition('/')[2]}").write_bytes(sample.data)

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a tokenizer was asked for")

    monkeypatch.setattr("clipq.calib_data.tokenizer.Tokenizer.from_files", refuse)
    shown = ["--engines", "ort-fp32,ort-int8-static", "--baseline", "ort-fp32", "--resamples", "20", "--no-bench", "-q"]
    command = ["eval", str(bundle.folder), "--data", f"imagefolder:{tmp_path / 'photos'}", *shown, "-o", str(tmp_path / "out")]
    assert main([*command, "--classifier", "scenes"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    (facts,) = report["datasets"].values()
    assert (facts["n"], facts["classes"]) == (40, 60)
    capsys.readouterr()
    assert main([*command, "--classifier", "scene"]) == 2
    assert "Did you mean 'scenes'" in capsys.readouterr().err


def test_a_bundle_without_classifiers_says_how_to_get_one(tmp_path: Path) -> None:
    """The line names the option of the export."""
    with pytest.raises(UsageError, match=r"has no classifiers. Add one where it was exported, with --classifier x=DATA"):
        read_classifier(make_toy_bundle(tmp_path), "x")


def test_negative_words_need_a_text_tower() -> None:
    """NegLabel embeds words, which is what a classifier spares."""
    from clipq.evaluate.neglabel import NegLabelOptions

    with pytest.raises(UsageError, match="--neglabel embeds words"):
        replace(OPTIONS, classifier="scenes", neglabel=NegLabelOptions())


def test_a_plan_uses_the_class_embeddings_of_its_graph(bundle: Bundle) -> None:
    """A plan's text tower is named by the graph it was built from, so it finds them too."""
    engines = {
        **bundle.manifest.engines,
        "trt-fp32": planned("tensorrt", towers={tower: f"engines/trt-fp32/{tower}.plan" for tower in GRAPHS}),
    }
    again = rewrite_manifest(bundle.folder, engines)
    assert text_tower(again, "trt-fp32") == GRAPHS["text"]
    assert len(read_vectors(again, read_classifier(again, "scenes"), "trt-fp32")) == 60


def test_class_embeddings_of_another_tower_are_refused(bundle: Bundle) -> None:
    """A text graph that changed after the classifier was made does not get its vectors."""
    import onnx

    onnx.save(text_graph(model=replace(MODEL, embed_dim=DIM)), str(bundle.folder / "towers/text.fp32.onnx"))
    graph = bundle.folder / "towers/text.fp32.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x9a\x06\x01x")  # an unknown field of protobuf: the same graph, another file
    again = rewrite_manifest(bundle.folder, bundle.manifest.engines)
    with pytest.raises(RefusedError, match=r"was made by another towers/text.fp32.onnx"):
        read_vectors(again, read_classifier(again, "scenes"), "ort-fp32")


def test_a_tower_that_made_none_is_named(bundle: Bundle) -> None:
    """An engine whose text tower could not run at the export has no class embeddings; the line says which have."""
    path = bundle.folder / classifier_name("scenes")
    said = json.loads(path.read_text())
    said["vectors"] = {"torch-fp32": next(iter(said["vectors"].values()))}
    write_json(path, said)
    again = rewrite_manifest(bundle.folder, bundle.manifest.engines)
    with pytest.raises(UsageError, match=r"no class embeddings of towers/text.fp32.onnx, the text tower of ort-fp32; found torch-fp32"):
        read_vectors(again, read_classifier(again, "scenes"), "ort-fp32")


@pytest.mark.parametrize(
    ("vectors", "line"),
    [
        (np.zeros((60, DIM), np.float32), "expected unit vectors"),
        (np.eye(60, DIM, dtype=np.float64), "found float64"),
        (np.eye(DIM, dtype=np.float32), r"found float32 \(8, 8\)"),
        (np.array([{}], dtype=object), "holds no class embeddings; found Object arrays"),
    ],
)
def test_vectors_that_are_none_are_refused(bundle: Bundle, vectors: np.ndarray, line: str) -> None:
    """Not unit, of another type or shape, or pickled: exit code 5, whatever the manifest says."""
    np.save(bundle.folder / VECTORS, vectors)
    again = rewrite_manifest(bundle.folder, bundle.manifest.engines)
    with pytest.raises(RefusedError, match=line):
        read_vectors(again, read_classifier(again, "scenes"), "ort-fp32")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": "clipq.classifier/2"}, "unknown schema"),
        ({"classnames": []}, "no classes"),
        ({"vectors": 3}, "does not describe a classifier"),
    ],
)
def test_a_description_that_is_none_is_refused(bundle: Bundle, change: dict, line: str) -> None:
    """Another schema, no classes, or no table of vectors."""
    path = bundle.folder / classifier_name("scenes")
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(RefusedError, match=line):
        read_classifier(rewrite_manifest(bundle.folder, bundle.manifest.engines), "scenes")


def test_a_file_with_another_hash_is_refused(bundle: Bundle) -> None:
    """Class embeddings are hashed like everything else."""
    (bundle.folder / VECTORS).write_bytes(b"")
    with pytest.raises(RefusedError, match="is not the file the manifest names"):
        read_vectors(Bundle.open(bundle.folder), read_classifier(bundle, "scenes"), "ort-fp32")


@pytest.mark.parametrize("stop", ["write_json", "describe_file", "atomic_path"])
def test_an_interruption_leaves_a_whole_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    """Replacing a classifier may stop anywhere: the manifest opens, and every file it names is whole."""

    def stopping(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classifier_making, stop, stopping)
        with pytest.raises(KeyboardInterrupt):
            add_classifiers(bundle.folder, {"scenes": "synthetic:scenes:calibration"})
    Bundle.open(bundle.folder).verify()
    assert classifier_names(add_classifiers(bundle.folder, {"scenes": "synthetic:scenes"})) == ["scenes"]


def test_what_is_asked_is_checked_before_any_work() -> None:
    """Names that are no folder's, twice the same, no data, data without class names."""
    assert classifiers_asked(["a", "b=synthetic:scenes"], "synthetic:scenes:calibration") == {
        "a": "synthetic:scenes:calibration",
        "b": "synthetic:scenes",
    }
    assert classifiers_asked([], "") == {}
    for texts, error, line in (
        (["a"], UsageError, "--classifier a names no data"),
        (["a=synthetic:scenes", "a=synthetic:scenes"], UsageError, "names a twice"),
        (["../a=synthetic:scenes"], UsageError, "a classifier's name is wrong"),
        (["a=synthetic:scenes-far"], DataError, "no class names to make the classifier a of"),
    ):
        with pytest.raises(error, match=line):
            classifiers_asked(texts, "")


def test_thresholds_are_replayed_with_the_classifier_of_their_class_texts(tmp_path: Path) -> None:
    """What each threshold keeps of the golden pictures is that of a slow loop over MCM; without a classifier it is not known."""
    folder = tmp_path / "bundle"
    make_golden_bundle(folder)
    report = evaluate_bundle(Bundle.open(folder), OPTIONS, tmp_path / "out")
    save_thresholds(folder, report)
    quick = VerifyOptions(bench_seconds=0)
    before = verify_bundle(Bundle.open(folder), quick)["engines"]["ort-int8-static"]["thresholds"]
    assert {entry["kept"] for scores in before.values() for entry in scores.values()} == {None}
    bundle = add_classifiers(folder, {"scenes": "synthetic:scenes"})
    (scores,) = verify_bundle(bundle, quick)["engines"]["ort-int8-static"]["thresholds"].values()
    with np.load(folder / "golden/pictures.npz") as stored, open_engine(bundle, "ort-int8-static") as engine:
        images = engine.run("image", stored["pixels"]).astype(np.float64)
    classes = read_vectors(bundle, read_classifier(bundle, "scenes"), "ort-int8-static")
    kept = 0
    for image in images:
        cosines = classes @ (image / np.sqrt((image**2).sum()))
        kept += -max(np.exp(cosines) / np.exp(cosines).sum()) <= scores["mcm"]["threshold"]
    assert scores["mcm"] == {
        "threshold": report["thresholds"]["ort-int8-static"]["synthetic:scenes"]["mcm"]["threshold"],
        "kept": kept,
    }


def test_verification_reads_every_classifier(tmp_path: Path) -> None:
    """A classifier whose vectors do not fit is found on the device before anybody evaluates with it."""
    make_golden_bundle(tmp_path)
    bundle = add_classifiers(tmp_path, {"scenes": "synthetic:scenes"})
    assert verify_bundle(bundle, VerifyOptions(bench_seconds=0))["bundle"]["classifiers"] == ["scenes"]
    np.save(tmp_path / VECTORS, np.zeros((60, DIM), np.float32))
    with pytest.raises(RefusedError, match="expected unit vectors"):
        verify_bundle(rewrite_manifest(tmp_path, bundle.manifest.engines), VerifyOptions(bench_seconds=0))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"schema": "clipq.thresholds/9"}, "unknown schema"),
        ({"engine": "ort-fp32"}, "belongs to other files"),
        ({"files": {}}, "belongs to other files"),
        ({"data": {"d": {"scores": {"mcm": {"threshold": float("inf")}}}}}, "not finite"),
        ({"data": []}, "holds no thresholds"),
    ],
)
def test_thresholds_that_do_not_belong_are_refused(tmp_path: Path, change: dict, line: str) -> None:
    """Thresholds of another engine, of other files, or none at all: exit code 5."""
    folder = tmp_path / "bundle"
    bundle = make_golden_bundle(folder)
    save_thresholds(folder, evaluate_bundle(bundle, OPTIONS, tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    path = folder / thresholds_name("ort-int8-static")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RefusedError, match=line):
        verify_bundle(rewrite_manifest(folder, bundle.manifest.engines), VerifyOptions(bench_seconds=0))
