"""One engine's answers: image embeddings and class embeddings to logits, predictions and OOD scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.evaluate.metrics import ood
from clipq.evaluate.metrics.arrays import Float64, Int64
from clipq.evaluate.metrics.probabilities import log_sigmoid
from clipq.evaluate.zeroshot import cosines, logits


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one engine says about some images with the class texts of one ID data set.

    Attributes:
        class_scores: ``(n, classes)``: their softmax over the classes is the probability of each class. The logits of a model trained
            with a softmax loss; the log-sigmoids of the logits of SigLIP, whose probabilities are thus its normalised sigmoids.
        predictions: ``(n,)`` the most probable class.
        confidence: ``(n,)`` its probability.
        ood_scores: SCORE -> ``(n,)``, higher = more OOD; which scores there are depends on the engine and the options.
    """

    class_scores: npt.NDArray[Any]
    predictions: Int64
    confidence: Float64
    ood_scores: dict[str, Float64]


def answer(image_embeddings: Float32, classes: Float32, model: ModelEntry, what: str) -> Answers:
    """Return an engine's answers.

    Args:
        image_embeddings: Raw, float32 ``(n, dim)``.
        classes: The engine's zero-shot classifier, unit vectors, float32 ``(classes, dim)``.
        model: Its logit scale and bias, and so which kind of model it is.
        what: Names the engine and data in an error.

    Raises:
        EngineError: An embedding has no direction.
    """
    cosine = cosines(image_embeddings, classes, what)
    logit = logits(cosine, model)
    sigmoid = model.logit_bias is not None
    class_scores = log_sigmoid(logit) if sigmoid else logit
    confidence_score = ood.msp(class_scores)
    scores = {
        "mcm": ood.mcm(cosine),
        "msp": ood.max_sigmoid(logit) if sigmoid else confidence_score,
        "maxlogit": ood.maxlogit(logit),
        "energy_cos": ood.energy(cosine),
        "energy_logit": ood.energy(logit),
        "entropy": ood.entropy(class_scores),
    }
    return Answers(class_scores, np.argmax(class_scores, axis=1).astype(np.int64), -confidence_score, scores)


def probability_rule(model: ModelEntry) -> str:
    """Return in words how class probabilities come from logits, for the report."""
    if model.logit_bias is None:
        return "softmax over the classes of logit_scale * cosine"
    return "sigmoid of logit_scale * cosine + logit_bias, divided by its sum over the classes"
