"""Estimates of retrieval: recall in both directions and agreement with the baseline, resampled over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_labels
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Resampled, resample_counts
from clipq.files import sha256_bytes

RECALL_AT = (1, 5, 10)
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "i2t", "t2i"


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalOutcomes:
    """What one engine retrieved.

    Attributes:
        owner: int64 ``(texts,)``: the image each text belongs to, 0 to n - 1; every image has at least one.
        image_ranks: int64 ``(n,)``: rank of the first own text of each image.
        text_ranks: int64 ``(texts,)``: rank of each text's image.
        agreement: METRIC key -> ``(n,)`` or ``(texts,)``: of each query, how far it agrees with the baseline; the key begins with the
            direction.
    """

    owner: Int64
    image_ranks: Int64
    text_ranks: Int64
    agreement: Mapping[str, Float64] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ranks)


def resample_retrieval(outcomes: RetrievalOutcomes, *, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Return one engine's metrics on all images and on every resample.

    An image is drawn together with its texts, because they are not independent; what is searched stays the same, so the interval is
    that of other queries against this gallery.

    ``i2t_recall_at_k`` is the share of images that find one of their texts, ``t2i_recall_at_k`` the share of texts that find their
    image, ``recall_at_k`` the mean of the two.

    Args:
        outcomes: What the engine retrieved.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; the same for all engines that will be compared.

    Raises:
        DataError: The arrays do not fit each other.
    """
    shares = _shares(outcomes)
    names = list(shares)
    hits = np.stack([shares[name][0] for name in names], axis=1)
    sizes = np.stack([shares[name][1] for name in names], axis=1)
    drawn = np.stack([(counts @ hits) / (counts @ sizes) for counts in resample_counts(len(outcomes), resamples, seed)])
    value = hits.sum(axis=0) / sizes.sum(axis=0)
    moves = (hits - value * sizes) / sizes.mean(axis=0)
    values = {name: float(value[column]) for column, name in enumerate(names)}
    draws: dict[str, Float64] = {name: drawn[:, column] for column, name in enumerate(names)}
    influence: dict[str, tuple[Float64, ...]] = {name: (moves[:, column],) for column, name in enumerate(names)}
    for k in RECALL_AT:
        name, (one, two) = f"recall_at_{k}", (f"{way}_recall_at_{k}" for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE))
        values[name], draws[name] = (values[one] + values[two]) / 2, (draws[one] + draws[two]) / 2
        influence[name] = ((influence[one][0] + influence[two][0]) / 2,)
    correct = {f"{IMAGE_TO_TEXT}_recall_at_{k}": outcomes.image_ranks < k for k in RECALL_AT}
    key = (sha256_bytes(outcomes.owner.tobytes())[:12], resamples, seed)
    return Resampled(values, draws, len(outcomes), key, correct, influence)


def _shares(outcomes: RetrievalOutcomes) -> dict[str, tuple[Float64, Float64]]:
    """Return METRIC key -> (sum over the queries of each image, number of these queries), float64 ``(n,)`` each."""
    owner = as_labels(outcomes.owner, "owners of texts", len(outcomes.text_ranks), classes=len(outcomes))
    texts = np.bincount(owner, minlength=len(outcomes)).astype(np.float64)
    if not texts.all():
        raise DataError("an image has no text", found=f"image {np.flatnonzero(texts == 0)[0]}", expected="at least one of each")

    def of_query(name: str, column: Array) -> tuple[Float64, Float64]:
        if name.startswith(IMAGE_TO_TEXT):
            return column.astype(np.float64), np.ones(len(outcomes))
        return np.bincount(owner, column, minlength=len(outcomes)).astype(np.float64), texts

    columns: dict[str, Array] = {}
    for way, ranks in ((IMAGE_TO_TEXT, outcomes.image_ranks), (TEXT_TO_IMAGE, outcomes.text_ranks)):
        columns |= {f"{way}_recall_at_{k}": ranks < k for k in RECALL_AT}
    return {name: of_query(name, column) for name, column in {**columns, **outcomes.agreement}.items()}
