"""The outcome of a search: how much each block costs alone, and the steps to the choice that holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipq.export.keep import Bound
from clipq.sensitivity.lab import Block, Step

Alone = Mapping[Block, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        bounds: What was asked.
        alone: Block -> damage of quantizing it alone; empty when nobody asked and no block had to be kept.
        steps: The first has everything quantized, the last holds the bounds.
    """

    bounds: Sequence[Bound]
    alone: Alone
    steps: Sequence[Step]

    @property
    def ranked_by(self) -> str:
        """The metric that orders the blocks: the first bound's that does not hold by itself, else the first's, else the centred cosine."""
        unmet = first_unmet(self.bounds, self.steps[0].damage) or next(iter(self.bounds), None)
        return unmet.metric if unmet else "cosine_centred"


def first_unmet(bounds: Sequence[Bound], damage: Mapping[str, float]) -> Bound | None:
    """Return the first bound that a measurement breaks."""
    return next((bound for bound in bounds if damage[bound.metric] > bound.value), None)
