"""What each method is made of: its quantizers and what teaches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipq.export.qat.quantizers import (
    Activation,
    LearnedBound,
    LearnedStep,
    LearnedStepAndOffset,
    LearnedStepWeight,
    RunningRange,
    TanhWeight,
    Weight,
)
from clipq.export.qat.rounding import activation_grid, weight_grid
from clipq.export.qat.sites import Makers
from clipq.methods import Bits
from clipq.recipe import AttentionPrecision

Loss = Literal["contrastive", "distillation", "features", "bounds"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One method.

    Attributes:
        activation: Quantizer of the activations.
        weight: Quantizer of the weights.
        losses: What is summed; ``bounds`` is PACT's penalty on its bounds.
    """

    activation: type[Activation]
    weight: type[Weight]
    losses: tuple[Loss, ...]

    @property
    def learns(self) -> bool:
        """Whether its quantizers have anything to learn when the backbone is frozen."""
        return self.activation is not RunningRange or self.weight is LearnedStepWeight

    def makers(self, bits: Bits, mha: AttentionPrecision) -> Makers:
        """Return how its quantizers are made for some bits; products of attention take no offset, which no bias could give back."""
        activations, weights = activation_grid(bits.activations), weight_grid(bits.weights)
        product = LearnedStep if self.activation is LearnedStepAndOffset else self.activation
        return Makers(
            activation=lambda: self.activation(activations),
            product=lambda: product(activations),
            weight=lambda channels: self.weight(weights, channels),
            probabilities=activations if mha == "int8" else None,
        )


PLANS: Mapping[str, Plan] = {
    "ste": Plan(RunningRange, Weight, ("contrastive",)),
    "dorefa": Plan(RunningRange, TanhWeight, ("contrastive",)),
    "pact": Plan(LearnedBound, Weight, ("contrastive", "bounds")),
    "lsq": Plan(LearnedStep, LearnedStepWeight, ("contrastive",)),
    "lsq-plus": Plan(LearnedStepAndOffset, LearnedStepWeight, ("contrastive",)),
    "lsq-distill": Plan(LearnedStep, LearnedStepWeight, ("distillation",)),
    "lsq-mse": Plan(LearnedStep, LearnedStepWeight, ("distillation", "features")),
    "lsq-plus-mse": Plan(LearnedStepAndOffset, LearnedStepWeight, ("distillation", "features")),
    "rotation-lsq": Plan(LearnedStep, LearnedStepWeight, ("distillation", "features")),
    "equalize-lsq": Plan(LearnedStep, LearnedStepWeight, ("distillation", "features")),
}
