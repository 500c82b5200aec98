"""Worsenings against independent computations: signs, the worse tower, both kinds of model, intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from clipq.artifact import ModelEntry
from clipq.export.keep import NEEDS
from clipq.sensitivity.damage import interval, levels, read, worsening
from clipq.sensitivity.data import SearchData

MODEL = ModelEntry("toy:none", "ab" * 32, 16, logit_scale=20.0, logit_bias=None, context_length=8)
SIGLIP = replace(MODEL, logit_scale=60.0, logit_bias=-55.0)
N, N_OOD, CLASSES, TEMPLATES = 200, 120, 7, 2
Array = np.ndarray[Any, Any]


def _data(**change: Any) -> SearchData:
    labels = np.random.default_rng(9).integers(0, CLASSES, N)
    return replace(SearchData({}, N, labels, TEMPLATES, {}, ""), **change)


def _embeddings(seed: int = 0, noise: float = 0.0, text_noise: float = 0.0) -> dict[Any, Array]:
    """Return embeddings around their class's text, with a large common mean as real ones have."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    mean = 4 * rng.standard_normal(16)
    classes = rng.standard_normal((CLASSES, 16))
    labels = _data().labels
    assert labels is not None
    inside = mean + classes[labels] + 1.5 * rng.standard_normal((N, 16))
    outside = mean + 1.5 * rng.standard_normal((N_OOD, 16))
    texts = mean + np.repeat(classes, TEMPLATES, axis=0) + 0.1 * rng.standard_normal((CLASSES * TEMPLATES, 16))
    images = np.concatenate([inside, outside])
    images += noise * other.standard_normal(images.shape)
    texts += text_noise * other.standard_normal(texts.shape)
    return {"image": images.astype(np.float32), "text": texts.astype(np.float32)}


def _probabilities(embeddings: dict[Any, Array], model: ModelEntry) -> tuple[Array, Array]:
    """Return cosines and class probabilities, computed once more and differently."""
    unit = {name: value.astype(np.float64) / np.linalg.norm(value, axis=1, keepdims=True) for name, value in embeddings.items()}
    classes = np.stack([unit["text"][TEMPLATES * k : TEMPLATES * (k + 1)].mean(axis=0) for k in range(CLASSES)])
    cosine = unit["image"] @ (classes / np.linalg.norm(classes, axis=1, keepdims=True)).T
    logits = model.logit_scale * cosine + (model.logit_bias or 0.0)
    scores = 1 / (1 + np.exp(-logits)) if model.logit_bias is not None else np.exp(logits)
    return cosine, scores / scores.sum(axis=1, keepdims=True)


def _ece(probabilities: Array, labels: Array) -> float:
    """Return the definition, bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(15):
        inside = (confidence >= number / 15) & ((confidence < (number + 1) / 15) | (number == 14))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


def _fpr95(cosine: Array) -> float:
    """Return the first operating point of scikit-learn's curve that accepts 95 % of ID images."""
    softmax = (np.exp(cosine) / np.exp(cosine).sum(axis=1, keepdims=True)).max(axis=1)
    fpr, tpr, _ = roc_curve(np.arange(len(softmax)) < N, softmax, drop_intermediate=False)
    return float(fpr[np.flatnonzero(tpr >= 0.95)[0]])


@pytest.mark.parametrize("model", [MODEL, SIGLIP], ids=["softmax", "sigmoid"])
def test_worsenings_equal_another_computation(model: ModelEntry) -> None:
    """Every metric of the vocabulary, from the definition or another library."""
    data, first, second = _data(), _embeddings(), _embeddings(noise=1.0)
    found = worsening(read(first, data, model), read(second, data, model))
    labels = data.labels
    assert labels is not None
    (cosine1, p1), (cosine2, p2) = _probabilities(first, model), _probabilities(second, model)
    guess1, guess2 = p1[:N].argmax(axis=1), p2[:N].argmax(axis=1)
    a, b = (value["image"][:N] / np.linalg.norm(value["image"][:N], axis=1, keepdims=True) for value in (first, second))
    plain = np.sum(a * b, axis=1)
    a, b = a - a.mean(axis=0), b - a.mean(axis=0)
    centred = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    expected = {
        "cosine": 1 - plain.mean(),
        "cosine_centred": 1 - centred.mean(),
        "disagreement": (guess1 != guess2).mean(),
        "flips": ((guess1 == labels) != (guess2 == labels)).mean(),
        "acc1": (guess1 == labels).mean() - (guess2 == labels).mean(),
        "ece15": _ece(p2[:N], labels) - _ece(p1[:N], labels),
        "fpr95": _fpr95(cosine2) - _fpr95(cosine1),
    }
    assert set(found) == set(NEEDS) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2e-6), name
    assert found["disagreement"] > found["flips"] > abs(found["acc1"]) > 0


def test_no_change_is_no_worsening() -> None:
    """Everything is 0 where nothing differs, and the intervals hold 0."""
    data = _data()
    reading = read(_embeddings(), data, MODEL)
    found = worsening(reading, reading)
    assert found == pytest.approx(dict.fromkeys(NEEDS, 0.0), abs=1e-12)
    for metric in NEEDS:
        (low, high), n = interval(metric, reading, reading, seed=0)
        floor = 0.0 if metric.startswith("cosine") else 3 / n
        assert (low, high) == pytest.approx((-floor, floor), abs=1e-12)


def test_worse_is_positive() -> None:
    """Noise lowers accuracy and separation: the worsening is positive, and negative the other way round."""
    data = _data()
    good, bad = read(_embeddings(), data, MODEL), read(_embeddings(noise=3.0), data, MODEL)
    forward, backward = worsening(good, bad), worsening(bad, good)
    for metric in ("acc1", "fpr95"):
        assert forward[metric] > 0.02
        assert backward[metric] == pytest.approx(-forward[metric])
    assert forward["flips"] == backward["flips"]
    assert levels(bad)["acc1"] == pytest.approx(levels(good)["acc1"] - forward["acc1"])


def test_the_worse_tower_counts() -> None:
    """Cosines of a quantized text tower are of the prompts; the tower that moved more is told."""
    data = _data()
    before = read(_embeddings(), data, MODEL)
    text, both = read(_embeddings(text_noise=1.0), data, MODEL), read(_embeddings(noise=0.2, text_noise=1.0), data, MODEL)
    image = read(_embeddings(noise=0.2), data, MODEL)
    losses = [worsening(before, after)["cosine_centred"] for after in (image, text, both)]
    assert losses[0] < losses[1] == pytest.approx(losses[2], rel=0.5)
    assert interval("cosine_centred", before, text, seed=0)[1] == CLASSES * TEMPLATES
    assert interval("cosine_centred", before, image, seed=0)[1] == N


@pytest.mark.parametrize("metric", sorted(NEEDS))
def test_intervals_cover_the_value_and_know_their_sample(metric: str) -> None:
    """The interval holds its estimate, is the same for the same seed, and n counts the images it comes from."""
    data = _data()
    before, after = read(_embeddings(), data, MODEL), read(_embeddings(noise=1.0), data, MODEL)
    (low, high), n = interval(metric, before, after, seed=3)
    assert low < worsening(before, after)[metric] < high
    assert interval(metric, before, after, seed=3) == ((low, high), n)
    assert n == (N + N_OOD if metric == "fpr95" else N)


def test_the_interval_of_a_share_is_that_of_its_binomial() -> None:
    """A bootstrap of disagreements spreads as the normal approximation says."""
    data = _data()
    before, after = read(_embeddings(), data, MODEL), read(_embeddings(noise=2.0), data, MODEL)
    share = worsening(before, after)["disagreement"]
    (low, high), _ = interval("disagreement", before, after, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / N), rel=0.1)


def test_what_the_data_lacks_is_not_measured() -> None:
    """Without class names only cosines; without labels no right or wrong; without OOD images no fpr95."""
    first, second = _embeddings(), _embeddings(noise=1.0)

    def names(data: SearchData, *without: str) -> set[str]:
        pair = [read({name: value for name, value in e.items() if name not in without}, data, MODEL) for e in (first, second)]
        return set(worsening(pair[0], pair[1]))

    cosines = {"cosine", "cosine_centred"}
    assert names(_data(), "text") == cosines
    assert names(_data(labels=None)) == cosines | {"disagreement", "fpr95"}
    every = _data(images=N + N_OOD, labels=np.zeros(N + N_OOD, np.int64))
    assert names(every) == set(NEEDS) - {"fpr95"}
