"""Rules that have a name together, and how named and single rules combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipq.errors import UsageError, unknown_name
from clipq.evaluate.gates.gate import Gate
from clipq.evaluate.gates.parse import parse_gate

PRESETS: Mapping[str, tuple[str, ...]] = {
    "default": ("acc1.delta_pp<-1.0", "ece15.delta>0.01", "mcm.auroc.delta<-0.01"),
    "mlperf-99": ("acc1:percent-max-degradation=1",),  # MLPerf Inference: at least 99 % of the FP32 reference's accuracy
    "mlperf-99.9": ("acc1:percent-max-degradation=0.1",),
    "non-inferior": ("acc1:non-inferior=0.01", "ece15:non-inferior=0.01", "mcm.auroc:non-inferior=0.01"),
}

OF_FP32 = ("mlperf-99", "mlperf-99.9")  # presets whose rules mean what they say beside an FP32 baseline alone


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


def check_baseline(presets: Iterable[str], baselines: Mapping[str, str]) -> None:
    """Refuse presets that are about FP32 where something else is the baseline.

    Args:
        presets: Names.
        baselines: What engines are compared with, by id, and its precision.

    Raises:
        UsageError: MLPerf's 99 % are of the FP32 reference, and a baseline is not FP32.
    """
    named = [name for name in presets if name in OF_FP32]
    other = [f"{engine}, {precision}" for engine, precision in baselines.items() if precision != "fp32"]
    if named and other:
        raise UsageError(
            f"{named[0]} is about the accuracy of the FP32 reference",
            found=f"the baseline {other[0]}",
            expected="a baseline in FP32",
            fix=f"Choose one, or write the rule itself, {PRESETS[named[0]][0]}, which takes the baseline as it is.",
        )


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
