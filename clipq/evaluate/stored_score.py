"""The metrics of stored outputs: one file alone, paired against a baseline's, or against OOD samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipq.errors import DataError, UsageError
from clipq.evaluate.mending import temperature_ratio
from clipq.evaluate.metrics import ood, paired
from clipq.evaluate.metrics.arrays import Float64
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.statistics.bootstrap import RESAMPLES, Estimate
from clipq.evaluate.statistics.classification import classification_estimates
from clipq.evaluate.statistics.ood import ood_estimates
from clipq.evaluate.statistics.quantile import thresholds_of
from clipq.evaluate.statistics.significance import minimum_detectable_loss
from clipq.evaluate.stored import KINDS, Keys, Stored, check_same_samples, files_of, read_stored
from clipq.evaluate.stored_robustness import Compared, OtherSets, stored_robustness
from clipq.files import sha256_file, sha256_json
from clipq.machine import describe_machine, library_versions, now

SCHEMA = "clipq.score/1"
SMALL_N = 10_000


def score_files(  # noqa: PLR0913 - each is one file or choice of the caller
    file: Path,
    keys: Keys,
    *,
    baseline: Path | None = None,
    ood_file: Path | None = None,
    baseline_ood: Path | None = None,
    others: OtherSets | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the metrics of a file as a JSON value: METRIC keys at the top, beside schema, provenance, notes, paired, ood, robustness.

    Args:
        file: Stored outputs: see ``read_stored``.
        keys: Names of the arrays.
        baseline: Outputs for the same samples; every metric then has a paired delta.
        ood_file: Outputs for OOD samples; with a baseline, also what its threshold accepts of them.
        baseline_ood: The baseline's outputs for the same OOD samples; the OOD metrics then have deltas too.
        others: Outputs on shifted images, or on the counter group of a spurious correlation.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Raises:
        UsageError: A file is not there, or of another kind, or one is given that has no use without another.
        RefusedError: A file is, or holds, a pickle.
        DataError: A file cannot be read, or its arrays are not what their names say.
    """
    if baseline_ood and not (baseline and ood_file):
        raise UsageError("--baseline-ood has no use alone", expected="--baseline and --ood beside it")
    others = others or OtherSets()
    others.check(baseline)
    named = {"file": file, "baseline": baseline, "ood": ood_file, "baseline_ood": baseline_ood, **others.named()}
    result: dict[str, Any] = {"schema": SCHEMA, "provenance": _provenance(named, keys, resamples, seed)}
    engine = read_stored(file, keys)
    outcomes = engine.outcomes()
    reference = read_stored(baseline, keys) if baseline else None
    before = reference.outcomes() if reference else None
    if baseline and before is not None:
        check_same_samples(file, outcomes, baseline, before)
    estimates = classification_estimates(before, outcomes, resamples=resamples, seed=seed)
    result |= {name: _as_json(estimate) for name, estimate in estimates.items()}
    if reference is not None and before is not None:
        result["paired"] = _paired(reference, engine, before, outcomes)
    if ood_file:
        outside, before_outside = (read_stored(path, keys, labelled=False) if path else None for path in (ood_file, baseline_ood))
        assert outside is not None
        result["ood"] = _ood((engine, outside), (reference, before_outside), resamples=resamples, seed=seed)
    if others.shifted or others.counter:
        result["robustness"] = stored_robustness(Compared(outcomes, before, keys, resamples, seed), others)
    result["notes"] = _notes(outcomes, estimates, before)
    return result


def _provenance(named: Mapping[str, Path | None], keys: Keys, resamples: int, seed: int) -> dict[str, Any]:
    files = {role: path for role, path in named.items() if path is not None}
    for path in files.values():
        if not path.exists():
            raise UsageError(f"no file at {path}", expected=KINDS)
    return {
        "files": {role: _hashed(path, keys) for role, path in files.items()},
        "resamples": resamples,
        "seed": seed,
        "created": now(),
        "machine": describe_machine(),
        "versions": library_versions(),
    }


def _hashed(path: Path, keys: Keys) -> dict[str, Any]:
    """Return the name and hash of a file; of several ``.npy`` files, the hash over those of each."""
    hashes = {file.name: sha256_file(file) for file in files_of(path, keys)}
    if list(hashes) == [path.name]:
        return {"name": path.name, "sha256": hashes[path.name]}
    return {"name": path.name, "sha256": sha256_json(hashes), "files": hashes}


def _as_json(estimate: Estimate) -> dict[str, Any]:
    """Return the fields of an estimate; a value that JSON cannot hold (an infinite NLL) becomes null."""
    fields: dict[str, Any] = {"value": estimate.value if math.isfinite(estimate.value) else None}
    fields |= {"ci95": list(estimate.ci95) if estimate.ci95 else None, "n": estimate.n, "interval": estimate.interval}
    if estimate.delta is not None:
        interval = list(estimate.delta_ci95) if estimate.delta_ci95 else None
        fields |= {"delta": estimate.delta, "delta_ci95": interval, "delta_interval": estimate.delta_interval}
        fields |= {"p_value": estimate.p_value, "test": estimate.test, "minimum_detectable": estimate.minimum_detectable}
    return fields


def _paired(baseline: Stored, engine: Stored, before: Outcomes, after: Outcomes) -> dict[str, float | None]:
    flips = paired.flips(after.labels, before.predictions, after.predictions)
    values: dict[str, float | None] = {
        "disagreement": paired.disagreement(before.predictions, after.predictions),
        "flips": flips.flips,
        "flips_pos_to_neg": flips.correct_to_wrong,
        "flips_neg_to_pos": flips.wrong_to_correct,
        "flips_neg_to_other_neg": flips.wrong_to_other_wrong,
    }
    if baseline.logits is not None and engine.logits is not None:
        values |= _divergences(paired.divergence_of_logits(baseline.logits, engine.logits))
    elif baseline.probabilities is not None and engine.probabilities is not None:
        values |= _divergences(paired.divergence(baseline.probabilities, engine.probabilities))
    values |= temperature_ratio(before.temperature, after.temperature)
    values["minimum_detectable_loss"] = minimum_detectable_loss(len(after), flips.flips)
    return values


def _divergences(found: paired.Divergence) -> dict[str, float | None]:
    """Return both; null for an infinite one, where the engine gives a probability of exactly 0 to what the baseline does not."""
    return {"js_divergence": found.js, "kl_divergence": found.kl if math.isfinite(found.kl) else None}


def _ood(engine: tuple[Stored, Stored], baseline: tuple[Stored | None, Stored | None], *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the OOD metrics of an engine's ID and OOD outputs; a baseline's ID outputs alone give the threshold that is transferred."""
    if engine[0].classes != engine[1].classes and None not in (engine[0].classes, engine[1].classes):
        found = f"{engine[0].classes} and {engine[1].classes} classes"
        raise DataError("FILE and --ood are of different classifiers", found=found, expected="outputs for the same classes")
    id_scores, ood_scores = map(_ood_scores, engine)
    before_id, before_ood = (None if side is None else _ood_scores(side) for side in baseline)
    for option, scores in (("--ood", ood_scores), ("--baseline", before_id), ("--baseline-ood", before_ood)):
        if scores is not None and list(scores) != list(id_scores):
            raise DataError(
                f"FILE and {option} hold different things",
                found=f"scores {', '.join(id_scores)} and {', '.join(scores)}",
                expected="both logits, both probabilities or both .csv",
            )
    report: dict[str, Any] = {}
    for name, own in id_scores.items():
        before = None if before_id is None or before_ood is None else (before_id[name], before_ood[name])
        tuned_on = None if before_id is None else before_id[name]
        estimates = ood_estimates(before, (own, ood_scores[name]), tuned_on=tuned_on, resamples=resamples, seed=seed)
        report[name] = {metric: _as_json(estimate) for metric, estimate in estimates.items()}
    sizes = {"n_id": len(next(iter(id_scores.values()))), "n_ood": len(next(iter(ood_scores.values())))}
    return {**sizes, "thresholds": thresholds_of(id_scores), "scores": report}


def _ood_scores(stored: Stored) -> dict[str, Float64]:
    """Return SCORE key -> ood_score, as many as the file allows; MCM and ``energy_cos`` need cosines, which no file holds."""
    if stored.logits is not None:
        functions = {"msp": ood.msp, "maxlogit": ood.maxlogit, "energy_logit": ood.energy, "entropy": ood.entropy}
        return {name: function(stored.logits) for name, function in functions.items()}
    if stored.probabilities is not None:
        return {
            "msp": ood.msp_from_probabilities(stored.probabilities),
            "entropy": ood.entropy_from_probabilities(stored.probabilities),
        }
    assert stored.confidence is not None
    return {"msp": -stored.confidence}


def _notes(outcomes: Outcomes, estimates: Mapping[str, Estimate], before: Outcomes | None) -> list[str]:
    n, notes = len(outcomes), []
    by_chance = 0.9 / math.sqrt(n)  # 0.061, 0.029, 0.013, 0.004 at n = 200, 1,000, 5,000, 50,000
    if n < SMALL_N or estimates["ece15"].value < 2 * by_chance:
        notes.append(
            f"n = {n:,}: a perfectly calibrated model would show an ece15 of about {by_chance:.3f}; "
            "ECE is biased upward, and its interval too, so look at ece_debiased and at paired deltas."
        )
    if outcomes.nll is not None and not np.isfinite(outcomes.nll).all():
        zeros = int(np.count_nonzero(np.isinf(outcomes.nll)))
        notes.append(f"nll is infinite: {zeros:,} of {n:,} samples give their label a probability of exactly 0; nothing is clipped.")
    if outcomes.nll is None:
        notes.append(
            "true_label, pred_label and confidence allow no acc5, nll, brier and its parts, ece_classwise, temperature and divergences."
        )
    if before is not None:
        loss = minimum_detectable_loss(n, float(np.mean(before.correct != outcomes.correct)))
        least = estimates["ece15"].minimum_detectable
        of_ece = "" if least is None else f", the smallest one of ece15 {least:.4f}"
        notes.append(f"the smallest accuracy difference that these samples would show (80 % power) is {loss:.4f}{of_ece}.")
    return notes
