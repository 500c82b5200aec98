"""The outcome of a search: how much each block costs alone, and the steps to the choice that holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipq.export.keep import Bound
from clipq.progress import bar
from clipq.sensitivity.damage import interval
from clipq.sensitivity.lab import Block, Lab, Step

FINEST = "cosine_centred"  # differs between any two blocks, and hardly from sample to sample


@dataclass(frozen=True, slots=True)
class Ranking:
    """The damage of quantizing each block alone, everything else FP32.

    Attributes:
        lab: Where it was measured.
        seed: Seed of the resamples.
        damage: Block -> METRIC -> worsening.
    """

    lab: Lab
    seed: int
    damage: Mapping[Block, Mapping[str, float]]

    def severity(self, block: Block, metric: str) -> tuple[float, float]:
        """Return what orders the blocks, the most damaging highest: what the metric shows beyond chance, then the centred cosine.

        Shares and calibration errors of a few hundred images move more by chance than by one block, and an order by them alone is
        chance too: the lower end of the 95 % interval counts, 0 where it reaches no damage. Cosines are compared as they are.
        """
        damage = self.damage[block]
        if metric.startswith("cosine"):
            return damage[metric], damage[FINEST]
        (low, _), _ = interval(metric, self.lab.before, self.lab.reading(self.lab.without(block)), self.seed)
        return max(0.0, low), damage[FINEST]


def rank(lab: Lab, seed: int) -> Ranking:
    """Measure each block alone."""
    with bar("Quantizing each block alone", len(lab.blocks)) as advance:
        damage = {}
        for block in lab.blocks:
            damage[block] = lab.measure(lab.without(block)).damage
            advance(1)
    return Ranking(lab, seed, damage)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        bounds: What was asked.
        ranking: None when nobody asked and no block had to be kept.
        steps: The first has everything quantized, the last holds the bounds.
    """

    bounds: Sequence[Bound]
    ranking: Ranking | None
    steps: Sequence[Step]

    @property
    def ranked_by(self) -> str:
        """The metric that orders the blocks: the first bound's that does not hold by itself, else the first's, else the centred cosine."""
        unmet = first_unmet(self.bounds, self.steps[0].damage) or next(iter(self.bounds), None)
        return unmet.metric if unmet else FINEST


def first_unmet(bounds: Sequence[Bound], damage: Mapping[str, float]) -> Bound | None:
    """Return the first bound that a measurement breaks."""
    return next((bound for bound in bounds if damage[bound.metric] > bound.value), None)
