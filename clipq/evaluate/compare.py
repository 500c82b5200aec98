"""Paired differences: how far an engine's answers and embeddings are from the baseline's on the same images."""

from __future__ import annotations

from clipq.evaluate.answers import Answers
from clipq.evaluate.metrics.arrays import Int64, Matrix
from clipq.evaluate.metrics.calibration_shift import calibration_shift
from clipq.evaluate.metrics.paired import cosine_drift, disagreement, divergence_of_logits, flips


def compare(labels: Int64, baseline: Answers, engine: Answers, baseline_embeddings: Matrix, embeddings: Matrix) -> dict[str, float]:
    """Return the entry of ``report["paired"]`` for one engine and one ID data set.

    Args:
        labels: ``(n,)``.
        baseline: Answers of the baseline.
        engine: Answers of the engine on the same images.
        baseline_embeddings: Raw image embeddings ``(n, dim)`` of the baseline.
        embeddings: Those of the engine.

    Returns:
        Shares in [0, 1], divergences in nats, cosines in [-1, 1], and the calibration shift, 0 or more.
    """
    before, after = ((side.confidence, side.predictions == labels) for side in (baseline, engine))
    changed = flips(labels, baseline.predictions, engine.predictions)
    apart = divergence_of_logits(baseline.class_scores, engine.class_scores)
    drift = cosine_drift(baseline_embeddings, embeddings)
    return {
        "disagreement": disagreement(baseline.predictions, engine.predictions),
        "flips": changed.flips,
        "flips_pos_to_neg": changed.correct_to_wrong,
        "flips_neg_to_pos": changed.wrong_to_correct,
        "flips_neg_to_other_neg": changed.wrong_to_other_wrong,
        "js_divergence": apart.js,
        "kl_divergence": apart.kl,
        "calibration_shift": calibration_shift(before, after),
        "cosine_mean": drift.mean,
        "cosine_p1": drift.p1,
        "cosine_min": drift.min,
        "cosine_centred_mean": drift.centred_mean,
    }
