"""From stored embeddings to every figure of the report: metrics, OOD detection, paired deltas, and the rows they come from."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import ModelEntry
from clipq.engines.base import Float32
from clipq.evaluate.answers import KEPT_BYTES, Answers, answer
from clipq.evaluate.arms import arm_of
from clipq.evaluate.compare import compare as compare_paired
from clipq.evaluate.correction import add_holm
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.entries import measurements
from clipq.evaluate.mending import temperature_ratio
from clipq.evaluate.metrics.arrays import Bool, Float64, Int64
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits
from clipq.evaluate.ood_means import mean_estimates, sets_to_average
from clipq.evaluate.report.samples import stacked
from clipq.evaluate.robustness.noise import CELL_METRICS
from clipq.evaluate.statistics.bootstrap import Resampled, compare
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.statistics.ood import resample_ood
from clipq.evaluate.statistics.quantile import thresholds_of
from clipq.machine import usable_cores
from clipq.progress import bar

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Scores:
    """The computed parts of a report.

    Attributes:
        results: ENGINE -> DATA -> METRIC -> measurement.
        ood: ENGINE -> ``ID|OOD`` -> SCORE -> METRIC -> measurement.
        paired: ENGINE -> DATA -> differences from the baseline; the baseline has no entry.
        samples: Columns of ``samples.parquet``.
        resampled: ENGINE -> DATA -> the metrics of ``CELL_METRICS`` with their resamples, for what is computed from several data sets;
            those with equally many images meet the same resamples.
        thresholds: ENGINE -> DATA -> SCORE -> threshold that keeps 95 % of the ID images.
        ood_means: ENGINE -> DATA -> ``near``, ``far`` or ``all`` -> SCORE -> METRIC -> mean over those OOD sets; may be empty.
    """

    results: dict[str, dict[str, Any]]
    ood: dict[str, dict[str, Any]]
    paired: dict[str, dict[str, Any]]
    samples: Columns
    resampled: dict[str, dict[str, Resampled]]
    thresholds: dict[str, dict[str, Any]]
    ood_means: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Engine:
    """One engine on one ID data set and its OOD pairs; the first one is what the others are compared with."""

    answers: Answers
    classification: Resampled
    ood: dict[tuple[str, str], Resampled]  # (OOD data, score)


def score(embedded: Embedded, model: ModelEntry, *, resamples: int, seed: int, scales: Mapping[str, float] | None = None) -> Scores:
    """Compute every figure; the first engine is the baseline.

    Args:
        embedded: The embeddings.
        model: Logit scale and bias.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
        scales: Engine id -> logit scale of its arm, which stands beside it as one more engine.
    """
    return _Scoring(embedded, model, scales or {}, resamples, seed).run()


class _Scoring:
    """One pass over ID data sets and engines; only one engine's answers stand beside the baseline's in memory, logits in blocks."""

    def __init__(self, embedded: Embedded, model: ModelEntry, scales: Mapping[str, float], resamples: int, seed: int) -> None:
        self._embedded = embedded
        arms = {arm_of(engine_id): (engine_id, replace(model, logit_scale=scale)) for engine_id, scale in scales.items()}
        self._engines = {name: (name, model) for name in embedded.engine_ids} | arms  # name in the report -> (engine, scale and bias)
        self._resampling: dict[str, Any] = {"resamples": resamples, "seed": seed}
        self._rows: list[Columns] = []
        self._results: dict[str, dict[str, Any]] = {name: {} for name in self._engines}
        self._ood: dict[str, dict[str, Any]] = {name: {} for name in self._engines}
        self._resampled: dict[str, dict[str, Resampled]] = {name: {} for name in self._engines}
        self._thresholds: dict[str, dict[str, Any]] = {name: {} for name in self._engines}
        self._groups = sets_to_average({data: images.distance for data, images in embedded.outside.items()})
        self._ood_means: dict[str, dict[str, Any]] = {name: {} for name in self._engines if self._groups}
        self._paired: dict[str, dict[str, Any]] = {name: {} for name in self._engines if name != embedded.engine_ids[0]}

    def run(self) -> Scores:
        embedded = self._embedded
        with bar("Scoring", len(embedded.inside) * len(self._engines)) as advance:
            for data in embedded.inside:
                baseline = None
                for engine_id in self._engines:
                    made = self._score_engine(engine_id, data, baseline)
                    baseline = baseline or made
                    advance(1)
        add_holm(self._results)
        add_holm(self._ood)
        add_holm(self._ood_means)
        return Scores(self._results, self._ood, self._paired, stacked(self._rows), self._resampled, self._thresholds, self._ood_means)

    def _score_engine(self, engine_id: str, data: str, baseline: _Engine | None) -> _Engine:
        embedded, labels = self._embedded, self._labels(data)
        runs, _ = self._engines[engine_id]
        classes = embedded.classes(runs, data)
        answers = self._answer(engine_id, data, data, classes)
        foreign = {other: self._answer(engine_id, other, data, classes, kept_bytes=0) for other in embedded.outside}
        outcomes = outcomes_from_logits(answers.class_scores, labels)
        self._rows.append(self._samples(engine_id, data, data, answers, outcomes))
        self._rows += [self._samples(engine_id, other, data, theirs, None) for other, theirs in foreign.items()]
        own = self._resample(answers, outcomes, foreign, (baseline.answers if baseline else answers).ood_scores)
        self._thresholds[engine_id][data] = thresholds_of(answers.ood_scores)
        self._resampled[engine_id][data] = own.classification.only(CELL_METRICS)
        self._results[engine_id][data] = measurements(compare(baseline.classification if baseline else None, own.classification))
        for other in foreign:
            self._ood[engine_id][f"{data}|{other}"] = {
                name: measurements(compare(baseline.ood.get((other, name)) if baseline else None, resampled))
                for (scored, name), resampled in own.ood.items()
                if scored == other
            }
        if self._groups:
            means = mean_estimates(baseline.ood if baseline else None, own.ood, self._groups)
            self._ood_means[engine_id][data] = {
                group: {name: measurements(estimates) for name, estimates in scored.items()} for group, scored in means.items()
            }
        if baseline is not None:
            before, embeddings = embedded.image_rows(embedded.engine_ids[0], data), embedded.image_rows(runs, data)
            ratio = temperature_ratio(*(side.classification.values.get("temperature") for side in (baseline, own)))
            self._paired[engine_id][data] = compare_paired(labels, baseline.answers, answers, before, embeddings) | ratio
        return own

    def _answer(self, engine_id: str, data: str, classifier: str, classes: Float32, *, kept_bytes: int = KEPT_BYTES) -> Answers:
        """Return an engine's answers for some images, with every OOD score there is."""
        runs, model = self._engines[engine_id]
        answers = answer(self._embedded.image_rows(runs, data), classes, model, f"{runs} on {data}", kept_bytes=kept_bytes)
        return replace(answers, ood_scores=answers.ood_scores | self._embedded.extra_scores(runs, data, classifier))

    def _resample(self, answers: Answers, outcomes: Outcomes, foreign: Mapping[str, Answers], tuned_on: Mapping[str, Float64]) -> _Engine:
        """Return every resampled metric, several computed at once: numpy leaves the cores free to other threads."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            classification = pool.submit(resample_classification, outcomes, **self._resampling)
            detection = {
                (other, name): pool.submit(
                    resample_ood,
                    answers.ood_scores[name],
                    theirs.ood_scores[name],
                    tuned_on=tuned_on.get(name),
                    stream=stream,
                    **self._resampling,
                )
                for stream, (other, theirs) in enumerate(foreign.items(), start=1)
                for name in answers.ood_scores
                if name in theirs.ood_scores
            }
            return _Engine(answers, classification.result(), {key: future.result() for key, future in detection.items()})

    def _labels(self, data: str) -> Int64:
        return self._embedded.inside[data].index.labels[self._embedded.readable[data]]

    def _samples(self, engine_id: str, data: str, classifier: str, answers: Answers, outcomes: Outcomes | None) -> Columns:
        images = {**self._embedded.inside, **self._embedded.outside}[data]
        readable = self._embedded.readable[data]
        n = int(readable.sum())
        names = {"engine": engine_id, "data": data, "classifier": classifier, "role": "ood" if outcomes is None else "id"}
        correct5: Bool = np.zeros(n, np.bool_) if outcomes is None or outcomes.in_top5 is None else outcomes.in_top5
        return {
            **{name: np.full(n, value, dtype=object) for name, value in names.items()},  # one string for all rows
            "image_id": np.asarray(images.index.ids, dtype=object)[readable],
            "label": np.full(n, -1) if outcomes is None else outcomes.labels,
            "prediction": answers.predictions,
            "confidence": answers.confidence,
            "correct5": correct5,
            **answers.ood_scores,
        }
