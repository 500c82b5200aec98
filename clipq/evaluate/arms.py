"""The arm of an engine: its embeddings with a logit scale of their own, fitted on a labelled set that nothing is judged on.

Only the scale moves, the backbone stays as it is: what remains of a loss in calibration is then not one of scale. Every engine has an
arm, the baseline too, so that the arms can be compared with each other: what quantization adds once both are tuned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clipq.artifact import Bundle, ModelEntry
from clipq.errors import DataError, UsageError
from clipq.evaluate.answers import answer
from clipq.evaluate.datasets import EvalSet, load_sets
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.metrics.temperature import fit_temperature, has_minimum

ARM = "+scale"


def arm_of(engine_id: str) -> str:
    """Return the id of an engine's arm in a report.

    >>> arm_of("ort-int8-static")
    'ort-int8-static+scale'
    """
    return f"{engine_id}{ARM}"


def require_softmax(model: ModelEntry) -> None:
    """Refuse a sigmoid model: its scale and bias belong together, and one without the other is no calibration.

    Raises:
        UsageError: The model has a logit bias.
    """
    if model.logit_bias is not None:
        raise UsageError(
            "--tune-scale fits the scale of a softmax, and this model has a sigmoid with a bias",
            found=model.id,
            expected="a model without a logit bias",
            fix="Leave it out; the report's fitted temperature says how far the scale is off.",
        )


def load_tuning_set(bundle: Bundle, data_id: str, judged: Iterable[EvalSet], *, limit: int | None, seed: int) -> dict[str, EvalSet]:
    """Return the labelled set that scales are fitted on, by its canonical id.

    Args:
        bundle: Whose calibration images may not be in it.
        data_id: Which set.
        judged: The data sets of the evaluation, none of whose images may be in it.
        limit: At most this many images.
        seed: Of their choice.

    Raises:
        UsageError: The id is unknown.
        DataError: It shares images, by content, with the evaluation or the calibration, or lacks labels.
    """
    found, _ = load_sets(bundle, [data_id], [], limit=limit, seed=seed)
    (tuning,) = found.values()
    for images in judged:
        if shared := set(tuning.index.sha256) & set(images.index.sha256):
            raise DataError(
                f"{len(shared)} of {len(tuning.index)} images of {tuning.index.data_id} are in {images.index.data_id} too",
                expected="a set for --tune-scale that nothing is judged on",
                fix="Name another split.",
            )
    return found


def fit_scales(embedded: Embedded, model: ModelEntry) -> dict[str, float]:
    """Return engine id -> the logit scale with the lowest NLL on the only data set, with that engine's embeddings and class texts.

    Args:
        embedded: Embeddings of the tuning set.
        model: The scale of the checkpoint, from which the search starts.

    Raises:
        DataError: No scale is the best: every image is right, so sharper is always better, or the answers say nothing.
    """
    (data,) = embedded.inside
    labels = embedded.inside[data].index.labels[embedded.readable[data]]
    scales = {}
    for engine_id in embedded.engine_ids:
        what = f"{engine_id} on {data}"
        answers = answer(embedded.image_rows(engine_id, data), embedded.classes(engine_id, data), model, what)
        temperature = fit_temperature(answers.class_scores, labels)
        if not has_minimum(temperature):
            raise DataError(
                f"no logit scale is the best for {what}",
                found=f"a temperature of {temperature:.3g}, the end of the range",
                expected="a labelled set on which the engine is mostly right, but not always",
                fix="Name another set with --tune-scale.",
            )
        scales[engine_id] = model.logit_scale / temperature
    return scales


def describe_arms(engines: Mapping[str, Mapping[str, Any]], scales: Mapping[str, float], tuning: Embedded) -> dict[str, Any]:
    """Return the entries of ``report["engines"]`` of the arms: the engine's own, with its scale and what that was fitted on.

    What ran is the engine's and not told again.
    """
    ((data, images),) = tuning.inside.items()
    tuned_on = {"data": data, "sha256": images.index.digest, "n": int(tuning.readable[data].sum())}
    made = {}
    for engine_id, scale in scales.items():
        entry = {key: value for key, value in engines[engine_id].items() if key != "layers"}
        made[arm_of(engine_id)] = {**entry, "arm_of": engine_id, "logit_scale": scale, "tuned_on": tuned_on}
    return made
