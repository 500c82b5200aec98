"""What is kept of each measured graph: a few numbers per test image, in a file named by everything that decides them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.errors import DataError
from clipq.evaluate.answers import answer
from clipq.evaluate.metrics.arrays import Array, Float64, Int64
from clipq.evaluate.metrics.paired import sample_cosines
from clipq.files import atomic_path, sha256_json

OOD_SCORE = "mcm"


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What one graph answers on the test images.

    Attributes:
        predictions: ``(n,)`` the most probable class.
        confidence: ``(n,)`` its probability.
        cosines: ``(n,)`` cosine of each embedding with FP32's, FP32's mean embedding taken from both.
        id_scores: ``(n,)`` MCM scores, higher = more OOD.
        ood_scores: ``(n_ood,)`` the same of the OOD images; empty without any.
    """

    predictions: Int64
    confidence: Float64
    cosines: Float64
    id_scores: Float64
    ood_scores: Float64


def answered(embeddings: Float32, fp32: Float32, tested: int, classes: Float32, model: ModelEntry) -> Answered:
    """Return what a graph answers.

    Args:
        embeddings: Raw, float32 ``(n + n_ood, dim)``, test images first.
        fp32: FP32's of the same images.
        tested: n.
        classes: The zero-shot classifier, unit vectors, float32 ``(classes, dim)``.
        model: Logit scale and bias.

    Raises:
        EngineError: An embedding has no direction.
    """
    inside = answer(embeddings[:tested], classes, model, "the test images")
    foreign = embeddings[tested:]
    outside = answer(foreign, classes, model, "the OOD images").ood_scores[OOD_SCORE] if len(foreign) else np.empty(0)
    _, centred = sample_cosines(fp32[:tested], embeddings[:tested])
    return Answered(inside.predictions, np.minimum(inside.confidence, 1.0), centred, inside.ood_scores[OOD_SCORE], outside)


class Cells:
    """Finished results by the hash of their facts; each file is whole or absent, so a run after ``kill -9`` finds what was done.

    Args:
        folder: Where they lie.
        shared: Facts that all of them have in common.
    """

    def __init__(self, folder: Path, shared: Mapping[str, Any]) -> None:
        self.folder = folder
        self._shared = dict(shared)

    def path(self, kind: str, facts: Mapping[str, Any], suffix: str) -> Path:
        """Return the file for some facts."""
        return self.folder / f"{kind}-{sha256_json({**self._shared, **facts})[:32]}{suffix}"

    def array(self, kind: str, facts: Mapping[str, Any], compute: Callable[[], Array]) -> Array:
        """Return an array that is computed once; large ones are read from disk where they are used."""
        path = self.path(kind, facts, ".npy")
        if not path.exists():
            with atomic_path(path) as part, part.open("wb") as stream:
                np.save(stream, compute(), allow_pickle=False)
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def has(self, facts: Mapping[str, Any]) -> bool:
        """Tell whether a cell is finished."""
        return self.path("cell", facts, ".npz").exists()

    def write(self, facts: Mapping[str, Any], found: Answered) -> None:
        """Keep a finished cell."""
        with atomic_path(self.path("cell", facts, ".npz")) as part, part.open("wb") as stream:
            np.savez(stream, **asdict(found))

    def read(self, facts: Mapping[str, Any]) -> Answered:
        """Return a finished cell.

        Raises:
            DataError: The file is damaged.
        """
        path = self.path("cell", facts, ".npz")
        try:
            with np.load(path, allow_pickle=False) as stored:
                return Answered(**{name: stored[name] for name in stored.files})
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged", found=error, fix="Delete this file and run again.") from error
