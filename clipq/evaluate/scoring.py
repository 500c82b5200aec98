"""From stored embeddings to every figure of the report: metrics, OOD detection, paired deltas, and the rows they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.artifact import ModelEntry
from clipq.evaluate.answers import SCORES, Answers, answer
from clipq.evaluate.compare import compare as compare_paired
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.metrics.arrays import Bool, Int64
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits
from clipq.evaluate.report.samples import COLUMNS
from clipq.evaluate.statistics.bootstrap import Estimate, Resampled, compare
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.statistics.ood import resample_ood
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
    """

    results: dict[str, dict[str, Any]]
    ood: dict[str, dict[str, Any]]
    paired: dict[str, dict[str, Any]]
    samples: Columns


@dataclass(slots=True)
class _Baseline:
    """What the engines after the first are compared with, on one ID data set and its OOD pairs."""

    answers: Answers
    classification: Resampled
    ood: dict[tuple[str, str], Resampled] = field(default_factory=dict)  # (OOD data, score)


def score(embedded: Embedded, model: ModelEntry, *, resamples: int, seed: int) -> Scores:
    """Compute every figure; the first engine is the baseline.

    Args:
        embedded: The embeddings.
        model: Logit scale and bias.
        resamples: Bootstrap resamples.
        seed: Of the resamples.
    """
    return _Scoring(embedded, model, resamples, seed).run()


class _Scoring:
    """One pass over ID data sets and engines; only one engine's logits stand beside the baseline's in memory."""

    def __init__(self, embedded: Embedded, model: ModelEntry, resamples: int, seed: int) -> None:
        self._embedded, self._model = embedded, model
        self._resampling = {"resamples": resamples, "seed": seed}
        self._rows: list[Columns] = []
        self._results: dict[str, dict[str, Any]] = {name: {} for name in embedded.engine_ids}
        self._ood: dict[str, dict[str, Any]] = {name: {} for name in embedded.engine_ids}
        self._paired: dict[str, dict[str, Any]] = {name: {} for name in embedded.engine_ids[1:]}

    def run(self) -> Scores:
        embedded = self._embedded
        with bar("Scoring", len(embedded.inside) * len(embedded.engine_ids)) as advance:
            for data in embedded.inside:
                baseline = None
                for engine_id in embedded.engine_ids:
                    made = self._score_engine(engine_id, data, baseline)
                    baseline = baseline or made
                    advance(1)
        samples = {name: np.concatenate([rows[name] for rows in self._rows]) for name in COLUMNS}
        return Scores(self._results, self._ood, self._paired, samples)

    def _score_engine(self, engine_id: str, data: str, baseline: _Baseline | None) -> _Baseline:
        embedded, labels = self._embedded, self._labels(data)
        classes = embedded.classes(engine_id, data)
        embeddings = embedded.images(engine_id, data)
        answers = answer(embeddings, classes, self._model, f"{engine_id} on {data}")
        outcomes = outcomes_from_logits(answers.class_scores, labels)
        own = _Baseline(answers, resample_classification(outcomes, **self._resampling))
        self._results[engine_id][data] = _measurements(compare(baseline.classification if baseline else None, own.classification))
        self._rows.append(self._samples(engine_id, data, data, answers, outcomes))
        if baseline is not None:
            before = embedded.images(embedded.engine_ids[0], data)
            self._paired[engine_id][data] = compare_paired(labels, baseline.answers, answers, before, embeddings)
        for other in embedded.outside:
            foreign = answer(embedded.images(engine_id, other), classes, self._model, f"{engine_id} on {other}")
            self._rows.append(self._samples(engine_id, other, data, foreign, None))
            self._ood[engine_id][f"{data}|{other}"] = self._detect(own, foreign, other, baseline)
        return own

    def _detect(self, own: _Baseline, foreign: Answers, other: str, baseline: _Baseline | None) -> dict[str, Any]:
        measured = {}
        for name in SCORES:
            resampled = resample_ood(own.answers.ood_scores[name], foreign.ood_scores[name], **self._resampling)
            own.ood[other, name] = resampled
            measured[name] = _measurements(compare(baseline.ood[other, name] if baseline else None, resampled))
        return measured

    def _labels(self, data: str) -> Int64:
        return self._embedded.inside[data].index.labels[self._embedded.readable[data]]

    def _samples(self, engine_id: str, data: str, classifier: str, answers: Answers, outcomes: Outcomes | None) -> Columns:
        images = {**self._embedded.inside, **self._embedded.outside}[data]
        readable = self._embedded.readable[data]
        n = int(readable.sum())
        correct5: Bool = np.zeros(n, np.bool_) if outcomes is None or outcomes.in_top5 is None else outcomes.in_top5
        return {
            "engine": np.full(n, engine_id),
            "data": np.full(n, data),
            "classifier": np.full(n, classifier),
            "role": np.full(n, "ood" if outcomes is None else "id"),
            "image_id": np.asarray(images.index.ids)[readable],
            "label": np.full(n, -1) if outcomes is None else outcomes.labels,
            "prediction": answers.predictions,
            "confidence": answers.confidence,
            "correct5": correct5,
            **answers.ood_scores,
        }


def _measurements(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return METRIC -> measurement as JSON; what is not a finite number becomes None."""
    return {name: {key: _plain(value) for key, value in asdict(estimate).items()} for name, estimate in estimates.items()}


def _plain(value: float | tuple[float, float] | None) -> Any:
    if isinstance(value, tuple):
        return [_plain(end) for end in value]
    return value if value is None or np.isfinite(value) else None
