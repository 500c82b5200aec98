"""``report["robustness"]``: the three axes of every engine, from the accuracies and resamples that scoring leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipq.evaluate.correction import add_holm
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.report.samples import select
from clipq.evaluate.robustness.cells import find_cells
from clipq.evaluate.robustness.measured import Accuracy, Row, TwoSets
from clipq.evaluate.robustness.noise import NoiseCells, noise_parts
from clipq.evaluate.robustness.pairs import Pairs
from clipq.evaluate.robustness.shift import line_for, shift_entry
from clipq.evaluate.robustness.spurious import MOST_CLASSES, class_rows, spurious_entry, worst_group
from clipq.evaluate.scoring import Scores

Part = dict[str, dict[str, Any]]  # pair or data set -> METRIC -> measurement


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the axes are computed from.

    Attributes:
        scores: Results, samples and resamples of every engine.
        sets: The labelled data sets by data id.
        baseline: The engine every delta is taken against.
        seed: Of the resamples.
    """

    scores: Scores
    sets: Mapping[str, EvalSet]
    baseline: str
    seed: int

    def classes(self, data: str) -> int:
        """Return the number of class names of a data set."""
        return len(self.sets[data].source.classnames)

    def both(self, engine: str, pair: tuple[str, str]) -> TwoSets:
        """Return an engine's accuracies on both data sets."""
        first, second = (self._accuracy(engine, data) for data in pair)
        return TwoSets.of(first, second)

    def worst(self, engine: str, pair: tuple[str, str]) -> Row | None:
        """Return an engine's accuracy in its worst group, or None where there are so many that the worst is chance."""
        if any(self.classes(data) > MOST_CLASSES for data in pair):
            return None
        groups = []
        for data in pair:
            rows = select(self.scores.samples, engine=engine, data=data, classifier=data)
            correct = np.asarray(rows["prediction"] == rows["label"], np.bool_)
            resamples = len(self.scores.resampled[engine][data].draws["acc1"])
            groups.append(class_rows(rows["label"].astype(np.int64), correct, resamples=resamples, seed=self.seed))
        return worst_group(groups)

    def _accuracy(self, engine: str, data: str) -> Accuracy:
        resampled = self.scores.resampled[engine][data]
        return Accuracy(np.concatenate(([resampled.values["acc1"]], resampled.draws["acc1"])), resampled.n)


def robustness_parts(evaluated: Evaluated, pairs: Pairs, noise: Mapping[str, Part] | None = None) -> dict[str, dict[str, Part]]:
    """Return ENGINE -> axis -> pair (``ID|SHIFTED``) or clean data set -> METRIC -> measurement; empty where nothing belongs together.

    p-values are corrected over the engines, as everywhere.

    Args:
        evaluated: What was measured.
        pairs: Which data sets belong together.
        noise: ENGINE -> what was measured on corrupted copies that are no data sets of their own.
    """
    engines = list(evaluated.scores.resampled)
    parts = {engine: _engine(evaluated, pairs, engine) for engine in engines}
    add_holm(parts)
    for found in (noise or {}, _noise(evaluated)):
        for engine, part in found.items():
            parts[engine]["noise"] = {**part, **parts[engine].get("noise", {})}
    return parts if any(parts.values()) else {}


def _engine(evaluated: Evaluated, pairs: Pairs, engine: str) -> dict[str, Part]:
    """Return the pairs of one engine by axis, without axes that have none."""
    found: dict[str, Part] = {"noise": {}, "shift": {}, "spurious": {}}
    for axis, members in (("noise", pairs.noise), ("shift", pairs.shift)):
        for pair in members:
            line = line_for(*pair, evaluated.classes(pair[0])) if axis == "shift" else ""
            found[axis]["|".join(pair)] = shift_entry(*_both(evaluated, engine, pair), line)
    for pair in pairs.spurious:
        own, base = _both(evaluated, engine, pair)
        base_worst = None if base is None else evaluated.worst(evaluated.baseline, pair)
        found["spurious"]["|".join(pair)] = spurious_entry(own, base, evaluated.worst(engine, pair), base_worst)
    return {axis: part for axis, part in found.items() if part}


def _both(evaluated: Evaluated, engine: str, pair: tuple[str, str]) -> tuple[TwoSets, TwoSets | None]:
    baseline = None if engine == evaluated.baseline else evaluated.both(evaluated.baseline, pair)
    return evaluated.both(engine, pair), baseline


def _noise(evaluated: Evaluated) -> dict[str, Part]:
    """Return ENGINE -> clean data set -> its corrupted copies together; empty without copies."""
    grids = find_cells(evaluated.sets)
    if not grids:
        return {}
    resampled = evaluated.scores.resampled
    measured = {
        engine: {
            clean: NoiseCells(resampled[engine][clean], {cell: resampled[engine][data] for cell, data in grid.items()})
            for clean, grid in grids.items()
        }
        for engine in resampled
    }
    return noise_parts(measured, evaluated.baseline, "baseline")
