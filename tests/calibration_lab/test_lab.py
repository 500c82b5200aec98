"""The lab on a toy tower whose quantization is written out in numpy: figures, resumption, pages, and every way it can end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_bundle import MODEL, make_toy_bundle

from clipq.artifact import Bundle, write_manifest
from clipq.calib_data.index import build_index
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.source import Source
from clipq.calib_data.table import open_source
from clipq.calibration_lab.cells import Cells
from clipq.cli.main import main
from clipq.errors import DataError, missing_extra
from clipq.evaluate.metrics.detection import auroc
from clipq.evaluate.metrics.paired import sample_cosines
from clipq.evaluate.zeroshot import prompts
from clipq.export.pipeline import export_bundle
from clipq.recipe import Recipe

CALIBRATION, FOREIGN, DATA, OOD = "synthetic:scenes:calibration", "synthetic:scenes-far", "synthetic:scenes", "synthetic:scenes-near"
QUICK = [
    "--calib",
    f"{CALIBRATION},{FOREIGN}",
    "--data",
    DATA,
    "--ood",
    OOD,
    "--calib-n",
    "2,8",
    "--seeds",
    "2",
    "--limit",
    "40",
    "--resamples",
    "50",
    "-q",
]
HIDDEN = 24
Array = np.ndarray[Any, Any]


def _weights() -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((48, HIDDEN)).astype(np.float32), rng.standard_normal((HIDDEN, MODEL.embed_dim)).astype(np.float32)


def _deepen(model: onnx.ModelProto) -> None:
    """Give the toy tower a hidden layer in front of the projection, which alone is quantized."""
    first, last = _weights()
    del model.graph.initializer[:], model.graph.node[-1]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in (("first", first), ("last", last)))
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["flat", "first"], ["hidden"], name="layer"),
            helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
            helper.make_node("MatMul", ["positive", "last"], ["embedding"], name="projection"),
        ]
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy bundle with a hidden layer; the tests only read it."""
    return make_toy_bundle(tmp_path_factory.mktemp("lab") / "bundle", change={"towers/image.fp32.onnx": _deepen})


@pytest.fixture(scope="module")
def ran(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of two methods and its record; the tests only read it."""
    folder = tmp_path_factory.mktemp("lab") / "out"
    return folder, _run(bundle, folder, "--method", "minmax,percentile")


def _run(bundle: Bundle, folder: Path, *options: str) -> dict[str, Any]:
    assert main(["calibration", str(bundle.folder), *QUICK, "-o", str(folder), *options]) == 0
    found: dict[str, Any] = json.loads((folder / "calibration.json").read_text())
    schema = json.loads((files_of("clipq.calibration_lab") / "calibration.schema.json").read_text())
    jsonschema.validate(found, schema)
    return found


def _pooled(bundle: Bundle, source: Source, limit: int, seed: int) -> Array:
    index, preprocess = build_index(source, limit=limit, seed=seed), Preprocess.from_file(bundle.file("preprocess.json"))
    pixels = np.concatenate([batch.pixels for batch in batches(source, index, preprocess)])
    return pixels.reshape(len(pixels), 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(len(pixels), 48)


def _embedded(flat: Array, largest: float | None = None) -> Array:
    """Return the tower's embeddings, with weights and activations of the hidden layer in INT8 where a range is given."""
    first, last = _weights()
    if largest is not None:
        scale, steps = np.float32(largest / 127), np.abs(first).max(axis=0) / 127
        flat = np.clip(np.rint(flat / scale), -128, 127) * scale  # QuantizeLinear saturates at both ends of INT8
        first = np.rint(first / steps) * steps
    return np.maximum(flat @ first, 0) @ last


def _classified(bundle: Bundle, embeddings: Array) -> tuple[Array, Array]:
    """Return predictions and MCM scores from class vectors that are computed here."""
    from clipq.evaluate.embeddings import tokenise

    scenes = open_source(DATA)
    tokens = tokenise(bundle, {"": prompts(scenes.classnames, scenes.templates)})[""]
    graph = onnx.load(str(bundle.file("towers/text.fp32.onnx")))
    vectors = numpy_helper.to_array(graph.graph.initializer[0])[tokens].mean(axis=1)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, embeddings)]
    classes = units[0].reshape(len(scenes.classnames), -1, MODEL.embed_dim).mean(axis=1)
    cosine = units[1] @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T
    shares = np.exp(cosine) / np.exp(cosine).sum(axis=1, keepdims=True)
    return cosine.argmax(axis=1), -shares.max(axis=1)


def test_figures_are_those_of_the_formula(bundle: Bundle, ran: tuple[Path, dict[str, Any]]) -> None:
    """Every draw of minmax: disagreement, accuracy, AUROC and centred cosine from the toy's quantization written out in numpy."""
    _, found = ran
    scenes, near = open_source(DATA), open_source(OOD)
    flat, foreign = _pooled(bundle, scenes, 40, 0), _pooled(bundle, near, 40, 0)
    labels = build_index(scenes, limit=40).labels
    before, (predicted, _) = _embedded(flat), _classified(bundle, _embedded(flat))
    for calib in (CALIBRATION, FOREIGN):
        for n in (2, 8):
            (row,) = (row for row in found["rows"] if (row["method"], row["calib"], row["n"]) == ("minmax", calib, n))
            for seed in (0, 1):
                largest = float(np.abs(_pooled(bundle, open_source(calib), n, seed)).max())
                after = _embedded(flat, largest)
                classes, scores = _classified(bundle, after)
                own = {name: band["values"][seed] for name, band in row["metrics"].items()}
                assert own["disagreement"] == pytest.approx((classes != predicted).mean())
                assert own["acc1"] == pytest.approx((classes == labels).mean())
                assert own["auroc"] == pytest.approx(auroc(scores, _classified(bundle, _embedded(foreign, largest))[1]), abs=1e-9)
                assert own["cosine_centred"] == pytest.approx(sample_cosines(before, after)[1].mean(), abs=1e-5)
    assert found["fp32"]["acc1"]["value"] == pytest.approx((predicted == labels).mean())


def test_the_record_names_what_was_measured(ran: tuple[Path, dict[str, Any]]) -> None:
    """Sources, draws, forms and rows are those that were asked for, in that order; the first source is what others are compared with."""
    folder, found = ran
    assert [source["id"] for source in found["calibration"]] == [CALIBRATION, FOREIGN]
    assert [(draw["n"], draw["seed"], draw["images"]) for draw in found["calibration"][0]["draws"]] == [
        (2, 0, 2),
        (2, 1, 2),
        (8, 0, 8),
        (8, 1, 8),
    ]
    assert [(row["method"], row["calib"], row["n"]) for row in found["rows"]] == [
        (method, calib, n) for method in ("minmax", "percentile") for calib in (CALIBRATION, FOREIGN) for n in (2, 8)
    ]
    assert {(entry["calib"], entry["against"]) for entry in found["foreign"]} == {(FOREIGN, CALIBRATION)}
    assert (found["dataset"]["n"], found["ood"]["n"], found["provenance"]["seeds"]) == (40, 40, [0, 1])
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "calibration.html",
        "calibration.json",
        "calibration.md",
        "cells",
    ]


def test_foreign_is_the_difference_of_the_means(ran: tuple[Path, dict[str, Any]]) -> None:
    """What the record says of foreign images follows from its rows."""
    _, found = ran
    means = {(row["method"], row["calib"], row["n"]): row["metrics"] for row in found["rows"]}
    for entry in found["foreign"]:
        own, other = means[entry["method"], CALIBRATION, entry["n"]], means[entry["method"], FOREIGN, entry["n"]]
        for name, moved in entry["metrics"].items():
            assert moved["delta"] == pytest.approx(other[name]["mean"] - own[name]["mean"])
            assert moved["bands_apart"] == (own[name]["max"] < other[name]["min"] or other[name]["max"] < own[name]["min"])


def test_what_a_reader_sees(bundle: Bundle, ran: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Sentences and a table on stdout, JSON alone with --json -, a page without scripts with a plot per form and metric."""
    folder, found = ran
    arguments = ["calibration", str(bundle.folder), *QUICK, "-o", str(folder), "--method", "minmax,percentile"]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    first = streams.out.splitlines()[0]
    assert first.startswith(f"minmax W8A8: calibrated on 8 images of {CALIBRATION}, ")
    assert f"Images of {FOREIGN} instead change that by " in first
    assert streams.out.rstrip().endswith("calibration.html")
    assert streams.err == ""
    assert main([*arguments, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "provenance": 0} == {**found, "provenance": 0}
    page, text = (folder / "calibration.html").read_text(), (folder / "calibration.md").read_text()
    assert page.count("<svg") == 2 * 6
    assert page.count("<polygon") == 2 * 6 * 2
    assert "<script" not in page
    assert text.count("| minmax W8A8 |") == 6 * 4 + 2


def test_finished_cells_are_used_again(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is missing is measured again, the others stay, and the figures are those of one run; nothing is decoded in vain."""
    found = _run(bundle, tmp_path)
    cells = sorted((tmp_path / "cells").glob("cell-*.npz"))
    assert len(cells) == 2 * 2 * 2 + 1
    cells[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in cells[1:]}
    again = _run(bundle, tmp_path)
    assert {**again, "provenance": 0} == {**found, "provenance": 0}
    assert {path: path.stat().st_mtime_ns for path in cells[1:]} == kept
    monkeypatch.setattr("clipq.calibration_lab.pixels.pixels_of", None)
    assert {**_run(bundle, tmp_path), "provenance": 0} == {**found, "provenance": 0}


def test_a_killed_run_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    """After kill -9 in the middle finished cells are taken as they are, pixels too with --resume, and the figures are those of one run."""
    out, options = tmp_path / "out", ["--seeds", "8"]
    code = "import sys; from clipq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "calibration", str(bundle.folder), *QUICK, "-o", str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while len(list(out.glob("cells/cell-*.npz"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/cell-*.npz")}
    pixels = {path: path.stat().st_ino for path in out.glob("pixels.partial/pixels-*.npy")}
    assert 3 <= len(kept) < 2 * 2 * 8
    assert pixels
    found = _run(bundle, out, *options, "--resume")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = _run(bundle, tmp_path / "whole", *options)
    assert {**found, "provenance": 0} == {**whole, "provenance": 0}
    assert not [path for path in out.rglob("*") if path.name.startswith(".graphs") or path.suffix == ".part"]
    assert not (out / "pixels.partial").exists()


def test_one_bar_at_a_time(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal shows one bar at a time: none begins before the one before has ended, also where only some cells are left to do."""
    titles: list[str] = []
    open_now: list[str] = []

    @contextlib.contextmanager
    def bar(title: str, _total: int) -> Iterator[Callable[[int], None]]:
        assert not open_now, f"{title} inside {open_now}"
        open_now.append(title)
        titles.append(title)
        yield lambda _steps: None
        open_now.pop()

    for module in ("calibration_lab.fill", "calibration_lab.lab", "calibration_lab.pixels", "calib_data.index"):
        monkeypatch.setattr(f"clipq.{module}.bar", bar)
    _run(bundle, tmp_path)
    assert [title for title in titles if title.startswith("Decoding")] == [f"Decoding {name}" for name in (CALIBRATION, FOREIGN, DATA, OOD)]
    max((tmp_path / "cells").glob("cell-*.npz"), key=lambda path: path.stat().st_mtime_ns).unlink()
    titles.clear()
    _run(bundle, tmp_path)
    assert [title for title in titles if title.startswith("Decoding")] == [f"Decoding {name}" for name in (FOREIGN, DATA, OOD)]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    """A file that is no finished cell ends with its path and what to do."""
    cells = Cells(tmp_path, {})
    cells.path("cell", {}, ".npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match=r"cell-.*\.npz is damaged.*Delete this file"):
        cells.read({})


def test_without_ood_and_with_one_number(bundle: Bundle, tmp_path: Path) -> None:
    """One number of images, no OOD images and four bits: no AUROC, and the record says what is simulated."""
    words = [
        "calibration",
        str(bundle.folder),
        "--calib",
        f"{CALIBRATION},{CALIBRATION}",
        "--data",
        DATA,
        "--limit",
        "30",
        "-q",
        "-o",
        str(tmp_path),
    ]
    assert main([*words, "--calib-n", "4", "--bits", "W4A4", "--seeds", "2"]) == 0
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["ood"] is None
    assert "auroc" not in found["rows"][0]["metrics"]
    assert found["forms"] == [{"method": "percentile", "bits": "W4A4", "simulated": True}]
    assert found["foreign"] == []
    assert "no runtime has faster kernels" in (tmp_path / "calibration.md").read_text()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--seeds", "1"], 2, "--seeds is too small to show a band; found 1; expected at least 2"),
        (["--calib-n", "16,2001"], 2, "found 2001; expected at most 2000"),
        (["--calib-n", "0,16"], 2, "--calib-n is wrong; found 0"),
        (["--calib-n", "few"], 2, "--calib-n is wrong; found few"),
        (["--calib-n", ""], 2, "--calib-n"),
        (["--calib", ","], 2, "--calib names nothing"),
        (["--method", "percentil"], 2, "Did you mean 'percentile'"),
        (["--method", "hqq", "--bits", "W4A32"], 2, "hqq needs no calibration images"),
        (["--method", "lsq"], 2, "lsq trains on pairs"),
        (["--bits", "W3A3"], 2, "unknown bits"),
        (["--limit", "0"], 2, "--limit"),
        (["--resamples", "0"], 2, "--resamples"),
        (["--seed", "-1"], 2, "--seed"),
        (["--calib", "synthetic:scenery"], 2, "Did you mean"),
        (["--calib", OOD], 1, "images of synthetic:scenes-near were used for calibration"),
        (["--calib", DATA, "--calib-n", "4000"], 1, "40 of 40 images of synthetic:scenes were used for calibration"),
        (["--data", OOD, "--ood", FOREIGN], 1, "no class names"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    """Wrong words end with 2, unusable data with 1, always in one line and before any graph is made."""
    assert main(["calibration", str(bundle.folder), *QUICK, "-o", str(tmp_path / "out"), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.rglob("*.np[yz]"))


def test_a_bundle_without_the_graph(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the FP32 graph there is nothing to quantize."""
    made = make_toy_bundle(tmp_path / "bundle")
    files = {name: entry for name, entry in made.manifest.files.items() if name != "towers/image.fp32.onnx"}
    write_manifest(made.folder, replace(made.manifest, files=files))
    assert main(["calibration", str(made.folder), *QUICK, "-o", str(tmp_path / "out")]) == 1
    assert "has no towers/image.fp32.onnx" in capsys.readouterr().err


def test_a_transform_without_torch_ends_with_four(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that rewrites the tower needs torch, and says so before anything is decoded."""

    def missing() -> None:
        raise missing_extra("torch", "export")

    monkeypatch.setattr("clipq.calibration_lab.graphs.import_open_clip", missing)
    assert main(["calibration", str(bundle.folder), *QUICK, "-o", str(tmp_path / "out"), "--method", "rotation"]) == 4
    assert capsys.readouterr().err == "clipq: torch is not installed. Run: pip install 'clipq[export]'\n"
    assert not list(tmp_path.rglob("*.npy"))


def test_a_transform_starts_from_the_checkpoint(
    tiny_checkpoint: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A transform that changes nothing gives the figures of the bundle's own graph; another model of that name is refused."""
    asked: list[tuple[str, int]] = []

    def unchanged(checkpoint: Any, _tower: str, name: str, inputs: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        asked.append((name, sum(len(batch) for batch in inputs())))
        return checkpoint, {}

    monkeypatch.setattr("clipq.export.transform.tower.transform_tower", unchanged)
    made = export_bundle(Recipe(tiny_checkpoint("vit"), ("ort-fp32",)), tmp_path / "bundle")
    words = ["--calib", CALIBRATION, "--calib-n", "4", "--method", "percentile,rotation,smoothquant"]
    found = _run(made, tmp_path / "out", *words)
    assert asked == [("rotation", 4), ("w8a8-smoothquant", 4)] * 2
    metrics = {row["method"]: row["metrics"] for row in found["rows"]}
    assert metrics["rotation"] == metrics["smoothquant"] == metrics["percentile"]
    model = replace(made.manifest.model, state_sha256="cd" * 32)
    write_manifest(made.folder, replace(made.manifest, model=model))
    assert main(["calibration", str(made.folder), *QUICK, *words, "-o", str(tmp_path / "other")]) == 5
    assert "is not the model this bundle was made from" in capsys.readouterr().err
