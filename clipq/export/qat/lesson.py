"""What one tower is taught with: its inputs on the device that trains, and FP32's embeddings of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from clipq.engines.base import Tower
from clipq.export.qat.losses import contrastive, distillation, feature_error
from clipq.export.qat.pairs import Pairs
from clipq.export.qat.plan import Loss

_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """How near a trained tower is to FP32 on pairs that it was not trained on.

    Attributes:
        agreement: Share of held-out images whose nearest text is the one that FP32 names.
        cosine: Mean cosine of its embeddings and FP32's: of the held-out images, or of the candidate texts.
        accuracy: Share of held-out images whose nearest text is their class; None where they have none.
    """

    agreement: float
    cosine: float
    accuracy: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Everything that training one tower reads.

    Attributes:
        tower: The tower.
        pairs: The pairs.
        prepare: Stored inputs to what the tower reads.
        scale: The model's logit scale.
        device: Where it is trained.
    """

    tower: Tower
    pairs: Pairs
    prepare: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
    scale: float
    device: torch.device

    @property
    def stored(self) -> npt.NDArray[Any]:
        """Pixels or tokens of all pairs."""
        return self.pairs.pixels if self.tower == "image" else self.pairs.tokens

    @property
    def questions(self) -> npt.NDArray[Any]:
        """The inputs of the exam: held-out images, or the texts that they are held against."""
        return self.pairs.pixels[self.pairs.trained :] if self.tower == "image" else self.pairs.candidates

    def inputs(self, stored: npt.NDArray[Any]) -> Tensor:
        """Return stored inputs as the tower reads them."""
        return torch.from_numpy(np.ascontiguousarray(self.prepare(stored))).to(self.device)

    def losses(self, names: tuple[Loss, ...], embedding: Tensor, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Return each loss of a batch.

        Args:
            names: Which.
            embedding: The tower's raw embeddings of these rows.
            rows: The rows.
        """
        student = functional.normalize(embedding, dim=1)
        teacher, other = (self._rows(values, rows) for values in self._embeddings())
        makers: dict[str, Callable[[], Tensor]] = {
            "contrastive": lambda: contrastive(student, other, self._rows(self.pairs.groups, rows), self.scale),
            "distillation": lambda: distillation(student, teacher, other, self.scale),
            "features": lambda: feature_error(student, teacher, self.scale),
        }
        return {name: makers[name]() for name in names if name in makers}

    def answers(self, embed: Callable[[Tensor], Tensor]) -> npt.NDArray[np.float32]:
        """Return a tower's unit embeddings of the questions."""
        with torch.no_grad():
            found = [
                functional.normalize(embed(self.inputs(self.questions[start : start + _BATCH])), dim=1).cpu().numpy()
                for start in range(0, len(self.questions), _BATCH)
            ]
        return np.concatenate(found)

    def judge(self, answers: npt.NDArray[np.float32]) -> Exam:
        """Return how near the unit embeddings of the questions are to FP32's."""
        right = self.pairs.right
        chosen, wanted = self.chosen(answers), self.chosen(self.reference())
        return Exam(
            agreement=float((chosen == wanted).mean()),
            cosine=float((answers * self.reference()).sum(axis=1).mean()),
            accuracy=None if right is None else float((chosen == right).mean()),
        )

    def reference(self) -> npt.NDArray[np.float32]:
        """Return FP32's unit embeddings of the questions."""
        return self.pairs.images[self.pairs.trained :] if self.tower == "image" else self.pairs.answers

    def chosen(self, answers: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return which candidate text is nearest to each held-out image, the other tower being FP32."""
        images, texts = (answers, self.pairs.answers) if self.tower == "image" else (self.pairs.images[self.pairs.trained :], answers)
        nearest: npt.NDArray[np.int64] = (images @ texts.T).argmax(axis=1)
        return nearest

    def _embeddings(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return FP32's embeddings of this tower and of the other."""
        return (self.pairs.images, self.pairs.texts) if self.tower == "image" else (self.pairs.texts, self.pairs.images)

    def _rows(self, values: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values[rows]).to(self.device)
