"""How ``clipq compare`` prints what a device does otherwise than the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.evaluate.report.format import quantity


def verification_summary(comparison: Mapping[str, Any]) -> str:
    """Return the differences of two verifications, or of a report and a verification, as plain text, then the gates."""
    found = comparison["verification"]
    lines = [f"compared with {comparison['baseline']}"]
    for engine, entry in found["engines"].items():
        files = "the same files" if entry["same_files"] else "other files"
        lines += ["", f"{engine}: {files}"]
        lines += [_line(f"{tower} {name}", *values) for tower, row in entry["golden"].items() for name, values in row.items()]
        lines.append(_line("top-1 agreement", *entry["top1_agreement"]))
        lines += _latency(comparison["bench_first"][engine], comparison["bench"][engine])
        lines += [f"  {line}" for line in entry["thresholds"]]
    lines += ["", f"preprocessing: {' then '.join(map(_pixels, found['preprocessing']))}"]
    lines += [f"{engine} is only in the first: {found['left_out'].get(engine, 'not verified')}" for engine in found["only_first"]]
    lines += [f"{side}: {line}" for side, own in zip(("first", "second"), found["problems"], strict=True) for line in own]
    gates = [f"{gate['outcome']}: {gate['engine']}: {gate['why']} ({gate['rule']})" for gate in comparison["gates"]]
    return "\n".join([*lines, "", *gates] if gates else lines)


def _line(name: str, first: float | None, second: float | None) -> str:
    texts = ["-" if value is None else f"{value:.6g}" for value in (first, second)]
    return f"  {name:<24}{texts[0]:>14}{texts[1]:>14}"


def _latency(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, values in second.items():
        if name in first and name != "artefact":
            times = [quantity(side["p50_s"], "seconds") for side in (first[name], values)]
            lines.append(f"  {name + ' p50':<24}{times[0]:>14}{times[1]:>14}  {values['p50_s'] / first[name]['p50_s']:.2f} times")
    return lines


def _pixels(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not compared with open_clip"
    if found["identical"]:
        return "open_clip's pixels"
    return f"{len(found['different'])} of {found['pictures']} pictures differ, by {found['max_difference_levels']:.3g} grey levels at most"
