"""What a search found, as JSON for the bundle and as a table for the reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipq.export.keep import NEEDS, SENSITIVITY, Bound, KeepRequest
from clipq.sensitivity.damage import OOD_METRIC, OOD_SCORE, interval, levels
from clipq.sensitivity.found import Found
from clipq.sensitivity.lab import Block, Lab, Step

SCHEMA = "clipq.sensitivity/1"
_SHOWN = 24  # a ViT-L has 96
_HELD = (
    "Bounds are held by the point estimates on these calibration images, which also set the ranges; that proves nothing about other "
    "images: judge the engine with clipq eval."
)
_MEASURED = "ONNX Runtime, CPU provider, the static INT8 graph; what is kept and all the rest in FP32"


def facts_of(request: KeepRequest, lab: Lab, found: Found) -> dict[str, Any]:
    """Return everything that was measured as JSON; every number but ``fp32`` is a worsening (see ``clipq.sensitivity.damage``)."""
    kept, total, ranking = found.steps[-1].kept, sum(block.multiply_adds for block in lab.blocks), found.ranking
    blocks = sorted(lab.blocks, key=lambda block: ranking.severity(block, found.ranked_by), reverse=True) if ranking else lab.blocks
    seed = request.recipe.seed
    return {
        "schema": SCHEMA,
        "measured": _MEASURED,
        "fpr95": f"{OOD_METRIC} of {OOD_SCORE}",
        "data": dict(lab.data.facts),
        "fp32": levels(lab.before),
        "ranked_by": found.ranked_by,
        "blocks": [_block(block, found, total) for block in blocks],
        "steps": [{"kept": list(map(str, step.kept)), "damage": dict(step.damage)} for step in found.steps],
        "bounds": [_bound(bound, lab, found, seed) for bound in found.bounds],
        "bounds_mean": _HELD if found.bounds else "no bound was asked for: nothing is kept",
        "kept_multiply_adds": sum(block.multiply_adds for block in kept) / total,
    }


def _block(block: Block, found: Found, total: int) -> dict[str, Any]:
    return {
        "tower": block.tower,
        "block": block.name,
        "nodes": list(block.nodes),
        "multiply_adds": block.multiply_adds / total,
        "damage": dict(found.ranking.damage[block]) if found.ranking else {},
        "kept": block in found.steps[-1].kept,
    }


def _bound(bound: Bound, lab: Lab, found: Found, seed: int) -> dict[str, Any]:
    first, last = (_measured(bound.metric, lab, step, seed) for step in (found.steps[0], found.steps[-1]))
    return {"metric": bound.metric, "bound": bound.value, "all_quantized": first, "result": last, "shown": last["ci95"][1] <= bound.value}


def _measured(metric: str, lab: Lab, step: Step, seed: int) -> dict[str, Any]:
    ends, n = interval(metric, lab.before, lab.reading(step.kept), seed)
    return {"worsening": step.damage[metric], "ci95": list(ends), "n": n}


def table(facts: Mapping[str, Any]) -> str:
    """Return the facts as Markdown: the blocks by damage, then one line per bound."""
    data = facts["data"]
    ood = f" and {data['ood_images']} OOD images of {data['calib_ood']}" if data["calib_ood"] else ""
    where = f"{data['images']} calibration images of {data['calib']}{ood}"
    ranked = bool(facts["blocks"][0]["damage"])
    lines = [f"Each block quantized alone, on {where}:", "", *_rows(facts), ""] if ranked else [f"On {where}:"]
    lines += [_sentence(bound) for bound in facts["bounds"]]
    kept = [f"{entry['tower']} {entry['block']}" for entry in facts["blocks"] if entry["kept"]]
    share = f"{100 * facts['kept_multiply_adds']:.1f} % of the multiply-adds that could be INT8"
    return "\n".join([*lines, f"Kept unquantized: {', '.join(kept)}; {share}." if kept else "Kept unquantized: nothing."])


def _rows(facts: Mapping[str, Any]) -> Sequence[str]:
    metrics = [name for name in NEEDS if name in facts["blocks"][0]["damage"]]
    header = ["tower", "block", "multiply-adds %", *map(_title, metrics), "kept"]
    rows = [
        [
            entry["tower"],
            entry["block"],
            f"{100 * entry['multiply_adds']:.1f}",
            *(_number(name, entry["damage"][name]) for name in metrics),
            "yes" if entry["kept"] else "",
        ]
        for entry in facts["blocks"][:_SHOWN]
    ]
    more = [f"{len(facts['blocks']) - _SHOWN} more stand in {SENSITIVITY}."] if len(facts["blocks"]) > _SHOWN else []
    return [*(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]), *more]


def _title(metric: str) -> str:
    """Return a column's title: losses of cosine as they are, all others in percent points."""
    return f"{metric} loss" if metric.startswith("cosine") else f"{metric} pp"


def _number(metric: str, value: float) -> str:
    return f"{value:.2e}" if metric.startswith("cosine") else f"{100 * value:+.2f}"


def _sentence(bound: Mapping[str, Any]) -> str:
    name, first, last = bound["metric"], bound["all_quantized"], bound["result"]
    low, high = (f"{end:+.4g}" for end in last["ci95"])
    return (
        f"{name}: worse by {last['worsening']:+.4g} [{low}, {high}] (n = {last['n']}), within {bound['bound']:g}"
        f"{'' if bound['shown'] else ', which so few images cannot show'}; by {first['worsening']:+.4g} with everything quantized"
    )
