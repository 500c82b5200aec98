"""NegLabel from words to report: the lists, the mining by the baseline, and every score computed again by a loop."""

from __future__ import annotations

import json
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from toy_bundle import make_toy_bundle, words

from clipq.artifact import Bundle
from clipq.calib_data.synthetic import open_synthetic
from clipq.cli.main import main
from clipq.errors import DataError, UsageError
from clipq.evaluate.negative_words import WORDNET, read_words, shipped_words
from clipq.evaluate.neglabel import NegLabelOptions, NegLabelPlan
from clipq.evaluate.report.samples import read_samples, select
from clipq.evaluate.suite import EvalOptions, evaluate_bundle

ID, FAR = (open_synthetic(name).id for name in ("scenes", "scenes-far"))
SHARE, GROUPS = 0.5, 3


@pytest.fixture(scope="module")
def nouns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of pairs of words that the toy's tokenizer knows, each of them another embedding."""
    known = [word for word in words()[2:] if word.isalpha()]
    path = tmp_path_factory.mktemp("words") / "nouns.txt"
    path.write_text("\n".join(f"{first} {second}" for first, second in pairwise(known)))
    return path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, nouns: Path) -> tuple[Bundle, Path, dict[str, Any]]:
    """One evaluation with NegLabel that the tests only read; the text towers are one file, so the words are embedded once."""
    folder = tmp_path_factory.mktemp("neglabel")
    bundle = make_toy_bundle(folder / "bundle")
    options = EvalOptions(
        data=("synthetic:scenes",),
        ood=("synthetic:scenes-far",),
        baseline="ort-fp32",
        limit=60,
        bench_seconds=0,
        resamples=50,
        neglabel=NegLabelOptions(nouns, share=SHARE, groups=GROUPS),
    )
    return bundle, folder / "out", evaluate_bundle(bundle, options, folder / "out")


def _embedded_texts(bundle: Bundle, texts: list[str]) -> np.ndarray:
    """Return unit text embeddings, one text at a time, with none of our own code."""
    session, vocabulary = onnxruntime.InferenceSession(str(bundle.folder / "towers/text.fp32.onnx")), words()
    rows = []
    for text in texts:
        ids = [vocabulary.index(word) if word in vocabulary else 1 for word in text.lower().split()]
        (vector,) = session.run(None, {"tokens": np.asarray([ids + [0] * (16 - len(ids))], np.int32)})[0]
        rows.append(vector / np.linalg.norm(vector))
    return np.stack(rows)


def _image_embeddings(folder: Path, engine: str, report: dict[str, Any]) -> np.ndarray:
    """Return the stored image embeddings of the OOD set, found by what their folder says of itself."""
    weights = sorted(value for name, value in report["engines"][engine]["sha256"].items() if "image" in name)
    for finished in (folder / "embeddings").glob("*/finished.json"):
        facts = json.loads(finished.read_text())["facts"]
        if facts["tower"] == "image" and facts["data"] == report["datasets"][FAR]["sha256"] and facts["weights"] == weights:
            rows = np.concatenate([np.load(path) for path in sorted(finished.parent.glob("*.npy"))])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    raise AssertionError(engine)


def test_every_score_equals_a_loop(evaluated: tuple[Bundle, Path, dict[str, Any]], nouns: Path) -> None:
    """Words embedded one by one, mined by sorting, grouped by the same shuffle: the scores in samples.parquet, of every engine."""
    bundle, folder, report = evaluated
    listed, classnames = nouns.read_text().splitlines(), open_synthetic("scenes").classnames
    candidates = _embedded_texts(bundle, [f"the nice {word}" for word in listed])
    classes = _embedded_texts(bundle, [f"the nice {name}" for name in classnames])
    nearness = np.quantile(candidates @ classes.T, 0.95, axis=1)
    number = int(SHARE * len(listed))
    negatives = candidates[np.argsort(nearness)[:number]]
    each = number // GROUPS
    order = np.random.default_rng(0).permutation(each * GROUPS)
    samples = read_samples(folder / "samples.parquet")
    for engine in report["engines"]:
        images = _image_embeddings(folder, engine, report)
        own, foreign = np.exp(images @ classes.T / 0.01), np.exp(images @ negatives.T / 0.01)[:, order]
        shares = [
            own.sum(axis=1) / (own.sum(axis=1) + foreign[:, group * each : (group + 1) * each].sum(axis=1)) for group in range(GROUPS)
        ]
        found = select(samples, engine=engine, data=FAR)["neglabel"]
        np.testing.assert_allclose(found, -np.mean(shares, axis=0), rtol=2e-3, atol=1e-6)
        assert np.std(found) > 0


def test_the_report_has_the_score_and_how_it_was_made(evaluated: tuple[Bundle, Path, dict[str, Any]], nouns: Path) -> None:
    """NegLabel stands beside the other scores with intervals and deltas; provenance names words, settings and who chose."""
    _, folder, report = evaluated
    schema = json.loads((resources.files("clipq") / "evaluate/report/report.schema.json").read_text())
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)
    figures = report["ood"]["ort-int8-static"][f"{ID}|{FAR}"]["neglabel"]["auroc"]
    assert 0 < figures["value"] < 1
    assert figures["delta"] == figures["value"] - report["ood"]["ort-fp32"][f"{ID}|{FAR}"]["neglabel"]["auroc"]["value"]
    made = report["provenance"]["neglabel"]
    assert (made["chosen_by"], made["share"], made["groups"], made["temperature"], made["seed"]) == ("ort-fp32", SHARE, GROUPS, 0.01, 0)
    assert made["words"]["source"] == str(nouns)
    assert made["words"]["nouns"] == len(nouns.read_text().splitlines())
    assert made["chosen"][ID]["words"] == made["words"]["nouns"] // 2
    assert len(made["chosen"][ID]["sha256"]) == 64
    assert "NegLabel" in (folder / "report.md").read_text()


def test_words_of_a_shared_tower_are_embedded_once(evaluated: tuple[Bundle, Path, dict[str, Any]]) -> None:
    """Three engines with one text tower have one store of words, one of classes for NegLabel, and one of prompts."""
    _, folder, _ = evaluated
    facts = [json.loads(path.read_text())["facts"] for path in (folder / "embeddings").glob("*/finished.json")]
    assert sum(fact["tower"] == "text" for fact in facts) == 3


def test_shipped_words_are_what_their_readme_says() -> None:
    """Sorted, each once, letters only, as many as told, with the licence that asks to go with them."""
    listed = shipped_words()
    assert listed.source == WORDNET
    assert len(listed.nouns) == len(set(listed.nouns)) == 11_897
    assert not set(listed.nouns) & set(listed.adjectives)
    assert len(listed.adjectives) > 2000
    assert {"dog", "kettle", "ice cream"} <= set(listed.nouns)
    assert "purple" in {*listed.adjectives, *listed.nouns}
    assert all(word.replace(" ", "").replace("-", "").replace("'", "").replace(".", "").isalpha() for word in listed.nouns)
    folder = resources.files("clipq") / "evaluate" / "words"
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (folder / "LICENSE").read_text()
    assert sum((folder / name).stat().st_size for name in ("nouns.txt", "adjectives.txt")) < 150_000  # type: ignore[attr-defined]


def test_prompts_are_the_papers() -> None:
    """Nouns and classes alike are 'the nice ...', adjectives 'This is a ... photo'."""
    listed = shipped_words()
    assert listed.prompts[0] == f"the nice {listed.nouns[0]}"
    assert listed.prompts[-1] == f"This is a {listed.adjectives[-1]} photo"
    texts = NegLabelPlan.of(NegLabelOptions()).texts({"data": ["cat", "dog"]})
    assert list(texts.values()) == [listed.prompts, ["the nice cat", "the nice dog"]]


def test_nouns_and_adjectives_are_mined_apart() -> None:
    """Each kind gives its share, rounded down, whichever kind is farther from the classes."""
    plan = NegLabelPlan.of(NegLabelOptions())
    nouns, adjectives = plan.numbers
    assert (nouns, adjectives) == (int(0.15 * len(plan.words.nouns)), int(0.15 * len(plan.words.adjectives)))
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((len(plan.words.prompts), 4))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = plan.mine(embeddings.astype(np.float32), np.eye(4, dtype=np.float32)[:1])
    assert (rows < len(plan.words.nouns)).sum() == nouns
    assert len(rows) == nouns + adjectives
    assert embeddings[rows[:nouns], 0].max() <= np.quantile(embeddings[: len(plan.words.nouns), 0], 0.151)


def test_own_words_drop_what_stands_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty lines and spaces are tidied away in silence, repetitions are told."""
    path = tmp_path / "words.txt"
    path.write_text("\ufeffice  cream\n\n dog\ndog \ncat\n", encoding="utf-8")
    assert read_words(path).nouns == ("ice cream", "dog", "cat")
    assert "1 of 4 negative words stand there more than once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "has no negative words"), (b" \n\n", "2 empty lines"), (b"\xff\xfe\xfa", "cannot read")],
)
def test_bad_words_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A list that is missing, empty or no text ends in one line with its name."""
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_words(path)
    assert "words.txt" in str(raised.value)


def test_too_few_words_are_told_before_any_work(tmp_path: Path) -> None:
    """Fifteen per cent of 20 words do not fill 100 groups; the line says what would."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(f"word{i}" for i in range(20)))
    with pytest.raises(DataError, match=r"found 3 \(15 % of 20\) for 100 groups.*--negative-groups"):
        NegLabelPlan.of(NegLabelOptions(path))
    assert NegLabelPlan.of(NegLabelOptions(path, groups=3)).numbers == (3, 0)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"share": float("nan")}, {"groups": 0}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """Shares and groups out of range are slips of the command."""
    with pytest.raises(UsageError, match="--negative-"):
        NegLabelOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--neglabel"], 2, "--neglabel scores OOD data"),
        (["--ood", "synthetic:scenes-far", "--negative-share", "0.5"], 2, "Add --neglabel"),
        (["--ood", "synthetic:scenes-far", "--neglabel", "--negative-words", "nowhere.txt"], 1, "nowhere.txt"),
    ],
)
def test_bad_commands_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    """Usage ends with 2, an unusable list with 1, before anything is embedded."""
    bundle = make_toy_bundle(tmp_path / "bundle").folder
    quick = ["--data", "synthetic:scenes", "--baseline", "ort-fp32", "--no-bench", "-o", str(tmp_path / "out")]
    assert main(["eval", str(bundle), *quick, *arguments]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clipq:")]
    assert message in line
    assert not (tmp_path / "out" / "embeddings").exists()
