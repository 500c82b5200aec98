"""What each stage answers, and how far that is from the stage before and from FP32 PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipq.artifact import ModelEntry
from clipq.attribution.embed import Embeddings
from clipq.attribution.stages import Stage
from clipq.engines.base import Float32
from clipq.evaluate.answers import answer
from clipq.evaluate.metrics.arrays import Float64, Int64
from clipq.evaluate.metrics.outcomes import outcomes_from_predictions
from clipq.evaluate.metrics.paired import disagreement, flips, sample_cosines
from clipq.evaluate.statistics.bootstrap import Resampled, compare
from clipq.evaluate.statistics.classification import resample_classification

METRICS = ("acc1", "ece15")
_BLOCK = 4096  # images whose logits stand in memory at once


@dataclass(frozen=True, slots=True)
class Conditions:
    """How answers are scored.

    Attributes:
        model: Logit scale and bias.
        labels: ``(n,)``.
        resamples: Of the bootstrap.
        seed: Of the resamples.
    """

    model: ModelEntry
    labels: Int64
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What one stage answers.

    Attributes:
        stage: Which one.
        predictions: ``(n,)``.
        resampled: ``acc1`` and ``ece15`` on all images and on every resample.
    """

    stage: Stage
    predictions: Int64
    resampled: Resampled


def see(stage: Stage, embeddings: Embeddings, conditions: Conditions) -> Seen:
    """Return what a stage answers; logits stand in memory only for some thousand images at once.

    Raises:
        EngineError: An embedding has no direction.
    """
    images, classes = embeddings.image_rows(stage.image), embeddings.classes(stage.text)
    starts = range(0, len(images), _BLOCK)
    said = f"the stage {stage.key}"
    parts = [answer(images[start : start + _BLOCK], classes, conditions.model, said) for start in starts]
    predictions = np.concatenate([part.predictions for part in parts])
    confidence = np.minimum(np.concatenate([part.confidence for part in parts]), 1.0)
    outcomes = outcomes_from_predictions(conditions.labels, predictions, confidence)
    resampled = resample_classification(outcomes, resamples=conditions.resamples, seed=conditions.seed, metrics=METRICS)
    return Seen(stage, predictions, resampled)


def levels(seen: Seen) -> dict[str, Any]:
    """Return a stage's own accuracy and calibration error, each with its interval."""
    found = compare(None, seen.resampled)
    return {name: {"value": found[name].value, "ci95": list(found[name].ci95 or ())} for name in METRICS}


def difference(before: Seen, after: Seen, embeddings: Embeddings, labels: Int64) -> dict[str, Any]:
    """Return how far one stage is from another on the same images; deltas are after - before, with paired 95 % intervals."""
    images = [embeddings.image_rows(seen.stage.image) for seen in (before, after)]
    classes = [embeddings.classes(seen.stage.text) for seen in (before, after)]
    plain, centred = sample_cosines(*images)
    errors = {"image": squared_error(*images), "text": squared_error(*classes)}
    moved = compare(before.resampled, after.resampled)
    return {
        "squared_error": {**errors, "both": sum(errors.values())},
        "cosine": _spread(plain),
        "cosine_centred": _spread(centred),
        "disagreement": disagreement(before.predictions, after.predictions),
        "flips": asdict(flips(labels, before.predictions, after.predictions)),
        **{name: {"delta": moved[name].delta, "delta_ci95": list(moved[name].delta_ci95 or ())} for name in METRICS},
    }


def squared_error(before: Float32, after: Float32) -> float:
    """Return the mean squared distance of unit vectors, 2 * (1 - mean cosine), in [0, 4].

    >>> squared_error(np.array([[2.0, 0.0]]), np.array([[0.0, 3.0]]))
    2.0
    """
    first, second = _unit(before), _unit(after)
    return float(((first - second) ** 2).sum(axis=1).mean())


def shares(stages: Mapping[str, Stage], errors: Mapping[str, float]) -> dict[str, Any]:
    """Return the parts of the whole loss and what they leave.

    A part is by how much a stage raises the squared error over the stage before, negative where it cancels other errors. What follows
    one another sums to the whole; what was measured alone (weights, activations, a tower) need not, and that is the remainder.

    Args:
        stages: The stages by key, in order; the last that is a part ends the loss.
        errors: Key -> squared error from the first stage.
    """
    total = errors[[key for key, stage in stages.items() if stage.part][-1]]
    parts = {key: errors[key] - errors[stage.before] for key, stage in stages.items() if stage.part and stage.before}

    def share(value: float) -> dict[str, float | None]:
        return {"squared_error": value, "share": value / total if total > 0 else None}

    rest = total - sum(parts.values())
    return {"total": total, "parts": {key: share(value) for key, value in parts.items()}, "remainder": share(rest)}


def _unit(values: Float32) -> Float64:
    wide = values.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def _spread(cosines: Float64) -> dict[str, float]:
    return {"mean": float(cosines.mean()), "p1": float(np.percentile(cosines, 1)), "min": float(cosines.min())}
