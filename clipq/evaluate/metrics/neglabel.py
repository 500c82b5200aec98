"""NegLabel (Jiang et al. 2024, arXiv 2403.20078): an image is out of distribution where words far from all classes draw it away from them.

Definitions, and the defaults here, are those of the paper's code (XueJiang16/NegLabel: ``clip_ood.py``, ``multi_modal.py``,
``custom_config/clip.py``). It multiplies cosines by 100 and divides by ``t = 1``: a temperature of 0.01 on cosines, whatever the logit
scale of the model is. With one group it forgets the softmax; here one group is the plain formula. It shuffles by torch, here numpy does.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from clipq.errors import DataError
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, as_matrix, blocks

TEMPERATURE = 0.01
GROUPS = 100
QUANTILE = 0.95


def neglabel(
    id_cosines: Array, negative_cosines: Array, *, temperature: float = TEMPERATURE, groups: int = GROUPS, seed: int = 0
) -> Float64:
    """Return minus the share of the softmax that the ID classes get beside negative words, an ``ood_score`` in [-1, 0].

    The negatives are shuffled and cut into groups of equal size, what remains at the end being dropped first; each group gives
    ``sum over classes of softmax over [classes, group]``, and the score is minus the mean over the groups.

    Args:
        id_cosines: Cosines of images with classes, ``(n, classes)``.
        negative_cosines: Cosines of the same images with negative words, ``(n, words)``.
        temperature: tau, applied to cosines.
        groups: How many groups.
        seed: Of the shuffle; only the number of words matters beside it, so that all engines have the same groups.

    Raises:
        DataError: The matrices differ in rows or are not finite, there are fewer words than groups, or the temperature is not above 0.

    >>> neglabel(np.array([[0.03, 0.03]]), np.array([[0.03, 0.03]]), groups=1).round(6).tolist()
    [-0.5]
    """
    inside, negative = as_matrix(id_cosines, "ID cosines"), as_matrix(negative_cosines, "cosines with negative words")
    if len(inside) != len(negative):
        raise DataError("cosines with classes and with negative words differ in number", found=f"{len(inside)} and {len(negative)} images")
    if not temperature > 0:
        raise DataError("the temperature of NegLabel is wrong", found=temperature, expected="above 0")
    table = _groups(negative.shape[1], groups, seed)
    shares = [_mean_share(inside[rows], negative[rows], table, temperature) for rows in blocks(*negative.shape)]
    return -np.concatenate(shares)


def choose_negatives(candidates: Array, classes: Array, number: int, *, quantile: float = QUANTILE) -> Int64:
    """Return which candidate words are farthest from all classes, the farthest first: NegMining, ``(number,)`` indices.

    A word is as near as the quantile of its cosines with the classes: not the maximum, which one noisy class would decide.

    Args:
        candidates: Text embeddings of the words, unit vectors ``(words, dim)``.
        classes: Text embeddings of the classes, unit vectors ``(classes, dim)``.
        number: How many words to take; the code takes 15 % of the nouns and 15 % of the adjectives, each apart.
        quantile: Which quantile, in [0, 1], linear between cosines.

    Raises:
        DataError: There are not as many candidates, or the quantile leaves [0, 1].

    >>> choose_negatives(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), np.array([[1.0, 0.0]]), 2).tolist()
    [2, 1]
    """
    words, texts = as_matrix(candidates, "embeddings of words"), as_matrix(classes, "embeddings of classes")
    if not 1 <= number <= len(words):
        raise DataError("negative words cannot be chosen", found=f"{number} of {len(words)}", expected=f"1 to {len(words)}")
    if not 0 <= quantile <= 1:
        raise DataError("the quantile of NegMining is wrong", found=quantile, expected="a number in [0, 1]")
    near = [np.quantile((words[rows] @ texts.T).astype(np.float64), quantile, axis=1) for rows in blocks(len(words), len(texts))]
    return np.argsort(np.concatenate(near), kind="stable")[:number]


def _groups(words: int, groups: int, seed: int) -> Int64:
    """Return which words each group has, ``(groups, words of a group)``."""
    if not 1 <= groups <= words:
        raise DataError("negative words cannot be grouped", found=f"{words} words in {groups} groups", expected="a word or more per group")
    each = words // groups
    return np.random.default_rng(seed).permutation(each * groups).reshape(groups, each)


def _mean_share(inside: Array, negative: Array, table: Int64, temperature: float) -> Float64:
    """Return the mean over groups of the classes' share, of ``log sum exp`` as differences, so that no exponential overflows."""
    own = _logsumexp(inside.astype(np.float64) / temperature)
    of_groups = _logsumexp(negative.astype(np.float64)[:, table] / temperature)
    return np.asarray(expit(own[:, None] - of_groups).mean(axis=1))


def _logsumexp(values: Float64) -> Float64:
    top = values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(axis=-1)))
