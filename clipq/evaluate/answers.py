"""One engine's answers: image embeddings and class embeddings to logits, predictions and OOD scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.evaluate.metrics import ood
from clipq.evaluate.metrics.arrays import Array, Float64, Int64, Lazy, Matrix, blocks
from clipq.evaluate.metrics.probabilities import log_sigmoid
from clipq.evaluate.zeroshot import cosines, logits

SCORES = ("mcm", "msp", "maxlogit", "energy_cos", "energy_logit", "entropy")
KEPT_BYTES = 1 << 28  # of class scores; larger ones are computed again for every pass, block by block


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

    class_scores: Matrix
    predictions: Int64
    confidence: Float64
    ood_scores: dict[str, Float64]


def answer(image_embeddings: Matrix, classes: Float32, model: ModelEntry, what: str, *, kept_bytes: int = KEPT_BYTES) -> Answers:
    """Return an engine's answers, from one pass over the embeddings; memory does not grow with images times classes.

    Args:
        image_embeddings: Raw, float32 ``(n, dim)``.
        classes: The engine's zero-shot classifier, unit vectors, float32 ``(classes, dim)``.
        model: Its logit scale and bias, and so which kind of model it is.
        what: Names the engine and data in an error.
        kept_bytes: Class scores that take more are not kept.

    Raises:
        EngineError: An embedding has no direction.
    """
    shape = len(image_embeddings), len(classes)
    sigmoid = model.logit_bias is not None

    def cosine_block(rows: slice) -> Float32:
        return cosines(image_embeddings[rows], classes, what, start=rows.start)

    def class_scores(cosine: Float32) -> Array:
        logit = logits(cosine, model)
        return log_sigmoid(logit) if sigmoid else logit

    size = shape[0] * shape[1] * (8 if sigmoid else 4)
    kept = np.empty(shape, np.float64 if sigmoid else np.float32) if size <= kept_bytes else None
    predictions, scores = np.empty(shape[0], np.int64), {name: np.empty(shape[0]) for name in ("confidence", *SCORES)}
    for rows in blocks(*shape):
        cosine = cosine_block(rows)
        block = class_scores(cosine)
        predictions[rows] = block.argmax(axis=1)
        for name, values in _block_scores(cosine, block, model).items():
            scores[name][rows] = values
        if kept is not None:
            kept[rows] = block
    lazy = Lazy(shape, lambda rows: class_scores(cosine_block(rows)), f"class scores of {what}")
    return Answers(lazy if kept is None else kept, predictions, scores.pop("confidence"), scores)


def _block_scores(cosine: Float32, class_scores: Array, model: ModelEntry) -> dict[str, Float64]:
    """Return the confidence and every OOD score of a block."""
    logit = logits(cosine, model)
    msp = ood.msp(class_scores)
    return {
        "confidence": -msp,
        "mcm": ood.mcm(cosine),
        "msp": msp if model.logit_bias is None else ood.max_sigmoid(logit),
        "maxlogit": ood.maxlogit(logit),
        "energy_cos": ood.energy(cosine),
        "energy_logit": ood.energy(logit),
        "entropy": ood.entropy(class_scores),
    }


def probability_rule(model: ModelEntry) -> str:
    """Return in words how class probabilities come from logits, for the report."""
    if model.logit_bias is None:
        return "softmax over the classes of logit_scale * cosine"
    return "sigmoid of logit_scale * cosine + logit_bias, divided by its sum over the classes"
