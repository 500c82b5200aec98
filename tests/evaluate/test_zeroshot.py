"""Zero-shot classification against loops that follow the recipe word by word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy_bundle import MODEL

from clipq.artifact import ModelEntry
from clipq.errors import DataError, EngineError
from clipq.evaluate.answers import answer, probability_rule
from clipq.evaluate.compare import compare
from clipq.evaluate.metrics.arrays import Lazy, blocks
from clipq.evaluate.metrics.outcomes import outcomes_from_logits
from clipq.evaluate.zeroshot import classifier, cosines, l2_normalised, logits, prompts

RNG = np.random.default_rng(3)
TEXTS = RNG.standard_normal((4 * 3, 6)).astype(np.float32)  # 4 classes, 3 templates
IMAGES = RNG.standard_normal((9, 6)).astype(np.float32)
SIGMOID = replace(MODEL, logit_bias=-5.0)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(sum(float(value) ** 2 for value in vector))


def test_classifier_follows_the_recipe() -> None:
    """Normalise each prompt, average the templates of a class, normalise again."""
    made = classifier(TEXTS, 3, "test")
    for k in range(4):
        mean = sum(_unit(TEXTS[3 * k + t].astype(np.float64)) for t in range(3)) / 3
        np.testing.assert_allclose(made[k], _unit(mean), atol=1e-6)
    assert made.dtype == np.float32


def test_prompts_and_classifier_agree_on_the_order() -> None:
    """All templates of the first class come first; braces in a class name are left alone."""
    assert prompts(["{x}", "b"], ["a {c}", "the {c} of {c}"]) == ["a {x}", "the {x} of {x}", "a b", "the b of b"]


@pytest.mark.parametrize(("names", "templates"), [([], ["a {c}"]), (["a"], []), (["a"], ["no place"])])
def test_impossible_prompts_are_data_errors(names: list[str], templates: list[str]) -> None:
    """Without classes, templates or a place for the name there is nothing to classify with."""
    with pytest.raises(DataError):
        prompts(names, templates)


def test_logits_are_scaled_cosines() -> None:
    """The scale is the checkpoint's; the bias is added where there is one."""
    classes = classifier(TEXTS, 3, "test")
    cosine = cosines(IMAGES, classes, "test")
    for i in range(9):
        for k in range(4):
            slow = float(_unit(IMAGES[i].astype(np.float64)) @ classes[k].astype(np.float64))
            assert cosine[i, k] == pytest.approx(slow, abs=1e-6)
    np.testing.assert_allclose(logits(cosine, MODEL), 30 * cosine, rtol=1e-6)
    np.testing.assert_allclose(logits(cosine, SIGMOID), 30 * cosine - 5, rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_embedding_without_direction_is_an_error(bad: float) -> None:
    """A zero, NaN or infinite embedding has no cosine, and the line says where it is."""
    rows = IMAGES.copy()
    rows[5] = bad
    with pytest.raises(EngineError, match=r"ort on data.*row 5"):
        l2_normalised(rows, "ort on data")


def test_answers_of_a_softmax_model() -> None:
    """Prediction, confidence and every OOD score against plain formulas; higher = more OOD."""
    classes = classifier(TEXTS, 3, "test")
    made = answer(IMAGES, classes, MODEL, "test")
    for i in range(9):
        cosine = (_unit(IMAGES[i].astype(np.float64)) @ classes.T).astype(np.float64)
        logit = 30 * cosine
        p = np.exp(logit) / np.exp(logit).sum()
        q = np.exp(cosine) / np.exp(cosine).sum()
        assert made.predictions[i] == p.argmax()
        assert made.confidence[i] == pytest.approx(p.max(), rel=1e-4)
        expected = {"mcm": -q.max(), "msp": -p.max(), "maxlogit": -logit.max(), "energy_logit": -np.log(np.exp(logit).sum())}
        expected["energy_cos"] = -np.log(np.exp(cosine).sum())
        expected["entropy"] = -(p * np.log(p)).sum()
        for name, value in expected.items():
            assert made.ood_scores[name][i] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_answers_of_a_sigmoid_model() -> None:
    """SigLIP: confidence is the largest sigmoid over their sum; the bias matters; msp becomes the largest sigmoid."""
    classes = classifier(TEXTS, 3, "test")
    made = answer(IMAGES, classes, SIGMOID, "test")
    for i in range(9):
        logit = 30 * (_unit(IMAGES[i].astype(np.float64)) @ classes.T) - 5
        sigmoid = 1 / (1 + np.exp(-logit))
        assert made.confidence[i] == pytest.approx(sigmoid.max() / sigmoid.sum(), rel=1e-4)
        assert made.ood_scores["msp"][i] == pytest.approx(-np.log(sigmoid.max()), rel=1e-3, abs=1e-5)
    assert not np.allclose(made.confidence, answer(IMAGES, classes, MODEL, "test").confidence, atol=1e-3)
    assert "sigmoid" in probability_rule(SIGMOID)
    assert "softmax" in probability_rule(MODEL)


@pytest.mark.parametrize("model", [MODEL, SIGMOID])
def test_answers_need_not_keep_their_logits(model: ModelEntry) -> None:
    """Class scores that are made again for every block are those that were kept, and every metric takes them."""
    rng = np.random.default_rng(3)
    images, labels = rng.standard_normal((900, 8)).astype(np.float32), rng.integers(0, 300, 900)
    classes = l2_normalised(rng.standard_normal((300, 8)).astype(np.float32), "test")
    kept, lazy = (answer(images, classes, model, "test", kept_bytes=size) for size in (1 << 28, 0))
    assert isinstance(lazy.class_scores, Lazy)
    assert isinstance(kept.class_scores, np.ndarray)
    for rows in blocks(900, 300):
        np.testing.assert_array_equal(lazy.class_scores[rows], kept.class_scores[rows])
    first, second = (outcomes_from_logits(made.class_scores, labels) for made in (kept, lazy))
    np.testing.assert_array_equal(first.nll, second.nll)
    np.testing.assert_array_equal(first.tempered_confidence, second.tempered_confidence)
    assert compare(labels, kept, lazy, images, images)["js_divergence"] < 1e-12


def test_a_row_without_direction_is_named_in_later_blocks() -> None:
    """The row in the error counts from the first image, not from the first of its block."""
    images = np.ones((900, 4), np.float32)
    images[777] = 0
    with pytest.raises(EngineError, match=r"ort on data.*row 777"):
        answer(images, np.full((300, 4), 0.5, np.float32), MODEL, "ort on data")
