"""The losses of training against slow loops and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from clipq.export.qat.losses import contrastive, distillation, feature_error


def _unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 5, generator=generator), dim=1)


def _log_softmax(row: np.ndarray) -> np.ndarray:
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def _slow_contrastive(logits: np.ndarray, groups: list[int]) -> float:
    total = 0.0
    for row, group in enumerate(groups):
        right = [column for column, other in enumerate(groups) if other == group]
        total -= sum(_log_softmax(logits[row])[column] for column in right) / len(right)
    return total / len(groups)


def test_contrastive_against_a_loop() -> None:
    """Rows and columns, equal captions equally right."""
    student, other, groups = _unit(6, 0), _unit(6, 1), [0, 1, 0, 2, 1, 3]
    logits = 10 * student.double().numpy() @ other.double().numpy().T
    expected = (_slow_contrastive(logits, groups) + _slow_contrastive(logits.T, groups)) / 2
    assert float(contrastive(student, other, torch.tensor(groups), 10.0)) == pytest.approx(expected, rel=1e-5)


def test_contrastive_by_hand() -> None:
    """Two pairs, each other's opposites at scale s: -log(1 / (1 + exp(-2 s)))."""
    unit = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(contrastive(unit, unit, torch.tensor([0, 1]), 1.5)) == pytest.approx(math.log(1 + math.exp(-3)))
    assert float(contrastive(unit, unit, torch.tensor([0, 0]), 1.5)) == pytest.approx(math.log(1 + math.exp(-3)) + 1.5)


def test_distillation_against_a_loop() -> None:
    """Kullback-Leibler divergences of rows and of columns, averaged, over two numbers of rows."""
    student, teacher, other = _unit(6, 0), _unit(6, 1), _unit(4, 2)
    found, wanted = (8 * one.double().numpy() @ other.double().numpy().T for one in (student, teacher))

    def divergence(found: np.ndarray, wanted: np.ndarray) -> float:
        rows = [(np.exp(_log_softmax(w)) * (_log_softmax(w) - _log_softmax(f))).sum() for f, w in zip(found, wanted, strict=True)]
        return float(np.mean(rows))

    expected = (divergence(found, wanted) + divergence(found.T, wanted.T)) / 2
    assert float(distillation(student, teacher, other, 8.0)) == pytest.approx(expected, rel=1e-4)


def test_a_student_that_is_the_teacher_loses_nothing() -> None:
    """Both losses of FP32 are 0 there and positive elsewhere, with a zero gradient."""
    teacher, other = _unit(6, 1), _unit(6, 2)
    student = teacher.clone().requires_grad_()
    loss = distillation(student, teacher, other, 8.0) + feature_error(student, teacher, 8.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5
    assert float(distillation(_unit(6, 0), teacher, other, 8.0)) > 0.01


def test_the_feature_error_is_that_of_similarities() -> None:
    """For small changes it is half the mean square of scale * e @ text over many random unit texts, as its docstring says."""
    teacher = _unit(200, 0)
    student = functional.normalize(teacher + 0.01 * _unit(200, 1), dim=1)
    texts = _unit(4000, 2)
    moved = (10 * (student - teacher) @ texts.T).square().mean() / 2
    assert float(feature_error(student, teacher, 10.0)) == pytest.approx(float(moved), rel=0.05)
    by_hand = feature_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3.0)
    assert float(by_hand) == pytest.approx(2 * 9 / 4)
