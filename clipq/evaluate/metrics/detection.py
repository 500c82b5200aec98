"""How well an ``ood_score`` (higher = more OOD) tells in-distribution (ID) from out-of-distribution (OOD) samples.

AUPR depends on the share of OOD samples: always print n_id : n_ood beside it. The two FPR95 answer two questions: show both.
"""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.arrays import Array, Float64, as_vector


def auroc(id_scores: Array, ood_scores: Array) -> float:
    """Return the probability that an OOD sample scores higher than an ID sample, ties counting half, in [0, 1].

    Mann-Whitney with mid-ranks (Fawcett 2006); the same whichever class is called positive.

    Args:
        id_scores: ``(n_id,)`` ood_scores of ID samples.
        ood_scores: ``(n_ood,)`` ood_scores of OOD samples.

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    inside, outside = _checked(id_scores, ood_scores)
    inside = np.sort(inside)
    below = np.searchsorted(inside, outside, side="left") + np.searchsorted(inside, outside, side="right")
    return float(below.sum() / (2.0 * len(inside) * len(outside)))


def aupr_out(id_scores: Array, ood_scores: Array) -> float:
    """Return the average precision with OOD as the positive class, in [0, 1] (Hendrycks & Gimpel 2017).

    The step sum of scikit-learn's ``average_precision_score``, as in MCM's code; OpenOOD's trapezoid over the same curve is optimistic.

    >>> aupr_out(np.array([0.0, 0.5]), np.array([1.0]))
    1.0
    """
    inside, outside = _checked(id_scores, ood_scores)
    return _average_precision(outside, inside)


def aupr_in(id_scores: Array, ood_scores: Array) -> float:
    """Return the average precision with ID as the positive class, in [0, 1].

    >>> aupr_in(np.array([0.0, 1.0]), np.array([0.5]))
    0.8333333333333333
    """
    inside, outside = _checked(id_scores, ood_scores)
    return _average_precision(-inside, -outside)


def fpr95_id_pos(id_scores: Array, ood_scores: Array) -> float:
    """Return the share of OOD samples accepted where at least 95 % of ID samples are accepted, in [0, 1], lower is better.

    The convention of MCM, GL-MCM and ODIN. The threshold is ``threshold_id_pos(id_scores)``; a score equal to it is accepted. MCM's code
    takes the threshold whose share is nearest to 95 %, which may keep less; here it is the first that keeps as much.

    >>> fpr95_id_pos(np.arange(100.0), np.array([50.0, 94.0, 95.0, 200.0]))
    0.5
    """
    inside, outside = _checked(id_scores, ood_scores)
    return accepted_share(outside, threshold_id_pos(inside))


def fpr95_ood_pos(id_scores: Array, ood_scores: Array) -> float:
    """Return the share of ID samples rejected where at least 95 % of OOD samples are rejected, in [0, 1], lower is better.

    The convention of OpenOOD 1.5 and pytorch-ood. The threshold is ``threshold_ood_pos(ood_scores)``; a score equal to it is rejected.

    >>> fpr95_ood_pos(np.array([0.0, 4.0, 5.0, 50.0]), np.arange(100.0))
    0.5
    """
    inside, outside = _checked(id_scores, ood_scores)
    return float(np.mean(inside >= threshold_ood_pos(outside)))


def threshold_id_pos(id_scores: Array) -> float:
    """Return the lowest score at or below which at least 95 % of ID samples lie: the first threshold with TPR >= 0.95.

    >>> threshold_id_pos(np.arange(100.0))
    94.0
    """
    scores = as_vector(id_scores, "ID scores")
    rank = count_95(len(scores)) - 1
    return float(np.partition(scores, rank)[rank])


def threshold_ood_pos(ood_scores: Array) -> float:
    """Return the highest score at or above which at least 95 % of OOD samples lie.

    >>> threshold_ood_pos(np.arange(100.0))
    5.0
    """
    return -threshold_id_pos(-as_vector(ood_scores, "OOD scores"))


def accepted_share(scores: Array, threshold: float) -> float:
    """Return the share of ood_scores at or below a threshold.

    The transfer FPR is ``accepted_share(engine_ood_scores, threshold_id_pos(baseline_id_scores))``: the threshold tuned on FP32, the scores
    of the engine that ships. With the engine's ID scores it is the TPR that is left of the 95 %.

    >>> accepted_share(np.array([1.0, 2.0, 3.0]), 2.0)
    0.6666666666666666
    """
    return float(np.mean(as_vector(scores, "scores") <= threshold))


def count_95(n: int) -> int:
    """Return the smallest whole number that is at least 95 % of ``n``, free of rounding.

    >>> [count_95(n) for n in (1, 20, 21, 100)]
    [1, 19, 20, 95]
    """
    return -(-19 * n // 20)


def _checked(id_scores: Array, ood_scores: Array) -> tuple[Float64, Float64]:
    return as_vector(id_scores, "ID scores"), as_vector(ood_scores, "OOD scores")


def _average_precision(positive: Float64, negative: Float64) -> float:
    """Return the mean over positives of the precision among all scores at least as high as theirs."""
    own = len(positive) - np.searchsorted(np.sort(positive), positive, side="left")
    other = len(negative) - np.searchsorted(np.sort(negative), positive, side="left")
    return float(np.mean(own / (own + other)))
