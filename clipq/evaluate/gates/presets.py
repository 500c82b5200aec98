"""Rules that have a name together, and how named and single rules combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipq.errors import unknown_name
from clipq.evaluate.gates.gate import Gate
from clipq.evaluate.gates.parse import parse_gate

PRESETS: Mapping[str, tuple[str, ...]] = {
    "default": ("acc1.delta_pp<-1.0", "ece15.delta>0.01", "mcm.auroc.delta<-0.01"),
    "mlperf-99": ("acc1:percent-max-degradation=1",),  # MLPerf Inference: at least 99 % of the FP32 reference's accuracy
    "mlperf-99.9": ("acc1:percent-max-degradation=0.1",),
    "non-inferior": ("acc1:non-inferior=0.01", "ece15:non-inferior=0.01", "mcm.auroc:non-inferior=0.01"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that were asked for together.

    Attributes:
        preset: Their name, or None for a single rule.
        gates: At least one.
        required: An engine for which none of them concerns anything measured fails.
    """

    preset: str | None
    gates: tuple[Gate, ...]
    required: bool = True


def read_gates(rules: Iterable[str] = (), presets: Iterable[str] = ()) -> list[Group]:
    """Return what has to be judged: each rule, then each preset without the rules that were named before.

    With neither, the default gates, of which an engine need not have been measured for any.

    Raises:
        UsageError: A rule cannot be read, or a preset is unknown; the line names the nearest.
    """
    groups = [Group(None, (parse_gate(rule),)) for rule in rules]
    for name in presets:
        if name not in PRESETS:
            raise unknown_name("preset of gates", name, PRESETS)
        groups.append(_preset(name))
    return _without_repeats(groups) or [replace(_preset("default"), required=False)]


def _preset(name: str) -> Group:
    return Group(name, tuple(parse_gate(rule) for rule in PRESETS[name]))


def _without_repeats(groups: Sequence[Group]) -> list[Group]:
    seen: set[str] = set()
    kept = []
    for group in groups:
        gates = tuple(gate for gate in group.gates if gate.rule not in seen)
        seen |= {gate.rule for gate in gates}
        if gates:
            kept.append(replace(group, gates=gates))
    return kept


def describe_gates(groups: Sequence[Group]) -> dict[str, Any]:
    """Return ``provenance["gates"]``: the presets by name, and every rule that was judged."""
    return {
        "presets": [group.preset for group in groups if group.preset is not None],
        "rules": [gate.rule for group in groups for gate in group.gates],
    }
