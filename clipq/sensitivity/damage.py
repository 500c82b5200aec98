"""How much worse quantized towers answer than FP32 ones: every metric of ``--max-drop`` as a worsening, with its interval.

A worsening is positive where the quantized towers are worse, whichever way the metric itself points:

* ``cosine``, ``cosine_centred``: 1 - mean cosine of the embeddings with FP32's, plain and without FP32's mean embedding; of
  calibration images or prompts, the worse tower counts.
* ``disagreement``: share of calibration images whose predicted class differs from FP32's.
* ``flips``: share that changed between right and wrong (``evaluate.metrics.paired`` tells the two apart).
* ``acc1``: FP32 - quantized. ``ece15``: quantized - FP32.
* ``fpr95``: quantized - FP32 of ``fpr95_id_pos`` of the MCM score: OOD images accepted where 95 % of calibration images are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32, Tower
from clipq.evaluate.answers import answer
from clipq.evaluate.metrics import calibration, detection
from clipq.evaluate.metrics.arrays import Float64, Int64
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_predictions
from clipq.evaluate.metrics.paired import sample_cosines
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Resampled, percentile_interval, resample_counts
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.statistics.ood import resample_ood
from clipq.evaluate.statistics.small_samples import no_narrower
from clipq.evaluate.zeroshot import classifier
from clipq.sensitivity.data import SearchData

OOD_SCORE, OOD_METRIC = "mcm", "fpr95_id_pos"
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one choice of graphs says of the search's data; what the data does not allow is None.

    Attributes:
        embeddings: Tower to raw embeddings, of the calibration images and of the prompts.
        predictions: ``(n,)`` most probable class of each calibration image.
        outcomes: The same with labels and confidences.
        ood_scores: MCM scores of calibration images and of OOD images, higher = more OOD.
    """

    embeddings: Mapping[Tower, Float32]
    predictions: Int64 | None = None
    outcomes: Outcomes | None = None
    ood_scores: tuple[Float64, Float64] | None = None


def read(embeddings: Mapping[Tower, Float32], data: SearchData, model: ModelEntry) -> Reading:
    """Return what the embeddings of all inputs of both towers say.

    Raises:
        EngineError: An embedding has no direction.
    """
    images, foreign = embeddings["image"][: data.images], embeddings["image"][data.images :]
    own = {**embeddings, "image": images}
    if "text" not in embeddings:
        return Reading(own)
    classes = classifier(embeddings["text"], data.templates, "the prompts of the calibration data")
    inside = answer(images, classes, model, "the calibration images")
    confidence = np.minimum(inside.confidence, 1.0)
    outcomes = None if data.labels is None else outcomes_from_predictions(data.labels, inside.predictions, confidence)
    if not len(foreign):
        return Reading(own, inside.predictions, outcomes)
    outside = answer(foreign, classes, model, "the OOD images")
    return Reading(own, inside.predictions, outcomes, (inside.ood_scores[OOD_SCORE], outside.ood_scores[OOD_SCORE]))


def levels(reading: Reading) -> dict[str, float]:
    """Return acc1, ece15 and fpr95 themselves, as far as the data allows."""
    values: dict[str, float] = {}
    if reading.outcomes is not None:
        correct = reading.outcomes.correct
        values = {"acc1": float(correct.mean()), "ece15": calibration.ece(reading.outcomes.confidence, correct)}
    if reading.ood_scores is not None:
        values["fpr95"] = detection.fpr95_id_pos(*reading.ood_scores)
    return values


def worsening(before: Reading, after: Reading) -> dict[str, float]:
    """Return METRIC -> worsening from the FP32 graphs' reading to another, for every metric that the data allows."""
    values = {name: float(column.mean()) for name, column in _columns(before, after).items()}
    first, second = levels(before), levels(after)
    return {**values, **{name: second[name] - first[name] for name in ("ece15", "fpr95") if name in first}}


def interval(metric: str, before: Reading, after: Reading, seed: int) -> tuple[Interval, int]:
    """Return the 95 % interval of a worsening by the paired bootstrap, and the number of samples behind it.

    Not narrower than the rule of three allows (3 / n), except for cosines.
    """
    columns = _columns(before, after)
    if metric in columns:
        column = columns[metric]
        draws = np.array([np.einsum("j,j->", column, counts) / len(column) for counts in resample_counts(len(column), RESAMPLES, seed)])
        value, n = float(column.mean()), len(column)
    else:
        first, second = (_resampled(metric, reading, seed) for reading in (before, after))
        name = "ece15" if metric == "ece15" else OOD_METRIC
        draws, value, n = second.draws[name] - first.draws[name], second.values[name] - first.values[name], second.n
    ends = percentile_interval(draws)
    return (ends if metric.startswith("cosine") else no_narrower(value, ends, n)), n


def _resampled(metric: str, reading: Reading, seed: int) -> Resampled:
    if metric == "ece15" and reading.outcomes is not None:
        return resample_classification(reading.outcomes, seed=seed, metrics=["ece15"])
    if metric == "fpr95" and reading.ood_scores is not None:
        return resample_ood(*reading.ood_scores, seed=seed, metrics=[OOD_METRIC])
    raise KeyError(metric)


def _columns(before: Reading, after: Reading) -> dict[str, Float64]:
    """Return METRIC -> what each sample adds to it, for the metrics that are plain means."""
    pairs = [sample_cosines(before.embeddings[tower], after.embeddings[tower]) for tower in before.embeddings]
    plain, centred = ([1.0 - pair[index] for pair in pairs] for index in (0, 1))
    columns = {"cosine": max(plain, key=np.mean), "cosine_centred": max(centred, key=np.mean)}
    if before.predictions is not None and after.predictions is not None:
        columns["disagreement"] = (before.predictions != after.predictions).astype(np.float64)
    if before.outcomes is not None and after.outcomes is not None:
        was, now = before.outcomes.correct, after.outcomes.correct
        columns["flips"] = (was != now).astype(np.float64)
        columns["acc1"] = was.astype(np.float64) - now
    return columns
