"""The difference between two reports, or between two engines of one, in the shape of a report so that gates read it too.

Where both sides have the samples of the same images, differences are paired: computed image by image, resampled together. Where
they have not, or where a metric needs more than the samples hold (nll, brier), the two intervals are added as of independent
samples, which is much wider; each measurement says which with ``paired``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.errors import ClipqError, unknown_name
from clipq.evaluate.correction import add_holm
from clipq.evaluate.metrics.calibration_shift import calibration_shift
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.metrics.paired import disagreement, flips
from clipq.evaluate.ood_means import mean_estimates, sets_to_average
from clipq.evaluate.report.read import StoredReport
from clipq.evaluate.report.samples import has_score, select
from clipq.evaluate.robustness.between import between_axes
from clipq.evaluate.statistics.bootstrap import Estimate, Resampled, compare
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.statistics.ood import TRANSFER, resample_ood
from clipq.machine import usable_cores
from clipq.progress import bar

SCHEMA = "clipq.comparison/1"
Columns = dict[str, npt.NDArray[Any]]
Both = tuple[Resampled, Resampled]  # of the first side and of the second
PARTS = ("engines", "results", "ood", "ood_means", "paired", "retrieval", "robustness", "bench")


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One engine in one report."""

    stored: StoredReport
    engine: str

    def part(self, name: str) -> dict[str, Any]:
        """Return the engine's entry of ``results``, ``ood`` or ``bench``; empty where it has none."""
        entry: dict[str, Any] = self.stored.report[name].get(self.engine, {})
        return entry

    def rows(self, data: str, classifier: str) -> Columns | None:
        """Return the engine's samples of one data set by image id, or None without samples of it."""
        if self.stored.samples is None:
            return None
        found = select(self.stored.samples, engine=self.engine, data=data, classifier=classifier)
        if len(found["image_id"]) == 0:
            return None
        order = np.argsort(found["image_id"], kind="stable")
        return {name: column[order] for name, column in found.items()}


def between_reports(first: StoredReport, second: StoredReport, engines: Sequence[str] = (), *, resamples: int = 2000) -> dict[str, Any]:
    """Return every engine of the second report against the same engine of the first; empty ``engines`` means all they share.

    Raises:
        UsageError: A named engine is not in both reports.
        ClipqError: They share no engine, or no data set.
    """
    shared = [engine for engine in second.report["engines"] if engine in first.report["engines"]]
    for engine in engines:
        if engine not in shared:
            raise unknown_name("engine of both reports", engine, shared)
    if not shared:
        raise ClipqError(
            "the two reports share no engine", found=f"{', '.join(first.report['engines'])} and {', '.join(second.report['engines'])}"
        )
    chosen = list(engines) or shared
    return _comparison(str(first.path), second, [(Side(first, engine), Side(second, engine)) for engine in chosen], resamples)


def between_engines(stored: StoredReport, baseline: str, engine: str, *, resamples: int = 2000) -> dict[str, Any]:
    """Return one engine of a report against another.

    Raises:
        UsageError: An engine is not in the report.
        ClipqError: They share no data set.
    """
    for name in (baseline, engine):
        if name not in stored.report["engines"]:
            raise unknown_name("engine of this report", name, stored.report["engines"])
    if baseline == stored.report["baseline"]:
        return of_one_report(stored, [engine])
    return _comparison(baseline, stored, [(Side(stored, baseline), Side(stored, engine))], resamples)


def of_one_report(stored: StoredReport, engines: Sequence[str] = ()) -> dict[str, Any]:
    """Return the report's own differences to its baseline, of the given engines or of all but the baseline."""
    report = stored.report
    chosen = engines or [engine for engine in report["engines"] if engine != report["baseline"]]
    parts = {part: {e: report[part][e] for e in chosen if e in report[part]} for part in PARTS if part in report}
    first = {engine: report["bench"].get(report["baseline"], {}) for engine in chosen}
    facts = {"schema": SCHEMA, "baseline": report["baseline"], "second": str(stored.path), "datasets": report["datasets"]}
    return {**facts, **parts, "bench_first": first}


def _comparison(baseline: str, second: StoredReport, sides: Sequence[tuple[Side, Side]], resamples: int) -> dict[str, Any]:
    comparison: dict[str, Any] = {
        "schema": SCHEMA,
        "baseline": baseline,
        "second": str(second.path),
        "engines": {b.engine: second.report["engines"][b.engine] for _, b in sides},
        "datasets": second.report["datasets"],
        "bench": {b.engine: b.part("bench") for _, b in sides},
        "bench_first": {b.engine: a.part("bench") for a, b in sides},
        "results": {},
        "ood": {},
        "ood_means": {},
        "paired": {},
        "robustness": {},
        "retrieval": {b.engine: _retrieval(a, b) for a, b in sides},
    }
    with bar("Comparing", len(sides)) as advance:
        for a, b in sides:
            for part, found in _parts(a, b, resamples).items():
                comparison[part][b.engine] = found
            advance(1)
    add_holm(comparison["results"])
    add_holm(comparison["ood"])
    add_holm(comparison["ood_means"])
    add_holm(comparison["robustness"])
    if not any(comparison["results"].values()):
        raise ClipqError("the two sides share no data set, so nothing can be compared")
    return comparison


def _parts(a: Side, b: Side, resamples: int) -> dict[str, dict[str, Any]]:
    """Return part of the comparison -> what it holds of one engine."""
    shared = [data for data in b.part("results") if data in a.part("results")]
    pairs = [pair for pair in b.part("ood") if pair in a.part("ood")]
    both = {pair: _resampled(a, b, pair, stream, resamples) for stream, pair in enumerate(pairs, start=1)}
    return {
        "results": {data: _results(a, b, data, resamples) for data in shared},
        "paired": {data: found for data in shared if (found := _agreement(a, b, data))},
        "ood": {pair: _ood(a, b, pair, both[pair]) for pair in pairs},
        "ood_means": _ood_means(b, both),
        "robustness": _robustness(a, b, resamples),
    }


def _results(a: Side, b: Side, data: str, resamples: int) -> dict[str, Any]:
    first, second = a.part("results")[data], b.part("results")[data]
    rows = _same_images(a, b, data, data)
    paired = {} if rows is None else classification_estimates(_outcomes(rows[0]), _outcomes(rows[1]), resamples=resamples)
    return {metric: _entry(paired.get(metric), first[metric], second[metric]) for metric in second if metric in first}


def _robustness(a: Side, b: Side, resamples: int) -> dict[str, Any]:
    part = b.stored.report.get("robustness", {}).get(b.engine, {})
    return between_axes(part, lambda data: _same_images(a, b, data, data), resamples=resamples)


def _retrieval(a: Side, b: Side) -> dict[str, Any]:
    """Return the recalls that both sides have, with differences as of independent samples: no report holds what each query found."""
    first, second = (side.stored.report.get("retrieval", {}).get(side.engine, {}) for side in (a, b))
    return {
        data: {metric: _entry(None, first[data][metric], entry) for metric, entry in own.items() if "recall" in metric}
        for data, own in second.items()
        if data in first
    }


def _resampled(a: Side, b: Side, pair: str, stream: int, resamples: int) -> dict[str, Both]:
    """Return SCORE -> both sides' detection, where both have the samples of the same images; thresholds are tuned on the first side."""
    known, foreign = pair.split("|")
    inside, outside = _same_images(a, b, known, known), _same_images(a, b, foreign, known)
    if inside is None or outside is None:
        return {}
    scores = [score for score in b.part("ood")[pair] if all(has_score(rows, score) for rows in (*inside, *outside))]

    def both_sides(score: str) -> Both:
        tuned: dict[str, Any] = {"tuned_on": inside[0][score], "resamples": resamples, "stream": stream}
        first, second = (resample_ood(inside[side][score], outside[side][score], **tuned) for side in (0, 1))
        return first, second

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy leaves the cores free to other threads
        return dict(zip(scores, pool.map(both_sides, scores), strict=True))


def _ood(a: Side, b: Side, pair: str, both: Mapping[str, Both]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for score, second in b.part("ood")[pair].items():
        first = a.part("ood")[pair].get(score, {})
        paired = compare(*both[score]) if score in both else {}
        shared = [metric for metric in second if metric in first and metric not in TRANSFER]
        entries = {metric: _entry(paired.get(metric), first[metric], second[metric]) for metric in shared}
        found[score] = entries | {metric: _own(paired[metric]) for metric in TRANSFER if metric in paired}
    return found


def _ood_means(b: Side, both: Mapping[str, Mapping[str, Both]]) -> dict[str, Any]:
    """Return ID DATA -> group -> SCORE -> METRIC -> mean over the OOD sets that both sides have, where it can be paired."""
    found: dict[str, Any] = {}
    for data in dict.fromkeys(pair.split("|")[0] for pair in both):
        foreign = {pair.split("|")[1]: scores for pair, scores in both.items() if pair.split("|")[0] == data}
        groups = sets_to_average({name: b.stored.report["datasets"][name].get("distance") for name in foreign})
        first, second = ({(name, score): sides[i] for name, scores in foreign.items() for score, sides in scores.items()} for i in (0, 1))
        found[data] = {
            group: {score: {metric: _own(estimate) for metric, estimate in metrics.items()} for score, metrics in scored.items()}
            for group, scored in mean_estimates(first, second, groups).items()
        }
    return found


def _own(estimate: Estimate) -> dict[str, Any]:
    """Return the measurement of what neither report has: the first side's threshold on the second, or a mean over shared sets."""
    first = {"value": estimate.value - (estimate.delta or 0.0)}
    return _entry(estimate, first, {"value": estimate.value, "ci95": estimate.ci95, "n": estimate.n, "interval": estimate.interval})


def _agreement(a: Side, b: Side, data: str) -> dict[str, float]:
    rows = _same_images(a, b, data, data)
    if rows is None:
        return {}
    first, second = rows[0]["prediction"], rows[1]["prediction"]
    changed = flips(rows[0]["label"], first, second)
    before, after = ((side["confidence"], side["prediction"] == side["label"]) for side in rows)
    return {
        "disagreement": disagreement(first, second),
        "flips": changed.flips,
        "flips_pos_to_neg": changed.correct_to_wrong,
        "flips_neg_to_pos": changed.wrong_to_correct,
        "flips_neg_to_other_neg": changed.wrong_to_other_wrong,
        "calibration_shift": calibration_shift(before, after),
    }


def _same_images(a: Side, b: Side, data: str, classifier: str) -> tuple[Columns, Columns] | None:
    """Return both sides' rows of a data set in one order, or None when they are not of the same images with the same labels."""
    first, second = a.rows(data, classifier), b.rows(data, classifier)
    if first is None or second is None or len(first["image_id"]) != len(second["image_id"]):
        return None
    sha256 = {side.stored.report["datasets"][data]["sha256"] for side in (a, b)}
    same = len(sha256) == 1 and all(bool(np.array_equal(first[name], second[name])) for name in ("image_id", "label"))
    return (first, second) if same else None


def _outcomes(rows: Columns) -> Outcomes:
    return Outcomes(
        rows["label"].astype(np.int64), rows["prediction"].astype(np.int64), rows["confidence"].astype(np.float64), rows["correct5"]
    )


def _entry(paired: Estimate | None, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurement of the second side with its difference to the first; ``first`` holds the other side's value."""
    entry = {"value": second["value"], "ci95": second["ci95"], "n": second["n"], "first": first["value"]}
    if paired is not None and paired.delta is not None and np.isfinite(paired.delta) and paired.delta_ci95 is not None:
        ends = list(paired.delta_ci95) if np.isfinite(paired.delta_ci95).all() else None
        told = {"interval": second.get("interval"), "delta_interval": paired.delta_interval, "test": paired.test}
        least = {"minimum_detectable": paired.minimum_detectable}
        return {**entry, "delta": paired.delta, "delta_ci95": ends, "p_value": paired.p_value, **told, **least, "paired": True}
    delta = None if None in (first["value"], second["value"]) else second["value"] - first["value"]
    return {**entry, "delta": delta, "delta_ci95": _independent(delta, first, second), "p_value": None, "paired": False}


def _independent(delta: float | None, first: Mapping[str, Any], second: Mapping[str, Any]) -> list[float] | None:
    """Return the interval of a difference of independent estimates: their half intervals added in quadrature."""
    if delta is None or any(side["ci95"] is None or None in side["ci95"] for side in (first, second)):
        return None
    low = math.hypot(second["value"] - second["ci95"][0], first["ci95"][1] - first["value"])
    high = math.hypot(second["ci95"][1] - second["value"], first["value"] - first["ci95"][0])
    return [delta - low, delta + high]
