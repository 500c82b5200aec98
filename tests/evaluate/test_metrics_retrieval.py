"""Ranks, recall and agreement of rankings: by hand, by slow loops, by torchmetrics and scipy, and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from clipq.engines.torch.compat import define_missing_operators
from clipq.errors import DataError
from clipq.evaluate.metrics import retrieval
from clipq.evaluate.metrics.retrieval import overlap, rank_correlation, recall_at, retrieve
from clipq.evaluate.statistics.bootstrap import compare
from clipq.evaluate.statistics.retrieval import RetrievalOutcomes, resample_retrieval

seeds = st.integers(0, 2**32 - 1)


def _unit(rng: np.random.Generator, n: int, dim: int = 6) -> np.ndarray:
    vectors = rng.standard_normal((n, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _drawn(seed: int, images: int = 12, texts: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors of images and texts and the owner of each text; every image has one at least."""
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    return _unit(rng, images), _unit(rng, texts), rng.permutation(owner)


# --- ranks and recall ---


def test_ranks_by_hand() -> None:
    """Two images, three texts: the second image's own texts stand second and third."""
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    found = retrieve(images, texts, np.array([0, 1]), np.array([0, 1, 1]), k=2)
    assert found.ranks.tolist() == [2, 1]
    assert [sorted(row) for row in found.top.tolist()] == [[1, 2], [0, 1]]
    assert (recall_at(found.ranks, 1), recall_at(found.ranks, 2), recall_at(found.ranks, 3)) == (0.0, 0.5, 1.0)


def test_of_equal_cosines_the_earlier_item_stands_first() -> None:
    """A tie is decided by place, so that equal captions of other images count against an image only where they come before."""
    same = np.array([[1.0, 0.0]] * 3)
    assert retrieve(same, same, np.arange(3), np.arange(3)).ranks.tolist() == [0, 1, 2]


@given(seeds)
def test_ranks_agree_with_a_slow_loop(seed: int) -> None:
    """Sort all items of each query, look for the first right one; with blocks of one row too."""
    images, texts, owner = _drawn(seed)
    expected = []
    for query in range(len(images)):
        order = sorted(range(len(texts)), key=lambda item: (-float(images[query] @ texts[item]), item))
        expected.append(next(rank for rank, item in enumerate(order) if owner[item] == query))
    assert retrieve(images, texts, np.arange(len(images)), owner).ranks.tolist() == expected
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(retrieval, "BLOCK_SCORES", 1)
        assert retrieve(images, texts, np.arange(len(images)), owner).ranks.tolist() == expected


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_torchmetrics(k: int) -> None:
    """Any right item among the k best is what torchmetrics calls the hit rate."""
    import torch

    define_missing_operators()  # torchmetrics imports torchvision
    from torchmetrics.retrieval import RetrievalHitRate

    images, texts, owner = _drawn(3, images=40, texts=120)
    queries = {"i2t": (images, texts, np.arange(40), owner), "t2i": (texts, images, owner, np.arange(40))}
    for own, others, asks, owns in queries.values():
        scores, right = own @ others.T, asks[:, None] == owns[None, :]
        place = np.repeat(np.arange(len(own)), len(others))
        metric = RetrievalHitRate(top_k=k)
        expected = metric(torch.tensor(scores.ravel()), torch.tensor(right.ravel()), indexes=torch.tensor(place))
        assert recall_at(retrieve(own, others, asks, owns).ranks, k) == pytest.approx(float(expected), abs=1e-6)


@given(seeds)
def test_ranks_do_not_depend_on_the_order_of_queries_and_items(seed: int) -> None:
    """Permuting queries permutes ranks; permuting the gallery changes nothing where no cosines are equal."""
    images, texts, owner = _drawn(seed)
    rng = np.random.default_rng(seed)
    ranks = retrieve(images, texts, np.arange(12), owner).ranks
    queries, items = rng.permutation(12), rng.permutation(30)
    assert retrieve(images[queries], texts, queries, owner).ranks.tolist() == ranks[queries].tolist()
    assert retrieve(images, texts[items], np.arange(12), owner[items]).ranks.tolist() == ranks.tolist()
    assert retrieve(images * 0.5, texts, np.arange(12), owner).ranks.tolist() == ranks.tolist()
    assert 0 <= ranks.min() <= ranks.max() < 30


def test_a_caption_more_never_hurts_its_own_image() -> None:
    """A copy of the image itself as its caption brings it to the first rank."""
    images, texts, owner = _drawn(0)
    found = retrieve(images, np.concatenate([texts, images]), np.arange(12), np.concatenate([owner, np.arange(12)]))
    assert found.ranks.tolist() == [0] * 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"queries": np.empty((0, 6))}, "wrong shape"),
        ({"gallery": np.full((30, 6), np.nan)}, "NaN"),
        ({"gallery_owner": np.zeros(30, np.int64)}, "nothing right in the gallery"),
        ({"gallery_owner": np.zeros(29, np.int64)}, "wrong shape"),
        ({"query_owner": np.linspace(0, 1, 12)}, "not integers"),
    ],
)
def test_what_cannot_be_ranked(change: dict[str, np.ndarray], words: str) -> None:
    """Nothing to ask, nothing to find, and numbers that are none."""
    images, texts, owner = _drawn(0)
    inputs = {"queries": images, "gallery": texts, "query_owner": np.arange(12), "gallery_owner": owner, **change}
    with pytest.raises(DataError, match=words):
        retrieve(**inputs)
    with pytest.raises(DataError):
        recall_at(np.empty(0, np.int64), 1)


# --- agreement with the baseline ---


@given(seeds, st.integers(1, 10))
def test_overlap_agrees_with_sets(seed: int, k: int) -> None:
    """The same as with Python's sets, 1 with itself, in either order."""
    rng = np.random.default_rng(seed)
    first, second = (np.stack([rng.permutation(15)[:k] for _ in range(4)]) for _ in range(2))
    expected = [len(set(a) & set(b)) / k for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert overlap(first, second).tolist() == pytest.approx(expected)
    assert overlap(first, rng.permuted(first, axis=1)).tolist() == [1.0] * 4
    with pytest.raises(DataError, match="differ in shape"):
        overlap(first, second[:2])


@given(seeds)
def test_rank_correlation_agrees_with_scipy(seed: int) -> None:
    """Spearman row by row, ties included; monotone changes leave it; a constant row has none."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, (2, 3, 20)).astype(np.float64)
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1.0)
    assert rank_correlation(first, -first) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(first, np.ones_like(first))).all()


# --- estimates ---


def _outcomes(seed: int) -> RetrievalOutcomes:
    images, texts, owner = _drawn(seed)
    ranks = retrieve(images, texts, np.arange(12), owner).ranks, retrieve(texts, images, owner, np.arange(12)).ranks
    return RetrievalOutcomes(owner, *ranks, {"t2i_overlap_at_10": np.linspace(0, 1, 30), "i2t_overlap_at_10": np.linspace(0, 1, 12)})


def test_values_are_shares_of_queries() -> None:
    """Images and texts each count once; the mean of both directions stands beside them."""
    outcomes = _outcomes(1)
    values = resample_retrieval(outcomes, resamples=10).values
    for k in (1, 5, 10):
        one, two = (outcomes.image_ranks < k).mean(), (outcomes.text_ranks < k).mean()
        assert (values[f"i2t_recall_at_{k}"], values[f"t2i_recall_at_{k}"]) == pytest.approx((one, two))
        assert values[f"recall_at_{k}"] == pytest.approx((one + two) / 2)
    assert values["t2i_overlap_at_10"] == pytest.approx(0.5)


def test_an_image_is_drawn_with_its_texts() -> None:
    """Every draw equals the shares among the drawn images and their texts, written out."""
    from clipq.evaluate.statistics.bootstrap import resample_counts

    outcomes = _outcomes(2)
    draws = resample_retrieval(outcomes, resamples=5, seed=7).draws
    for row, counts in enumerate(resample_counts(12, 5, 7)):
        images = np.repeat(np.arange(12), counts)
        texts = np.concatenate([np.flatnonzero(outcomes.owner == image) for image in images])
        assert draws["i2t_recall_at_5"][row] == pytest.approx((outcomes.image_ranks[images] < 5).mean())
        assert draws["t2i_recall_at_5"][row] == pytest.approx((outcomes.text_ranks[texts] < 5).mean())


def test_influence_is_what_leaving_an_image_out_shows() -> None:
    """To first order: value minus the value without one image, times n - 1; exact for means over images."""
    outcomes = _outcomes(4)
    made = resample_retrieval(outcomes, resamples=5)
    for image in range(12):
        others = np.flatnonzero(np.arange(12) != image)
        left = (outcomes.image_ranks[others] < 5).mean()
        (influence,) = made.influence["i2t_recall_at_5"]
        assert influence[image] == pytest.approx(11 * (made.values["i2t_recall_at_5"] - left))
    assert all(abs(part.sum()) < 1e-9 for parts in made.influence.values() for part in parts)


def test_engines_are_paired() -> None:
    """An engine has no difference to itself; other captions or seeds cannot be paired; McNemar tests images alone."""
    outcomes = _outcomes(5)
    own = resample_retrieval(outcomes, resamples=200)
    same = compare(own, own)
    assert {(entry.delta, entry.delta_ci95) for entry in same.values()} == {(0.0, (0.0, 0.0))}
    other = RetrievalOutcomes(outcomes.owner, outcomes.image_ranks[::-1].copy(), outcomes.text_ranks[::-1].copy())
    tests = {name: entry.test for name, entry in compare(own, resample_retrieval(other, resamples=200)).items()}
    assert {tests[f"i2t_recall_at_{k}"] for k in (1, 5, 10)} == {"mcnemar"}
    assert {test for name, test in tests.items() if not name.startswith("i2t")} == {"bootstrap"}
    with pytest.raises(DataError, match="cannot be paired"):
        compare(own, resample_retrieval(outcomes, resamples=200, seed=1))


def test_every_image_needs_a_text() -> None:
    """An image without one could never be found."""
    with pytest.raises(DataError, match="no text"):
        resample_retrieval(RetrievalOutcomes(np.array([0, 0]), np.array([0, 1]), np.array([0, 0])))
