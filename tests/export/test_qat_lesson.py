"""What a tower is taught with, and the exam on the pairs that are held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clipq.export.qat.lesson import Lesson
from clipq.export.qat.losses import contrastive, distillation, feature_error
from clipq.export.qat.pairs import Pairs


def _unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def pairs() -> Pairs:
    """Six pairs, two of them held out; three classes."""
    return Pairs(
        pixels=np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1),
        tokens=np.arange(10, 16, dtype=np.int32).reshape(6, 1),
        groups=np.array([0, 1, 0, 2, 1, 2]),
        trained=4,
        candidates=np.array([[20], [21], [22]], np.int32),
        right=np.array([1, 2]),
        images=_unit(6, 0),
        texts=_unit(6, 1),
        answers=_unit(3, 2),
    )


def _lesson(pairs: Pairs, tower: Any) -> Lesson:
    return Lesson(tower, pairs, np.asarray, 5.0, torch.device("cpu"))


def test_the_exam_by_hand(pairs: Pairs) -> None:
    """FP32's own embeddings agree with FP32; those of another text agree where its nearest text is the same."""
    lesson = _lesson(pairs, "image")
    exact = lesson.judge(pairs.images[4:])
    assert (exact.agreement, exact.cosine) == (1, pytest.approx(1))
    answers = pairs.answers[[1, 0]]  # each is nearest to itself
    nearest = (pairs.images[4:] @ pairs.answers.T).argmax(axis=1)
    judged = lesson.judge(answers)
    assert judged.agreement == np.mean(nearest == np.array([1, 0]))
    assert judged.accuracy == 0.5
    assert judged.cosine == pytest.approx(float((answers * pairs.images[4:]).sum(axis=1).mean()), abs=1e-6)


def test_the_text_tower_answers_with_the_candidates(pairs: Pairs) -> None:
    """Its questions are the candidate texts, and the images are FP32's."""
    lesson = _lesson(pairs, "text")
    assert lesson.questions.tolist() == [[20], [21], [22]]
    swapped = pairs.answers[[1, 0, 2]]
    expected = (pairs.images[4:] @ swapped.T).argmax(axis=1)
    assert lesson.chosen(swapped).tolist() == expected.tolist()
    assert lesson.judge(pairs.answers).agreement == 1


def test_answers_are_unit_embeddings_of_all_questions(pairs: Pairs) -> None:
    """In order, whatever the tower's own length is."""
    lesson = _lesson(pairs, "image")
    found = lesson.answers(lambda inputs: inputs.reshape(-1, 1).float() * torch.tensor([[3.0, 4.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8]] * 2, rtol=1e-6)
    assert lesson.questions.reshape(-1).tolist() == [4, 5]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_each_loss_has_its_own_teacher(pairs: Pairs, tower: Any) -> None:
    """Captions need the other tower, similarities both, embeddings this one; rows are those of the batch."""
    rows, raw = np.array([3, 0, 2]), torch.from_numpy(3 * _unit(3, 7))
    own, other = (pairs.images, pairs.texts) if tower == "image" else (pairs.texts, pairs.images)
    student, teacher, across = torch.from_numpy(_unit(3, 7)), torch.from_numpy(own[rows]), torch.from_numpy(other[rows])
    found = _lesson(pairs, tower).losses(("contrastive", "distillation", "features", "bounds"), raw, rows)
    assert set(found) == {"contrastive", "distillation", "features"}
    torch.testing.assert_close(found["contrastive"], contrastive(student, across, torch.tensor([2, 0, 0]), 5.0))
    torch.testing.assert_close(found["distillation"], distillation(student, teacher, across, 5.0))
    torch.testing.assert_close(found["features"], feature_error(student, teacher, 5.0))
