"""The noise axis: errors on corrupted copies of a data set as mean error, mCE and relative mCE, each with its paired difference.

Definitions: Hendrycks & Dietterich 2019 (arXiv 1903.12261), section 4.1. ``E_sc`` is the top-1 error at severity s of corruption c::

    mean_error   = mean over c of mean over s of E_sc
    CE_c         = sum_s E_sc / sum_s Eref_sc                                  mce          = mean over c of CE_c
    relative CE_c = sum_s (E_sc - E_clean) / sum_s (Eref_sc - Eref_clean)      relative_mce = mean over c of relative CE_c

The copies are made here (``-synth``); the published files of ImageNet-C are JPEGs of other bytes, and their numbers are not these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipq.evaluate.correction import add_holm
from clipq.evaluate.entries import measurements
from clipq.evaluate.metrics.arrays import Float64
from clipq.evaluate.statistics.bootstrap import Resampled, compare

Reference = Literal["baseline", "alexnet"]
REFERENCES: Sequence[Reference] = ("baseline", "alexnet")
CELL_METRICS = ("acc1", "ece15", "nll", "brier", "signed_gap")

# Top-1 errors of AlexNet on ImageNet-C, mean of the five severities: https://github.com/hendrycks/robustness, to six digits as
# google-research/augmix (imagenet.py) carries them; its clean error is table 1 of the paper.
ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN = 0.435
_NOTES: Mapping[str, str] = {
    "baseline": "mCE: errors divided by those of the baseline on the same altered images; 1 is as many errors",
    "alexnet": "mCE: errors divided by AlexNet's published ones on ImageNet-C; comparable with published numbers at most for 224-pixel "
    "crops of the ImageNet validation set, and even there these images are not the published files",
}


@dataclass(frozen=True, slots=True, eq=False)
class NoiseCells:
    """One engine on one data set and its corrupted copies, all of the same images and resampled alike.

    Attributes:
        clean: On the images as they are; ``acc1`` is needed.
        cells: (corruption, severity) -> on that copy; every corruption has the same severities.
    """

    clean: Resampled
    cells: Mapping[tuple[str, int], Resampled]

    @property
    def names(self) -> list[str]:
        """Return the corruptions."""
        return list(dict.fromkeys(name for name, _ in self.cells))

    @property
    def severities(self) -> list[int]:
        """Return the severities, ascending."""
        return sorted({severity for _, severity in self.cells})


def noise_parts(measured: Mapping[str, Mapping[str, NoiseCells]], baseline: str, reference: Reference) -> dict[str, dict[str, Any]]:
    """Return ENGINE -> DATA -> the noise part of ``report["robustness"][ENGINE]["noise"][DATA]``, p-values corrected over the engines.

    Args:
        measured: ENGINE -> clean DATA -> what was measured; the baseline among them.
        baseline: The engine every delta is taken against.
        reference: What the errors of mCE are divided by.
    """
    first = measured[baseline]
    parts = {
        engine: {data: noise_estimates(cells, first[data], reference, is_baseline=engine == baseline) for data, cells in by_data.items()}
        for engine, by_data in measured.items()
    }
    return finished(parts, {data: facts(cells, reference) for data, cells in first.items()})


def finished(parts: Mapping[str, Mapping[str, Any]], facts_by_data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return ENGINE -> DATA -> estimates, with p-values corrected over the engines, and facts."""
    add_holm(parts)
    return {engine: {data: {**part, **facts_by_data[data]} for data, part in by_data.items()} for engine, by_data in parts.items()}


def facts(cells: NoiseCells, reference: Reference) -> dict[str, Any]:
    """Return what was altered how, and what mCE is divided by."""
    return {"corruptions": cells.names, "severities": cells.severities, "reference": reference, "note": _NOTES[reference]}


def noise_estimates(engine: NoiseCells, baseline: NoiseCells, reference: Reference, *, is_baseline: bool) -> dict[str, Any]:
    """Return the measurements of one engine on one data set: ``mean_error``, ``mce``, ``relative_mce``, ``errors`` and ``cells``.

    Errors divided by AlexNet's are there only where all fifteen corruptions and five severities are, as in the published mean.
    """
    before = None if is_baseline else _summary(baseline, baseline, reference)
    found = measurements(compare(before, _summary(engine, baseline, reference)))
    errors = {name: found.pop(name) for name in engine.names}
    cells: dict[str, dict[str, Any]] = {name: {} for name in engine.names}
    for (name, severity), own in engine.cells.items():
        other = None if is_baseline else baseline.cells[name, severity]
        cells[name][str(severity)] = measurements(compare(other, own))
    return {**found, "errors": errors, "cells": cells}


def _summary(engine: NoiseCells, baseline: NoiseCells, reference: Reference) -> Resampled:
    """Return ``mean_error``, ``mce``, ``relative_mce`` and the error of each corruption, over severities, with their resamples."""
    own, other = _errors(engine), _errors(baseline)
    if reference == "alexnet":
        whole = engine.severities == [1, 2, 3, 4, 5] and own.keys() >= ALEXNET.keys()
        known = {name: np.full_like(own[name], error) for name, error in ALEXNET.items()} if whole else {}
        other = {**known, "clean": np.full_like(own["clean"], ALEXNET_CLEAN)}
    rows = {name: column for name, column in own.items() if name != "clean"}
    rows["mean_error"] = np.mean([own[name] for name in engine.names], axis=0)
    compared = [name for name in engine.names if name in other]
    if compared:
        rows["mce"] = np.mean([_ratio(own[name], other[name]) for name in compared], axis=0)
        lost = [_ratio(own[name] - own["clean"], other[name] - other["clean"]) for name in compared]
        rows["relative_mce"] = np.mean(lost, axis=0)
    values = {name: float(column[0]) for name, column in rows.items()}
    draws = {name: column[1:] for name, column in rows.items() if np.isfinite(column).all()}
    return Resampled(values, draws, engine.clean.n, engine.clean.key, influence=_influence(engine))


def _errors(engine: NoiseCells) -> dict[str, Float64]:
    """Return corruption (or ``clean``) -> mean error over severities: the value first, then every resample, ``(1 + resamples,)``."""
    errors = {key: _error(cell) for key, cell in engine.cells.items()}
    found = {name: np.mean([errors[name, severity] for severity in engine.severities], axis=0) for name in engine.names}
    return {**found, "clean": _error(engine.clean)}


def _error(cell: Resampled) -> Float64:
    return 1.0 - np.concatenate(([cell.values["acc1"]], cell.draws["acc1"]))


def _ratio(own: Float64, other: Float64) -> Float64:
    """Return ``own / other`` where the divisor is above 0, NaN elsewhere: without a loss of the reference there is nothing to divide by."""
    return np.divide(own, other, out=np.full_like(own, np.nan), where=other > 1e-12)


def _influence(engine: NoiseCells) -> dict[str, tuple[Float64, ...]]:
    """Return what each image adds to the mean errors, less the mean, which BCa intervals need."""
    if any("acc1" not in cell.influence for cell in engine.cells.values()):
        return {}
    by_name = {name: -np.mean([engine.cells[name, s].influence["acc1"][0] for s in engine.severities], axis=0) for name in engine.names}
    everything = {**by_name, "mean_error": np.mean(list(by_name.values()), axis=0)}
    return {name: (column,) for name, column in everything.items()}
