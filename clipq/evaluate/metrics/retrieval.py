"""Retrieval by cosine: at which rank the first right item stands, and how far two engines' rankings agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels, as_matrix

BLOCK_SCORES = 1 << 22  # 16 MiB of float32: enough rows for a fast product, little memory


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """What a set of queries finds.

    Attributes:
        ranks: int64 ``(n,)``: how many items of the gallery stand before the first right one, 0 is best; of equal cosines the earlier
            item stands first.
        top: int64 ``(n, k)``: the k best items of each query, in no order.
    """

    ranks: Int64
    top: Int64


def retrieve(queries: Array, gallery: Array, query_owner: Array, gallery_owner: Array, *, k: int = 10) -> Retrieved:
    """Return what each query finds in a gallery, block by block: the matrix of all cosines is never in memory.

    An item is right for a query when both have the same owner. With images as queries and captions as gallery, any of an image's
    captions counts, as in CLIP_benchmark (``clip_benchmark/metrics/zeroshot_retrieval.py``).

    Args:
        queries: Unit vectors ``(n, dim)``.
        gallery: Unit vectors ``(m, dim)``.
        query_owner: int ``(n,)``.
        gallery_owner: int ``(m,)``.
        k: Items of ``top``; no more than m are there.

    Raises:
        DataError: A shape is wrong, a value is not finite, or a query has no right item.

    >>> retrieve(np.eye(2), np.eye(2), np.array([0, 1]), np.array([1, 0])).ranks.tolist()
    [1, 1]
    """
    queries, gallery = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    owns, owned = as_labels(query_owner, "owners of queries", len(queries)), as_labels(gallery_owner, "owners of items", len(gallery))
    lonely = np.setdiff1d(owns, owned)
    if len(lonely):
        raise DataError("a query has nothing right in the gallery", found=f"owner {lonely[0]}, and {len(lonely) - 1} more", expected="one")
    ranks, top = np.empty(len(queries), np.int64), np.empty((len(queries), min(k, len(gallery))), np.int64)
    for rows in _blocks(len(queries), len(gallery)):
        scores = queries[rows] @ gallery.T
        ranks[rows] = _ranks(scores, owns[rows, None] == owned[None, :])
        top[rows] = np.argpartition(-scores, top.shape[1] - 1, axis=1)[:, : top.shape[1]]
    return Retrieved(ranks, top)


def recall_at(ranks: Array, k: int) -> float:
    """Return the share of queries whose first right item is among the k best, in [0, 1] (as in Karpathy & Fei-Fei 2015).

    >>> recall_at(np.array([0, 4, 5]), 5)
    0.6666666666666666
    """
    return float((as_labels(ranks, "ranks") < k).mean())


def overlap(first: Array, second: Array) -> Float64:
    """Return for each query the share of items that two lists of its k best have in common, ``(n,)`` in [0, 1].

    >>> overlap(np.array([[1, 2]]), np.array([[2, 3]])).tolist()
    [0.5]

    Raises:
        DataError: The lists differ in shape.
    """
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise DataError("two lists of best items differ in shape", found=f"{first.shape} and {second.shape}", expected="(n, k) twice")
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    shared: Float64 = (both[:, 1:] == both[:, :-1]).sum(axis=1) / first.shape[1]
    return shared


def rank_correlation(first: Array, second: Array) -> Float64:
    """Return Spearman's correlation of two scorings of the same gallery for each query, ``(n,)`` in [-1, 1]; NaN where one is constant.

    Args:
        first: Scores ``(n, m)``.
        second: The other scores of the same queries and items.
    """
    one, two = as_matrix(first, "scores"), as_matrix(second, "scores")
    if one.shape != two.shape:
        raise DataError("two scorings differ in shape", found=f"{one.shape} and {two.shape}")
    a, b = (rankdata(scores, axis=1) - (one.shape[1] + 1) / 2 for scores in (one, two))
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation: Float64 = np.where(spread > 0, (a * b).sum(axis=1) / spread, np.nan)
    return correlation


def _ranks(scores: Array, right: Array) -> Int64:
    """Return how many items stand before the best right one of each row."""
    own = np.where(right, scores, -np.inf)
    first = own.argmax(axis=1)[:, None]
    best = np.take_along_axis(scores, first, axis=1)
    earlier = (scores == best) & (np.arange(scores.shape[1]) < first)
    ranks: Int64 = ((scores > best) | earlier).sum(axis=1)
    return ranks


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK_SCORES // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
