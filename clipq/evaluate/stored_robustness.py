"""Robustness from stored outputs: the same engine on shifted images, or on the counter group of a spurious correlation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.errors import UsageError
from clipq.evaluate.metrics.outcomes import Outcomes
from clipq.evaluate.robustness.measured import Accuracy, Row, TwoSets
from clipq.evaluate.robustness.shift import shift_entry
from clipq.evaluate.robustness.spurious import MOST_CLASSES, class_rows, spurious_entry, worst_group
from clipq.evaluate.stored import Keys, check_same_samples, read_stored


@dataclass(frozen=True, slots=True)
class OtherSets:
    """Outputs on other images than those of FILE, which is the known set, or the common group.

    Attributes:
        shifted: On shifted images.
        baseline_shifted: The baseline's on the same.
        counter: On the counter group.
        baseline_counter: The baseline's on the same.
    """

    shifted: Path | None = None
    baseline_shifted: Path | None = None
    counter: Path | None = None
    baseline_counter: Path | None = None

    def named(self) -> dict[str, Path | None]:
        """Return role -> file, as the provenance names them."""
        return {
            "shifted": self.shifted,
            "baseline_shifted": self.baseline_shifted,
            "counter": self.counter,
            "baseline_counter": self.baseline_counter,
        }

    def check(self, baseline: Path | None) -> None:
        """Check that no file of the baseline stands alone.

        Raises:
            UsageError: One does.
        """
        for name, own in (("shifted", self.shifted), ("counter", self.counter)):
            if self.named()[f"baseline_{name}"] and not (own and baseline):
                raise UsageError(f"--baseline-{name} has no use alone", expected=f"--baseline and --{name} beside it")


@dataclass(frozen=True, slots=True)
class Compared:
    """FILE and its baseline, with how everything is resampled."""

    engine: Outcomes
    baseline: Outcomes | None
    keys: Keys
    resamples: int
    seed: int

    def accuracy(self, outcomes: Outcomes) -> Accuracy:
        """Return the accuracy with its resamples."""
        return Accuracy.of(outcomes.correct, resamples=self.resamples, seed=self.seed)

    def both(self, first: Outcomes, second: Outcomes) -> TwoSets:
        """Return the accuracies on two sets of images."""
        return TwoSets.of(self.accuracy(first), self.accuracy(second))

    def worst(self, groups: tuple[Outcomes, Outcomes]) -> Row | None:
        """Return the accuracy in the worst group, or None where there are too many of them."""
        if max(int(group.labels.max()) for group in groups) >= MOST_CLASSES:
            return None
        return worst_group([class_rows(group.labels, group.correct, resamples=self.resamples, seed=self.seed) for group in groups])


def stored_robustness(compared: Compared, sets: OtherSets) -> dict[str, Any]:
    """Return axis -> METRIC -> measurement, as in a report; without a baseline the drop and the gap alone.

    Raises:
        RefusedError: A file is, or holds, a pickle.
        DataError: A file cannot be read, or the two of one set are not of the same images.
    """
    found: dict[str, Any] = {}
    if sets.shifted:
        other, before = _pair(compared, sets.shifted, sets.baseline_shifted)
        baseline = compared.both(compared.baseline, before) if compared.baseline and before else None
        found["shift"] = shift_entry(compared.both(compared.engine, other), baseline)
    if sets.counter:
        other, before = _pair(compared, sets.counter, sets.baseline_counter)
        own, worst = compared.both(compared.engine, other), compared.worst((compared.engine, other))
        if compared.baseline and before:
            base, base_worst = compared.both(compared.baseline, before), compared.worst((compared.baseline, before))
            found["spurious"] = spurious_entry(own, base, worst, base_worst)
        else:
            found["spurious"] = spurious_entry(own, None, worst)
    return found


def _pair(compared: Compared, path: Path, baseline: Path | None) -> tuple[Outcomes, Outcomes | None]:
    """Return the outcomes of the engine and of the baseline on one set."""
    own = read_stored(path, compared.keys).outcomes()
    before = read_stored(baseline, compared.keys).outcomes() if baseline else None
    if baseline and before is not None:
        check_same_samples(path, own, baseline, before)
    return own, before
