"""What one gate is: which number of a report it reads, and which side of which limit fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipq.evaluate.report.names import BENCH, METRICS, OOD_METRICS, PAIRED, RETRIEVAL, Quantity
from clipq.evaluate.report.robustness_names import ROBUSTNESS

Kind = Literal["results", "ood", "paired", "retrieval", "robustness", "bench"]
QUANTITIES: Mapping[Kind, Mapping[str, Quantity]] = {
    "results": METRICS,
    "ood": OOD_METRICS,
    "paired": PAIRED,
    "retrieval": RETRIEVAL,
    "robustness": ROBUSTNESS,
    "bench": BENCH,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """One parsed rule; goals such as ``acc1:max-degradation=0.01`` are the same comparison in other words.

    Attributes:
        rule: As it was written.
        engine: The only engine it concerns, or None for all but the baseline.
        kind: The part of the report it reads.
        score: The only OOD score, or the only axis of robustness, it concerns, or None.
        metric: Metric, paired key or bench scenario.
        field: ``value``, ``delta``, the same with ``_pp`` (times 100), or ``delta_percent`` (per cent of the baseline's value); of a
            scenario ``p99_s``, ``p99_s.delta`` or ``p99_s.delta_percent``.
        op: ``<``, ``<=``, ``>`` or ``>=``: which side fails.
        limit: In the unit of the field.
        whole: The 95 % interval decides and must lie wholly on the good side; else the estimate decides.
        sets: Of an OOD metric ``near``, ``far`` or ``all``: the mean over those OOD sets is read, and no single pair; else None.
    """

    rule: str
    engine: str | None
    kind: Kind
    score: str | None
    metric: str
    field: str
    op: str
    limit: float
    whole: bool = False
    sets: str | None = None

    @property
    def scale(self) -> float:
        """Return what the stored number is multiplied with before it is compared."""
        return 100.0 if self.field.endswith(("_pp", "_percent")) else 1.0

    @property
    def form(self) -> str:
        """Return what is read of the quantity: ``value``, ``delta`` or ``delta_percent``."""
        return self.field.partition(".")[2] or "value" if self.kind == "bench" else self.field.removesuffix("_pp")

    @property
    def key(self) -> str:
        """Return the key of the quantity: the metric, or the bench field."""
        return self.field.partition(".")[0] if self.kind == "bench" else self.metric

    @property
    def quantity(self) -> Quantity:
        """Return what kind of number it reads."""
        return QUANTITIES[self.kind][self.key]

    def fails(self, value: float) -> bool:
        """Tell whether ``value``, in the unit of the rule, is on the failing side.

        Numbers that differ by rounding alone are equal, so that 0.792 keeps 99 % of 0.8.
        """
        if math.isclose(value, self.limit, rel_tol=1e-9, abs_tol=1e-15):
            return self.op.endswith("=")
        return value < self.limit if self.op.startswith("<") else value > self.limit
