"""``clipq score``: what it prints and writes, and how it ends on files that are wrong."""

import hashlib
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from clipq.cli.main import main
from clipq.evaluate import disk_arrays
from clipq.evaluate.metrics.arrays import Lazy
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.metrics.probabilities import softmax
from clipq.evaluate.statistics.classification import classification_values
from clipq.evaluate.stored import Keys, read_stored

EVERY = {
    "acc1", "acc5", "mean_per_class_recall", "nll", "brier", "ece15", "ece_em15", "ece_sweep", "ece_debiased", "ece_kde",
    "ece_kde_bandwidth", "ece_classwise", "ece_classwise_above_1", "mce", "rmsce", "signed_gap", "brier_reliability",
    "brier_resolution", "brier_uncertainty", "brier_within", "ece15_after_temperature", "temperature", "ece15_after_isotonic", "aurc",
    "eaurc", "augrc", "risk_at_80", "risk_at_90", "risk_at_95", "coverage_at_risk_1", "coverage_at_risk_5", "ece15_by_chance",
}  # fmt: skip


@pytest.fixture
def data():
    """Return logits and labels of 300 samples, 8 classes."""
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.standard_normal((300, 8)), rng.integers(0, 8, 300)
    logits[np.arange(300), labels] += 2
    return logits, labels


@pytest.fixture
def file(tmp_path, data):
    """Return an .npz file with logits and labels."""
    path = tmp_path / "engine.npz"
    np.savez(path, logits=data[0], labels=data[1])
    return path


def _json(capsys, *arguments):
    assert main(["score", *map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_logits_give_every_metric(file, data, capsys):
    """All METRIC keys of a report, each with value, interval and n, equal to the metric functions, and where they came from."""
    result = _json(capsys, file)
    values = classification_values(outcomes_from_logits(*data))
    assert result.keys() == EVERY | {"schema", "provenance", "notes"}
    assert {name: result[name]["value"] for name in EVERY} == values
    assert all(result[name].keys() == {"value", "ci95", "n", "interval"} and result[name]["n"] == 300 for name in EVERY)
    low, high = result["acc1"]["ci95"]
    assert low < values["acc1"] < high
    assert result["provenance"]["files"]["file"] == {"name": "engine.npz", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert result["provenance"]["seed"] == 0


def test_probabilities_give_the_same(file, data, tmp_path, capsys):
    """The softmax of the logits scores as the logits do."""
    other = tmp_path / "p.npz"
    np.savez(other, probabilities=softmax(data[0]), labels=data[1])
    first, second = _json(capsys, file), _json(capsys, other)
    for name in EVERY:
        assert second[name]["value"] == pytest.approx(first[name]["value"], rel=1e-4), name


def test_arrays_of_other_names(data, tmp_path, capsys):
    """Files of other tools are read when the arrays are named."""
    path = tmp_path / "netcal.npz"
    np.savez(path, predictions=softmax(data[0]), ground_truth=data[1])
    result = _json(capsys, path, "--probabilities", "predictions", "--labels", "ground_truth")
    assert result["acc1"]["n"] == 300


def test_csv_gives_what_its_columns_allow(tmp_path, capsys):
    """Four rows by hand: accuracy 3/4, signed gap 0.7 - 0.75; nothing that needs a distribution."""
    path = tmp_path / "rows.csv"
    path.write_text("true_label,pred_label,confidence\n0,0,0.9\n1,1,0.8\n2,0,0.5\n1,1,0.6\n")
    result = _json(capsys, path)
    assert result["acc1"]["value"] == 0.75
    assert result["signed_gap"]["value"] == pytest.approx(-0.05)
    assert result["aurc"]["value"] == pytest.approx(1 / 16)
    assert not result.keys() & {"acc5", "nll", "brier", "ece_classwise", "temperature", "ece_debiased"}


def test_table_and_note(file, capsys):
    """The table shows value, interval and n of each metric, and says how far ECE can be trusted at this n."""
    assert main(["score", str(file)]) == 0
    out = capsys.readouterr().out
    for name in EVERY:
        assert re.search(rf"^{name} +-?\d+\.\d{{4}} +(-|-?\d\.\d{{4}} to -?\d\.\d{{4}}) +300$", out, re.MULTILINE), name
    assert "n = 300: a perfectly calibrated model would show an ece15 of about 0.052" in out
    assert "\x1b" not in out


def test_files_are_written(file, tmp_path, capsys):
    """--json FILE and -o DIR write the same JSON; the table stays on stdout, notes on stderr."""
    assert main(["score", str(file), "--json", str(tmp_path / "a.json"), "-o", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "out" / "score.json").read_text())
    captured = capsys.readouterr()
    assert captured.out.startswith("metric")
    assert "wrote" in captured.err


def test_seed_repeats(file, capsys):
    """The same seed gives the same intervals, another seed other ones."""
    first, again, other = _json(capsys, file), _json(capsys, file), _json(capsys, file, "--seed", "1")
    assert {name: first[name] for name in EVERY} == {name: again[name] for name in EVERY}
    assert first["nll"]["ci95"] != other["nll"]["ci95"]


def test_baseline_gives_paired_deltas(file, data, tmp_path, capsys):
    """Deltas, their intervals and p-values, flips and divergence; the smallest loss that could be seen is said."""
    engine = tmp_path / "int8.npz"
    np.savez(engine, logits=data[0] + 0.3 * np.random.default_rng(1).standard_normal(data[0].shape), labels=data[1])
    result = _json(capsys, engine, "--baseline", file)
    low, high = result["nll"]["delta_ci95"]
    assert low <= result["nll"]["delta"] <= high
    assert 0 < result["acc1"]["p_value"] <= 1
    assert (result["acc1"]["test"], result["nll"]["delta_interval"], result["ece15"]["delta_interval"]) == ("mcnemar", "bca", "percentile")
    assert 0 < result["ece15"]["minimum_detectable"] < 0.2
    assert 0 < result["paired"]["js_divergence"] < 0.1
    assert 0 < result["paired"]["flips"] <= result["paired"]["disagreement"] < 0.3
    assert main(["score", str(engine), "--baseline", str(file)]) == 0
    out = capsys.readouterr().out
    assert "smallest accuracy difference" in out
    assert "the smallest one of ece15" in out
    assert "against the baseline: disagreement" in out


def test_ood_file(file, data, tmp_path, capsys):
    """Flatter logits of OOD samples, without labels, give an AUROC above chance for every score; n_id : n_ood is shown."""
    ood = tmp_path / "ood.npz"
    np.savez(ood, logits=data[0][:100] / 3)
    result = _json(capsys, file, "--ood", ood)["ood"]
    assert (result["n_id"], result["n_ood"]) == (300, 100)
    assert set(result["scores"]) == {"msp", "maxlogit", "energy_logit", "entropy"}
    assert all(metrics["auroc"]["value"] > 0.6 and metrics["auroc"]["n"] == 400 for metrics in result["scores"].values())
    assert set(result["scores"]["msp"]) == {"auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos"}
    assert main(["score", str(file), "--ood", str(ood)]) == 0
    assert "300 ID and 100 OOD samples" in capsys.readouterr().out


def test_a_threshold_is_transferred(file, data, tmp_path, capsys):
    """With the baseline's ID outputs there is what its threshold accepts; with its OOD outputs, what that changed; thresholds are said."""
    engine, ood, before = (tmp_path / name for name in ("int8.npz", "ood.npz", "before.npz"))
    np.savez(engine, logits=1.3 * data[0], labels=data[1])
    np.savez(before, logits=data[0][:100] / 3)
    np.savez(ood, logits=1.3 * data[0][:100] / 3)
    half = _json(capsys, engine, "--baseline", file, "--ood", ood, "--resamples", "50")["ood"]
    whole = _json(capsys, engine, "--baseline", file, "--ood", ood, "--baseline-ood", before, "--resamples", "50")
    top = np.sort(-data[0].max(axis=1))[284]  # 285 of 300 are 95 %
    kept, let_in = np.mean(-1.3 * data[0].max(axis=1) <= top), np.mean(-1.3 * data[0][:100].max(axis=1) / 3 <= top)
    for found in (half, whole["ood"]):
        assert found["scores"]["maxlogit"]["tpr_transfer"]["value"] == pytest.approx(kept)
        assert found["scores"]["maxlogit"]["fpr_transfer"]["value"] == pytest.approx(let_in)
        assert found["thresholds"]["maxlogit"]["threshold"] == pytest.approx(1.3 * top)
    assert "delta" not in half["scores"]["maxlogit"]["fpr_transfer"]
    delta = let_in - np.mean(-data[0][:100].max(axis=1) / 3 <= top)
    assert whole["ood"]["scores"]["maxlogit"]["fpr_transfer"]["delta"] == pytest.approx(delta)
    assert whole["provenance"]["resamples"] == 50
    assert set(whole["provenance"]["files"]) == {"file", "baseline", "ood", "baseline_ood"}
    assert main(["score", str(engine), "--baseline-ood", str(before)]) == 2
    assert "--baseline and --ood beside it" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_large_files_are_read_in_rows(data, tmp_path, capsys, monkeypatch, dtype):
    """Whatever holds the arrays, and whether they are kept or read again for every pass, every figure is the same."""
    logits = data[0].astype(dtype)
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / name for name in ("plain.npz", "packed.npz", "folder", "a-logits.npy")]
    np.savez(paths[0], other=np.zeros(5), logits=logits, labels=data[1])
    np.savez_compressed(paths[1], logits=logits, labels=data[1])
    for name, path in (("logits", paths[2] / "logits.npy"), ("labels", paths[2] / "labels.npy")):
        np.save(path, logits if name == "logits" else data[1])
    np.save(paths[3], logits)
    np.save(tmp_path / "a-labels.npy", data[1])
    options = "--baseline", paths[0], "--ood", paths[0], "--resamples", "20"
    kept = _json(capsys, paths[0], *options)
    monkeypatch.setattr(disk_arrays, "KEPT_BYTES", 0)
    assert isinstance(read_stored(paths[0], Keys()).logits, Lazy)
    for path in paths:
        read = _json(capsys, path, *options)
        for part in (*EVERY, "paired", "ood"):
            assert read[part] == kept[part], (path.name, part)
    files = read["provenance"]["files"]["file"]
    assert files["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (paths[3], tmp_path / "a-labels.npy")}


def test_large_probabilities_are_read_in_rows(data, tmp_path, capsys, monkeypatch):
    """Probabilities too, a zero among them; and logits that follow each other by columns are read whole."""
    path, columns = tmp_path / "p.npz", tmp_path / "c.npz"
    probabilities = softmax(data[0])
    probabilities[3] = np.eye(8)[data[1][3]]
    np.savez(path, probabilities=probabilities, labels=data[1])
    np.savez(columns, logits=np.asfortranarray(data[0]), labels=data[1])
    before = [_json(capsys, name, "--ood", name, "--resamples", "20") for name in (path, columns)]
    monkeypatch.setattr(disk_arrays, "KEPT_BYTES", 0)
    after = [_json(capsys, name, "--ood", name, "--resamples", "20") for name in (path, columns)]
    for first, second in zip(before, after, strict=True):
        assert {key: first[key] for key in first if key != "provenance"} == {key: second[key] for key in second if key != "provenance"}


def test_what_is_wrong_in_large_files_is_told(data, tmp_path, capsys, monkeypatch):
    """A flipped bit, a cut file, NaN in a late row, Python objects and names that say nothing: one line each, nothing is run."""
    monkeypatch.setattr(disk_arrays, "KEPT_BYTES", 0)
    flipped, late = (tmp_path / f"{name}.npz" for name in ("flipped", "late"))
    np.savez(flipped, logits=data[0], labels=data[1])
    content = bytearray(flipped.read_bytes())
    content[2000] ^= 1
    flipped.write_bytes(content)
    logits = data[0].copy()
    logits[299, 7] = np.nan
    np.savez(late, logits=logits, labels=data[1])
    cut = tmp_path / "logits.npy"
    np.save(cut, data[0])
    cut.write_bytes(cut.read_bytes()[:-8])
    np.save(tmp_path / "labels.npy", data[1])
    objects = tmp_path / "folder"
    objects.mkdir()
    np.save(objects / "logits.npy", np.array([None], dtype=object), allow_pickle=True)
    np.save(objects / "labels.npy", data[1])
    nameless = tmp_path / "engine.npy"
    np.save(nameless, data[0])
    assert [main(["score", str(path)]) for path in (flipped, late, cut, objects, nameless)] == [1, 1, 1, 5, 2]
    lines = capsys.readouterr().err.splitlines()
    for line, words in zip(
        lines, ("Bad CRC-32", "first at row 299", "is cut short", "can run code", "does not say what it holds"), strict=True
    ):
        assert words in line


def test_labels_may_be_numbers_of_any_size(tmp_path, capsys):
    """Labels of a million million take no more memory than those from 0."""
    path, small = tmp_path / "x.csv", tmp_path / "y.csv"
    path.write_text("true_label,pred_label,confidence\n1000000000000,1000000000000,0.9\n1,2,0.5\n1,1,0.4\n")
    small.write_text("true_label,pred_label,confidence\n0,0,0.9\n1,2,0.5\n1,1,0.4\n")
    big, plain = _json(capsys, path, "--resamples", "50"), _json(capsys, small, "--resamples", "50")
    assert big["mean_per_class_recall"] == plain["mean_per_class_recall"]
    assert big["mean_per_class_recall"]["value"] == 0.75


def test_an_infinite_divergence_is_said(tmp_path, capsys):
    """An engine that is certain of what the baseline doubts: null in the JSON, a word in the table."""
    before, after = tmp_path / "before.npz", tmp_path / "after.npz"
    np.savez(before, probabilities=np.full((40, 2), 0.5), labels=np.zeros(40, int))
    np.savez(after, probabilities=np.tile([1.0, 0.0], (40, 1)), labels=np.zeros(40, int))
    assert _json(capsys, after, "--baseline", before, "--resamples", "20")["paired"]["kl_divergence"] is None
    assert main(["score", str(after), "--baseline", str(before), "--resamples", "20"]) == 0
    assert "kl_divergence infinite" in capsys.readouterr().out


def test_a_probability_of_zero_is_said(tmp_path, capsys):
    """An infinite NLL is null in JSON, "infinite" in the table, and counted in a note."""
    path = tmp_path / "p.npz"
    np.savez(path, probabilities=np.array([[0.0, 1.0], [0.5, 0.5]]), labels=np.array([0, 1]))
    result = _json(capsys, path)
    assert result["nll"] == {"value": None, "ci95": None, "n": 2, "interval": None}
    assert any("1 of 2 samples give their label a probability of exactly 0" in text for text in result["notes"])
    assert main(["score", str(path)]) == 0
    assert re.search(r"^nll +infinite +- +2$", capsys.readouterr().out, re.MULTILINE)


def _saved(tmp_path, **arrays):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x": np.eye(2), "y": np.arange(2)},
            "found x, y; expected either logits or probabilities, and labels. Say which is which: --logits",
        ),
        ({"logits": np.eye(2)}, "found logits; expected either logits or probabilities, and labels"),
        ({"logits": np.eye(2), "probabilities": np.eye(2), "labels": np.arange(2)}, "expected either logits or probabilities"),
        ({"logits": np.eye(2), "labels": np.array([0, 2])}, "labels are outside the range of classes; found 0 to 2; expected 0 to 1"),
        ({"logits": np.eye(3), "labels": np.array([0, 1])}, "labels have the wrong shape; found (2,); expected (3,)"),
        ({"logits": np.full((2, 2), np.nan), "labels": np.arange(2)}, "logits hold NaN or infinity; found the first at row 0"),
        ({"probabilities": np.array([[0.5, 0.6]]), "labels": np.array([0])}, "probabilities do not sum to 1; found 1.1 in row 0"),
        ({"probabilities": np.array([[3.0, -2.0]]), "labels": np.array([0])}, "probabilities leave [0, 1]; found -2 to 3"),
        ({"logits": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "logits have the wrong shape; found (0, 2)"),
    ],
)
def test_wrong_arrays_end_in_one_line(tmp_path, capsys, arrays, message):
    """Exit code 1 and one line on stderr that says what was found and expected; nothing on stdout."""
    assert main(["score", str(_saved(tmp_path, **arrays))]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("kind", ["pickle", "pickle named npz", "objects"])
def test_pickles_are_refused_and_never_run(tmp_path, capsys, kind):
    """A pickle, whatever its name, and an array of Python objects end with exit code 5; their code does not run."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    path = tmp_path / ("x.pkl" if kind == "pickle" else "x.npz")
    if kind == "objects":
        np.savez(path, logits=np.array([Trap()], dtype=object), labels=np.arange(1))
    else:
        path.write_bytes(pickle.dumps(Trap()))
    assert main(["score", str(path)]) == 5
    assert "can run code" in capsys.readouterr().err
    assert not (tmp_path / "trapped").exists()


def test_broken_files(file, tmp_path, capsys):
    """A truncated archive, a text named .npz, a corrupt member, an unknown kind and a missing file: one line each."""
    cut = tmp_path / "cut.npz"
    cut.write_bytes(file.read_bytes()[:-40])
    text = tmp_path / "text.npz"
    text.write_text("hello")
    corrupt = tmp_path / "corrupt.npz"
    with zipfile.ZipFile(corrupt, "w") as archive:
        archive.writestr("logits.npy", b"\x93NUMPY\x01\x00garbage")
        archive.writestr("labels.npy", b"")
    single = tmp_path / "single.npz"
    with single.open("wb") as stream:
        np.save(stream, np.eye(2))
    other = tmp_path / "x.txt"
    other.write_text("1")
    codes = [main(["score", str(path)]) for path in (cut, text, corrupt, single, other, tmp_path / "none.npz")]
    assert codes == [1, 1, 1, 1, 2, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("clipq: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks columns; found a, b; expected true_label, pred_label, confidence"),
        ("true_label,pred_label,confidence\n", "has no rows"),
        ("true_label,pred_label,confidence\n0,0,0.5\n0,cat,0.5\n", "line 3 of"),
        ("true_label,pred_label,confidence\n0,0\n", "line 2 of"),
        ("true_label,pred_label,confidence\n0,0,nan\n", "NaN or infinity"),
        ("true_label,pred_label,confidence\n0,0,55\n", "confidences leave [0, 1]; found 55 to 55"),
        ("", "lacks columns; found nothing"),
        ("true_label,pred_label,confidence\n99999999999999999999,0,0.5\n", "line 2 of"),
    ],
)
def test_wrong_csv_ends_in_one_line(tmp_path, capsys, text, message):
    """Missing columns, no rows, words for numbers, short rows, NaN, percentages and labels that no integer holds."""
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert main(["score", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_other_samples_and_other_kinds_are_refused(file, data, tmp_path, capsys):
    """A baseline with other labels, and OOD outputs of another kind, are no comparison."""
    other = tmp_path / "other.npz"
    np.savez(other, logits=data[0], labels=data[1][::-1])
    assert main(["score", str(file), "--baseline", str(other)]) == 1
    assert re.search(r"other\.npz cannot be paired; found other labels in \d+ of 300 rows, the first in row \d+;", capsys.readouterr().err)
    np.savez(other, logits=data[0][:200], labels=data[1][:200])
    assert main(["score", str(file), "--baseline", str(other)]) == 1
    assert "cannot be paired; found 300 and 200 samples; expected the same" in capsys.readouterr().err
    np.savez(other, logits=data[0][:, :-1])
    assert main(["score", str(file), "--ood", str(other)]) == 1
    assert "FILE and --ood are of different classifiers" in capsys.readouterr().err
    probabilities = tmp_path / "p.npz"
    np.savez(probabilities, probabilities=softmax(data[0]))
    assert main(["score", str(file), "--ood", str(probabilities)]) == 1
    assert "both logits, both probabilities or both .csv" in capsys.readouterr().err


def test_help(capsys):
    """Help ends with 0 and names the formats."""
    with pytest.raises(SystemExit, match="0"):
        main(["score", "--help"])
    assert "true_label,pred_label,confidence" in capsys.readouterr().out
