"""What a device does otherwise than the host: two verifications, or a report and a verification, in a shape that gates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipq.errors import ClipqError, unknown_name
from clipq.evaluate.difference import SCHEMA
from clipq.evaluate.verify.read import read_record

GOLDEN = "golden images"  # stands where a comparison of reports has a data set
_FIGURES = ("cosine_mean", "min_cosine", "max_abs_error")
Record = Mapping[str, Any]


def between_records(first: Path, second: Path, engines: Sequence[str] = ()) -> dict[str, Any]:
    """Return what differs between the host's record and the device's.

    Gates read it as a comparison of reports: ``paired`` holds how far the device's engines are from FP32 PyTorch on the golden images
    (``cosine_mean``, ``cosine_min``, ``disagreement``), ``bench`` and ``bench_first`` the latencies. ``verification`` holds, for
    engines, golden figures and preprocessing, the host's value and the device's.

    Args:
        first: Of the host: a verification or a report.
        second: Of the device: a verification.
        engines: Which engines; empty means all that both have.

    Raises:
        UsageError: There is no such file, or an engine is not in both.
        ClipqError: A record cannot be read, is of another model, or they share no engine.
    """
    a, b = read_record(first), read_record(second)
    models = [record["provenance"]["model"] for record in (a, b)]
    if models[0].get("state_sha256") != models[1].get("state_sha256"):
        raise ClipqError("the two records are of different models", found=f"{models[0]['id']} and {models[1]['id']} of other weights")
    shared = [name for name in b["engines"] if name in a["engines"]]
    if not shared:
        raise ClipqError("the two records share no engine", found=f"{', '.join(a['engines'])} and {', '.join(b['engines'])}")
    for name in engines:
        if name not in shared:
            raise unknown_name("engine of both records", name, shared)
    chosen = list(engines) or shared
    return {
        "schema": SCHEMA,
        "baseline": str(first),
        "second": str(second),
        "engines": {name: b["engines"][name] for name in chosen},
        **{part: {} for part in ("datasets", "results", "ood", "ood_means", "retrieval", "robustness")},
        "paired": {name: {GOLDEN: found} for name in chosen if (found := _from_pytorch(b["engines"][name]))},
        "bench": {name: b["bench"].get(name, {}) for name in chosen},
        "bench_first": {name: a["bench"].get(name, {}) for name in chosen},
        "verification": {
            "engines": {name: _engine(a["engines"][name], b["engines"][name]) for name in chosen},
            "preprocessing": [a.get("preprocessing"), b.get("preprocessing")],
            "only_first": [name for name in a["engines"] if name not in b["engines"]],
            "left_out": dict(b.get("left_out", {})),
            "problems": [list(record.get("problems", [])) for record in (a, b)],
        },
    }


def _from_pytorch(entry: Record) -> dict[str, float]:
    """Return how far a device's engine is from FP32 PyTorch, by the names that gates have; empty where it was not verified."""
    if "golden" not in entry:
        return {}
    image = entry["golden"]["towers"]["image"]
    return {"cosine_mean": image["cosine_mean"], "cosine_min": image["min_cosine"], "disagreement": 1 - entry["golden"]["top1_agreement"]}


def _engine(first: Record, second: Record) -> dict[str, Any]:
    """Return the host's value and the device's of everything that may differ."""
    sides = [entry.get("golden", {}) for entry in (first, second)]
    towers = [side.get("towers", {}) for side in sides]
    names = list(dict.fromkeys([*towers[0], *towers[1]]))
    return {
        "same_files": first["sha256"] == second["sha256"],
        "top1_agreement": [side.get("top1_agreement") for side in sides],
        "golden": {name: {key: [tower.get(name, {}).get(key) for tower in towers] for key in _FIGURES} for name in names},
        "thresholds": _thresholds(first.get("thresholds") or {}, second.get("thresholds") or {}),
    }


def _thresholds(first: Record, second: Record) -> list[str]:
    """Return a line for every threshold that keeps another number of golden pictures, or is another one."""
    both = [
        (data, score, scores[score], found)
        for data, scores in first.items()
        for score, found in second.get(data, {}).items()
        if score in scores and found != scores[score]
    ]
    return [f"{score} on {data} keeps {_kept(old)}, then {_kept(new)}" for data, score, old, new in both]


def _kept(entry: Record) -> str:
    return f"{'?' if entry['kept'] is None else entry['kept']} pictures at {entry['threshold']:.6g}"
