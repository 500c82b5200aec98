"""The Brier score taken apart: miscalibration, what the probabilities tell, how hard the data is, and what binning hides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.evaluate.metrics.arrays import Array, as_labels, as_probabilities, blocks
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.metrics.classwise import ClassBins
from clipq.evaluate.metrics.proper import brier


@dataclass(frozen=True, slots=True)
class BrierParts:
    """``reliability - resolution + uncertainty + within = brier``, each summed over the classes.

    With class k, its bin b, n_kb probabilities in it of mean p_kb, of which the share o_kb is of class k, and o_k the share of class k:

    Attributes:
        reliability: ``1/n sum_kb n_kb (p_kb - o_kb)^2``, in [0, 2]: miscalibration, lower is better.
        resolution: ``1/n sum_kb n_kb (o_kb - o_k)^2``, from 0 to the uncertainty: how far the bins tell classes apart, higher is better.
        uncertainty: ``sum_k o_k (1 - o_k)``, in [0, 1): of the labels alone, the Brier score of always answering the class shares.
        within: ``1/n sum_kb sum_{i in b} (p_ik - p_kb)^2 - 2 (p_ik - p_kb) (y_ik - o_kb)``, of either sign: the within-bin variance less
            twice the within-bin covariance; 0 where every bin holds one probability only, as Murphy 1973 assumes.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier_decomposition(probabilities: Array, labels: Array, bins: int = BINS) -> BrierParts:
    """Return the parts of the Brier score over equal-width bins of each class's probabilities.

    Murphy 1973; the within-bin terms of Stephenson, Coelho & Jolliffe 2008, without which the parts of binned probabilities do not sum
    to the score. Bins as in ``ece_classwise``.

    Args:
        probabilities: ``(n, classes)`` in [0, 1], rows sum to 1.
        labels: ``(n,)``.
        bins: Number of bins.

    Raises:
        DataError: A shape is wrong, a label is out of range, or the rows are not probabilities.

    >>> parts = brier_decomposition(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    >>> parts.reliability, parts.resolution, parts.uncertainty, parts.within
    (0.5, 0.0, 0.5, 0.0)
    """
    matrix = as_probabilities(probabilities)
    targets = as_labels(labels, "labels", *matrix.shape)
    table = ClassBins(matrix.shape[1], bins)
    for rows in blocks(*matrix.shape):
        table.add(matrix[rows], targets[rows])
    return brier_parts(table, brier(matrix, targets))


def brier_parts(table: ClassBins, score: float) -> BrierParts:
    """Return the parts of a Brier score from the bins of all samples; the within-bin terms are what the other three leave of it.

    Args:
        table: Its bins of all probabilities; a threshold of it is of no account.
        score: The Brier score of the same samples.
    """
    count, n = table.counts(), table.n
    filled = count > 0
    share = np.divide(table.hits, count, out=np.zeros_like(count), where=filled)
    overall = table.hits.sum(axis=0) / n
    squares = np.divide(table.gaps**2, count, out=np.zeros_like(count), where=filled)
    reliability = float(squares.sum() / n)
    resolution = float((count * (share - overall) ** 2).sum() / n)
    uncertainty = float((overall * (1.0 - overall)).sum())
    return BrierParts(reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty))
