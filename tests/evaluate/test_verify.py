"""Verification: golden tensors, pictures, thresholds and latency of the toy bundle, and what each kind of damage ends with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from toy_bundle import MODEL, make_toy_bundle, rewrite_manifest
from toy_golden import make_golden_bundle, run_graph
from toy_plans import planned

from clipq.artifact import Bundle, EngineEntry
from clipq.cli.main import main
from clipq.engines.golden import PICTURE_TENSORS, TENSORS, read_golden
from clipq.engines.table import open_engine
from clipq.errors import EngineError, MissingRuntimeError, RefusedError, UsageError
from clipq.evaluate.verify import towers, verify
from clipq.evaluate.verify.towers import check_towers, golden_outputs
from clipq.evaluate.verify.verify import NO_PICTURES, VerifyOptions, check_files, verify_bundle
from clipq.export.golden import write_arrays
from clipq.files import write_json

FAST = VerifyOptions(bench_seconds=0)
STATIC = "engines/ort-int8-static/image.onnx"
SCHEMA = json.loads((resources.files("clipq") / "evaluate/verify/verify.schema.json").read_text())
Change = Callable[[Path], None]


def renamed(folder: Path, **engines: EngineEntry) -> Bundle:
    """Name every file anew, as somebody would who tampers with care; what the recipe says of the parity stays."""
    manifest = Bundle.open(folder).manifest
    return rewrite_manifest(folder, {**manifest.engines, **engines}, MODEL, {"parity": manifest.recipe["parity"]})


def disturb(folder: Path, name: str, by: float) -> None:
    """Add noise to the matrix of a graph."""
    graph = onnx.load(str(folder / name))
    (weight,) = graph.graph.initializer
    matrix = numpy_helper.to_array(weight)
    weight.CopyFrom(
        numpy_helper.from_array(matrix + by * np.random.default_rng(9).standard_normal(matrix.shape).astype(np.float32), "matrix")
    )
    onnx.save(graph, str(folder / name))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A toy bundle with golden files, and its verification with a short latency."""
    folder = tmp_path_factory.mktemp("verify")
    return folder, verify_bundle(make_golden_bundle(folder), VerifyOptions(bench_seconds=0.02))


def test_a_record_fits_its_schema_and_says_what_ran(record) -> None:
    """Every part is there, every engine is there by hash, and nothing is beyond its limits."""
    folder, found = record
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    manifest = Bundle.open(folder).manifest
    assert list(found["engines"]) == list(manifest.engines)
    assert found["engines"]["ort-int8-static"]["sha256"][STATIC] == manifest.files[STATIC].sha256
    assert found["bundle"]["files"] == len(manifest.files)
    assert found["bundle"]["size_bytes"] == sum(
        path.stat().st_size for path in folder.rglob("*") if path.name not in {"manifest.json", ".lock"} and path.is_file()
    )
    assert found["problems"] == []
    assert {"image-b1", "artefact"} <= set(found["bench"]["ort-fp32"])


def test_golden_figures_are_those_of_a_slow_loop(record) -> None:
    """Cosines and the largest difference of the first six rows, the agreement of all eight, from ONNX Runtime called by hand."""
    folder, found = record
    golden = read_golden(folder / TENSORS)
    images = np.concatenate([run_graph(folder / STATIC, golden.pixels[rows]) for rows in (slice(0, 1), slice(1, 6), slice(6, 8))])
    texts = run_graph(folder / "towers/text.fp32.onnx", golden.tokens)

    def unit(row: np.ndarray) -> np.ndarray:
        return row / np.sqrt((row.astype(np.float64) ** 2).sum())

    cosines = [float(unit(a) @ unit(b)) for a, b in zip(images[:6], golden.image_embedding, strict=False)]
    figures = found["engines"]["ort-int8-static"]["golden"]
    assert figures["towers"]["image"]["cosine_mean"] == pytest.approx(np.mean(cosines))
    assert figures["towers"]["image"]["min_cosine"] == pytest.approx(min(cosines))
    assert figures["towers"]["image"]["max_abs_error"] == pytest.approx(np.abs(images[:6] - golden.image_embedding[:6]).max())

    def nearest(image: np.ndarray, candidates: np.ndarray) -> int:
        return max(range(8), key=lambda row: float(unit(image) @ unit(candidates[row])))

    same = [nearest(a, texts) == nearest(b, golden.text_embedding) for a, b in zip(images, golden.image_embedding, strict=True)]
    assert figures["top1_agreement"] == np.mean(same)
    assert 0 < np.mean(same) < 1  # the toy's static INT8 is coarse enough to tell


def test_here_and_at_export_are_the_same_machine(record) -> None:
    """Verified where it was exported, the figures are those of the export."""
    _, found = record
    for entry in found["engines"].values():
        for figures in entry["golden"]["towers"].values():
            assert {name: figures[name] for name in figures["at_export"]} == pytest.approx(figures["at_export"])


def test_golden_pictures_have_the_pixels_of_the_export(record) -> None:
    """The same decoder makes the same pixels, and FP32's embeddings of them are those that were stored."""
    _, found = record
    assert found["preprocessing"]["identical"] is True
    assert found["preprocessing"]["decoder"] == found["preprocessing"]["decoder_at_export"]
    assert found["engines"]["ort-fp32"]["pictures"]["min_cosine"] == pytest.approx(1)
    assert found["engines"]["ort-int8-static"]["pictures"]["moved_min_cosine"] == 1
    assert found["engines"]["ort-int8-static"]["pictures"]["min_cosine"] < 0.999


def test_another_decoder_is_told_and_does_not_fail(tmp_path: Path) -> None:
    """Pixels that are one grey level off somewhere are counted in grey levels, and how far they move each engine is said."""
    make_golden_bundle(tmp_path)
    with np.load(tmp_path / PICTURE_TENSORS) as stored:
        arrays = dict(stored)
    arrays["pixels"][2] += np.float32(1 / 255 / 0.25)  # the toy's std
    write_arrays(tmp_path / PICTURE_TENSORS, arrays)
    found = verify_bundle(renamed(tmp_path), FAST)
    preprocessing = found["preprocessing"]
    assert (preprocessing["identical"], preprocessing["different"]) == (False, ["golden/2.jpg"])
    assert preprocessing["max_difference_levels"] == pytest.approx(1, rel=1e-4)
    assert preprocessing["mean_difference_levels"] == pytest.approx(1 / 7, rel=1e-4)
    assert 0.99 < found["engines"]["ort-fp32"]["pictures"]["moved_min_cosine"] < 1
    assert found["problems"] == []


def test_a_picture_that_cannot_be_decoded_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Pillow without JPEG cannot do what the export did: exit code 3, and the others are still compared."""
    make_golden_bundle(tmp_path)
    (tmp_path / "golden/1.jpg").write_bytes(b"no picture")
    renamed(tmp_path)
    assert main(["verify", str(tmp_path), "--no-bench", "--json", str(tmp_path / "../out.json"), "--engines", "ort-fp32"]) == 3
    assert "golden/1.jpg cannot be decoded here: cannot identify" in capsys.readouterr().err
    found = json.loads((tmp_path / "../out.json").read_text())
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert list(found["preprocessing"]["unreadable"]) == ["golden/1.jpg"]
    assert found["preprocessing"]["different"] == []


def test_a_bundle_without_pictures_is_verified_without_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An older bundle: a line says what is missing, the rest is checked, the exit code is 0."""
    make_golden_bundle(tmp_path, pictures=False)
    assert main(["verify", str(tmp_path), "--no-bench"]) == 0
    said = capsys.readouterr()
    assert NO_PICTURES in said.err
    assert "not compared" in said.out


def test_a_bundle_without_figures_is_measured_and_not_judged(tmp_path: Path) -> None:
    """Where the export left no figures, limits are null and no figure is beyond them."""
    make_golden_bundle(tmp_path, parity=False)
    found = verify_bundle(Bundle.open(tmp_path), FAST)
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    image = found["engines"]["ort-int8-static"]["golden"]["towers"]["image"]
    assert (image["at_export"], image["limits"], image["beyond"]) == (None, None, [])
    assert image["min_cosine"] < 0.99


@pytest.mark.parametrize(("by", "code"), [(0.0, 0), (0.01, 0), (1.0, 3)])
def test_an_engine_beyond_its_limits_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str], by: float, code: int) -> None:
    """A graph with the manifest's hash that computes something else is named with figure and limit; a little noise passes."""
    make_golden_bundle(tmp_path)
    disturb(tmp_path, STATIC, by)
    renamed(tmp_path)
    assert main(["verify", str(tmp_path), "--no-bench", "-q", "-o", str(tmp_path / "../out")]) == code
    assert ("ort-int8-static, image: max_abs_error" in capsys.readouterr().err) == (code == 3)
    assert bool(json.loads((tmp_path / "../out/verify.json").read_text())["problems"]) == (code == 3)


def test_an_engine_that_fails_is_a_problem_and_the_others_are_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN from one engine is told with its error; the record has the figures of the rest, and their latency."""
    make_golden_bundle(tmp_path)
    disturb(tmp_path, STATIC, np.nan)
    found = verify_bundle(renamed(tmp_path), VerifyOptions(bench_seconds=0.01))
    jsonschema.validate(found, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert "NaN or infinity" in found["engines"]["ort-int8-static"]["error"]
    assert "golden" not in found["engines"]["ort-int8-static"]
    assert found["engines"]["ort-int8-dynamic"]["golden"]["towers"]["image"]["beyond"] == []
    assert "ort-int8-static" not in found["bench"]
    assert main(["verify", str(tmp_path), "--no-bench", "-q"]) == 3
    said = capsys.readouterr()
    assert "failed" in said.out
    assert "NaN or infinity" in said.err


def _one_bit(folder: Path) -> None:
    data = bytearray((folder / STATIC).read_bytes())
    data[-1] ^= 1
    (folder / STATIC).write_bytes(data)


def _swap(folder: Path) -> None:
    (folder / STATIC).write_bytes((folder / "engines/ort-int8-dynamic/image.onnx").read_bytes())


def _foreign_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["state_sha256"] = "cd" * 32
    write_json(folder / "manifest.json", manifest)


def _manifest(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        write_json(folder / "manifest.json", {**json.loads((folder / "manifest.json").read_text()), **changes})

    return change


def _unknown_engine(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"]["ort-int3"] = manifest["engines"]["ort-fp32"]
    write_json(folder / "manifest.json", manifest)


def _wrong_preprocessing(folder: Path) -> None:
    write_json(folder / "preprocess.json", {"size": [16, 16]})
    renamed(folder)


def _wrong_figures(folder: Path) -> None:
    write_json(folder / "engines/ort-int8-static/engine.json", {"graphs": {STATIC: {"parity": {"min_cosine": "high"}}}})
    renamed(folder)


def _broken_description(folder: Path) -> None:
    (folder / "engines/ort-int8-static/engine.json").write_text("[]")
    renamed(folder)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_one_bit, "is not the file the manifest names"),
        (_swap, "is not the file the manifest names"),
        (_foreign_manifest, "is an engine of another model"),
        (lambda folder: (folder / "golden/0.jpg").unlink(), "is missing"),
        (lambda folder: (folder / TENSORS).write_bytes(b""), "is not the file the manifest names"),
        (_manifest(schema="clipq.bundle/9"), "unknown schema"),
        (_manifest(files=[]), "incomplete or wrong"),
        (_unknown_engine, "an engine that this clipq does not know; found ort-int3"),
        (_wrong_preprocessing, "the preprocessing is incomplete"),
        (_wrong_figures, "does not tell how far a graph is from PyTorch"),
        (_broken_description, "does not describe an engine"),
    ],
)
def test_what_is_not_what_the_manifest_says_ends_with_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, line: str
) -> None:
    """One changed bit, swapped or missing files, foreign and wrong manifests: refused in one line."""
    make_golden_bundle(tmp_path)
    change(tmp_path)
    assert main(["verify", str(tmp_path), "--no-bench", "-q"]) == 5
    said = capsys.readouterr()
    assert line in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_files_that_nobody_names_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file beside the bundle's own is read by nothing; the record lists it."""
    bundle = make_golden_bundle(tmp_path)
    (tmp_path / "golden/extra.txt").write_text("?")
    assert check_files(bundle)["unnamed"] == ["golden/extra.txt"]
    assert "never read: golden/extra.txt" in capsys.readouterr().err


def test_what_cannot_run_here_is_listed_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """Engines of a missing runtime are left out with the line of exit code 4; the others decide the exit code."""
    make_golden_bundle(tmp_path)
    renamed(tmp_path, **{"torch-fp32": EngineEntry("torch", "cpu", "fp32"), "trt-fp32": planned("tensorrt")})
    find = verify.left_out
    monkeypatch.setattr(verify, "left_out", lambda *arguments: {**find(*arguments), "torch-fp32": "torch is not installed. Run: pip"})
    assert main(["verify", str(tmp_path), "--no-bench", "-q", "--json", str(tmp_path / "../out.json")]) == 0
    out = capsys.readouterr().out
    assert "left out: torch is not installed. Run: pip" in out
    found = json.loads((tmp_path / "../out.json").read_text())
    assert list(found["left_out"]) == ["trt-fp32", "torch-fp32"]
    assert "trt-fp32" not in found["engines"]


def test_plans_that_do_not_fit_name_the_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that are still to be built on this device: the line has the command that builds them."""
    make_golden_bundle(tmp_path)
    bundle = renamed(tmp_path, **{"trt-fp32": planned("tensorrt")})
    monkeypatch.setattr("clipq.evaluate.selection.runtime_version", lambda _runtime: "10.3")
    found = verify_bundle(bundle, FAST)
    assert f"clipq-export --rebuild {tmp_path} -o NEW --engines trt-fp32" in found["left_out"]["trt-fp32"]


def test_where_nothing_runs_the_exit_code_is_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """No engine at all: one line that names each with its reason."""
    make_golden_bundle(tmp_path)
    monkeypatch.setattr(verify, "left_out", lambda bundle, _: dict.fromkeys(bundle.manifest.engines, "onnxruntime is not installed."))
    assert main(["verify", str(tmp_path), "--no-bench", "-q"]) == 4
    assert "can run here; found ort-fp32: onnxruntime is not installed; ort-int8-dynamic" in capsys.readouterr().err


def test_an_engine_that_was_asked_for_must_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for and missing is an error, of the runtime (4) or of the name (2); a checkpoint that is not here is one too."""
    make_golden_bundle(tmp_path)
    bundle = renamed(tmp_path, **{"torch-fp32": EngineEntry("torch", "cpu", "fp32"), "trt-fp32": planned("tensorrt")})
    with pytest.raises(MissingRuntimeError, match="trt-fp32 cannot run"):
        verify_bundle(bundle, replace(FAST, engines=("trt-fp32",)))
    with pytest.raises(UsageError, match="Did you mean 'ort-fp32'"):
        verify_bundle(bundle, replace(FAST, engines=("ort-fp23",)))

    def gone(*_arguments: object) -> None:
        raise UsageError("no open_clip model at /gone")

    monkeypatch.setattr("clipq.engines.torch.run.load_checkpoint", gone)
    with pytest.raises(UsageError, match="no open_clip model"):
        verify_bundle(bundle, replace(FAST, engines=("torch-fp32",)))
    assert verify_bundle(bundle, FAST)["left_out"]["torch-fp32"] == "no open_clip model at /gone"


class _Choosy:
    """An engine that takes batches of some sizes only, as plans do."""

    id = "trt-fp32"
    patches = 0

    def __init__(self, smallest: int, largest: int) -> None:
        self.batches, self.seen = (smallest, largest), []

    def run(self, _tower: str, batch: np.ndarray) -> np.ndarray:
        assert self.batches[0] <= len(batch) <= self.batches[1]
        self.seen.append(len(batch))
        return batch * 2


@pytest.mark.parametrize(
    ("smallest", "largest", "seen"), [(1, 99, [1, 5, 2]), (4, 99, [4, 5, 4]), (1, 2, [1, 2, 2, 1, 2]), (3, 4, [3, 4, 3, 3])]
)
def test_plans_for_other_batches_are_filled_and_cut(smallest: int, largest: int, seen: list[int]) -> None:
    """A batch below the plan's smallest is filled with its first row, one above its largest is cut; every row comes back in its place."""
    engine, rows = _Choosy(smallest, largest), np.arange(16, dtype=np.float32).reshape(8, 2)
    np.testing.assert_array_equal(golden_outputs(engine, "image", rows), rows * 2)
    assert engine.seen == seen


def test_patch_tokens_are_compared_where_both_sides_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch tokens of an engine stand as a tower of their own, with what the export measured of them."""
    bundle = make_golden_bundle(tmp_path)
    golden = read_golden(tmp_path / TENSORS)
    patches = np.random.default_rng(4).standard_normal((8, 4, 8)).astype(np.float32)
    exported = {"max_abs_error": 0.0, "max_abs_output": 9.0, "min_cosine": 1.0, "min_centred_cosine": 1.0}
    monkeypatch.setattr(towers, "exported_figures", lambda *_: {**exported, "patches": exported})
    with open_engine(bundle, "ort-fp32") as engine:
        monkeypatch.setattr(type(engine), "patches", 4)
        monkeypatch.setattr(
            engine,
            "run_patches",
            lambda pixels: (None, patches[[np.flatnonzero((golden.pixels == p).all((1, 2, 3)))[0] for p in pixels]] + 1),
        )
        found = check_towers(bundle, engine, replace(golden, patches=patches))
    assert found["towers"]["patches"]["max_abs_error"] == pytest.approx(1)
    assert found["towers"]["patches"]["beyond"]


@pytest.mark.parametrize("options", [{"bench_seconds": -1}, {"bench_seconds": float("inf")}, {"threads": 0}])
def test_wrong_numbers_are_refused(options: dict[str, Any]) -> None:
    """Times and threads that mean nothing are usage errors."""
    with pytest.raises(UsageError, match=r"is wrong|too small"):
        VerifyOptions(**options)


def test_a_toy_without_golden_tensors_is_refused(tmp_path: Path) -> None:
    """There is nothing to verify it with."""
    with pytest.raises(RefusedError, match="has no golden tensors"):
        verify_bundle(make_toy_bundle(tmp_path), FAST)


def test_a_read_only_bundle_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written into the bundle, so a read-only file system does."""
    make_golden_bundle(tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")}
    (tmp_path / "b").chmod(0o555)
    try:
        assert main(["verify", str(tmp_path / "b"), "--no-bench", "--json", "-", "-q"]) == 0
    finally:
        (tmp_path / "b").chmod(0o755)
    assert json.loads(capsys.readouterr().out)["schema"] == "clipq.verify/1"
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_verification_loads_only_the_runtime(tmp_path: Path) -> None:
    """Neither torch nor scipy, tokenizers, pyarrow or jinja2 is imported, in the process or behind its back."""
    make_golden_bundle(tmp_path)
    script = (
        "import sys; from clipq.cli.main import main\n"
        "code = main(['verify', sys.argv[1], '--no-bench', '-q'])\n"
        "print(code, *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    code, *loaded = run.stdout.splitlines()[-1].split()
    assert code == "0"
    assert {"numpy", "PIL", "onnxruntime"} <= set(loaded)
    assert not {"torch", "torchvision", "open_clip", "onnx", "scipy", "tokenizers", "ftfy", "pyarrow", "jinja2", "yaml"} & set(loaded)


def test_pictures_carry_no_photograph() -> None:
    """They are drawn: the same every time, of both kinds, grey and coloured, larger and smaller than the model takes."""
    from clipq.export.pictures import encode_pictures

    first, again = encode_pictures(32, 32), encode_pictures(32, 32)
    assert first == again
    pictures = [Image.open(io.BytesIO(data)) for data in first]
    assert {picture.format for picture in pictures} == {"JPEG", "PNG"}
    assert {picture.mode for picture in pictures} == {"RGB", "L"}
    assert min(min(picture.size) for picture in pictures) < 32 < max(max(picture.size) for picture in pictures)


def test_an_unexpected_failure_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an engine's own failure becomes a problem of the record; a wrong file found on the way is refused."""
    bundle = make_golden_bundle(tmp_path)

    def broken(error: Exception) -> Callable[..., None]:
        def check(*_arguments: object) -> None:
            raise error

        return check

    monkeypatch.setattr(verify, "check_towers", broken(RefusedError("changed meanwhile")))
    with pytest.raises(RefusedError, match="changed meanwhile"):
        verify_bundle(bundle, FAST)
    monkeypatch.setattr(verify, "check_towers", broken(EngineError("fell back")))
    assert len(verify_bundle(bundle, FAST)["problems"]) == 3
