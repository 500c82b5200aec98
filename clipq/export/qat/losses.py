"""What a quantized tower is taught by: pairs, FP32's similarities, FP32's embeddings."""

from __future__ import annotations

import torch
from torch.nn import functional


def contrastive(student: torch.Tensor, other: torch.Tensor, groups: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the contrastive loss of pairs (InfoNCE, as CLIP's: Radford et al. 2021, arXiv 2103.00020), both directions, a scalar >= 0.

    Pairs with an equal caption are equally right answers of each other: the target of a row is uniform over its group.

    Args:
        student: Unit embeddings ``(n, d)`` of the tower that is trained.
        other: Unit embeddings ``(n, d)`` of the other tower, of the same pairs.
        groups: int64 ``(n,)``: equal where captions are.
        scale: The model's logit scale.
    """
    logits = scale * student @ other.T
    same = (groups[:, None] == groups[None]).to(logits.dtype)
    target = same / same.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def distillation(student: torch.Tensor, teacher: torch.Tensor, other: torch.Tensor, scale: float) -> torch.Tensor:
    """Return how far the student's similarities are from FP32's: mean Kullback-Leibler divergence of rows and of columns, a scalar >= 0.

    Each row of ``scale * embeddings @ other.T`` is a distribution by softmax, and each column; temperature 1 (Hinton et al. 2015, arXiv
    1503.02531).

    Args:
        student: Unit embeddings ``(n, d)`` of the tower that is trained.
        teacher: FP32's, of the same inputs.
        other: Unit embeddings ``(m, d)`` of the other tower.
        scale: The model's logit scale.
    """
    found, wanted = scale * student @ other.T, scale * teacher @ other.T
    rows = _divergence(found, wanted)
    return (rows + _divergence(found.T, wanted.T)) / 2


def _divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return functional.kl_div(found.log_softmax(dim=1), wanted.log_softmax(dim=1), reduction="batchmean", log_target=True)


def feature_error(student: torch.Tensor, teacher: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the mean squared distance of unit embeddings, as a loss of similarities: times ``scale ** 2 / (2 d)``, a scalar >= 0.

    For a small change ``e`` of an embedding the divergence of similarities is half the variance of ``scale * e @ text`` over texts, and
    the mean square of ``e @ text`` over all directions of a unit text is ``|e| ** 2 / d``. So the two losses weigh alike, whatever the
    model's scale is: one in the directions of these captions, the other in all.

    Args:
        student: Unit embeddings ``(n, d)``.
        teacher: FP32's, of the same inputs.
        scale: The model's logit scale.
    """
    return (student - teacher).square().sum(dim=1).mean() * (scale**2 / (2 * student.shape[1]))
