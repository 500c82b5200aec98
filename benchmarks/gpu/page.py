"""The tables of docs/results/gpu.md from a record; what stands around them is written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schedule import BATCH_SIZES, PHOTO_MODELS, SPEED_MODELS
from targets import latencies, result_of

from clipq.files import write_text

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
NONE = "–"


def write_page(page: Path, record: Mapping[str, Any], name: str) -> None:
    """Put the tables between the two marks of a page; one that is not there becomes a page of tables alone."""
    before, after = "# GPU\n\n", "\n"
    if page.is_file():
        before, rest = page.read_text().split(BEGIN)
        after = rest.split(END)[1]
    write_text(page, f"{before}{BEGIN}\n{tables(record, name)}\n{END}{after}")


def tables(record: Mapping[str, Any], name: str) -> str:
    """Return everything that a record says, as Markdown: the machine, targets, speed, plans, reliability, what did not run."""
    outcomes = record["parts"]
    lines = [*_head(record, name), *_targets(record["targets"])]
    models = [name.removeprefix("build ") for name in outcomes if name.startswith("build ")] or SPEED_MODELS
    for model in models:
        lines += [
            *_latency(outcomes, model),
            *_ratios(outcomes, model),
            *_loops(outcomes, model),
            *_plans(outcomes, model),
            *_layers(outcomes, model),
        ]
    lines += _reliability(outcomes)
    return "\n".join([*lines, *_rest(record)])


def _head(record: Mapping[str, Any], name: str) -> list[str]:
    device = record["device"]
    said = (
        f"{device['name']}, compute capability {device['sm']}, driver {device['driver']}"
        if device
        else "**no GPU: a rehearsal, no figure**"
    )
    lines = [f"Recorded {record['created']} on {said}; record `{name}`.", ""]
    for python, host in record["pythons"].items():
        versions = ", ".join(f"{library} {version}" for library, version in host.get("versions", {}).items())
        lines.append(f"- Python of {python}: {host.get('machine', {}).get('python', NONE)}; {versions or host.get('failed', NONE)}")
    return lines


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return ["", f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _targets(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    return _table(
        "Targets", ["target", "model", "outcome", "why"], [[t["target"], t["model"], f"**{t['outcome']}**", t["why"]] for t in targets]
    )


def _latency(outcomes: Mapping[str, Any], model: str) -> list[str]:
    first, second = (
        {e: v for found in latencies(outcomes, model, again=again) for e, v in found["bench"].items()} for again in (False, True)
    )
    columns = ["engine", "batch", "device p50 [95 %]", "p90", "p99", "wall p50 [95 %]", "images/s by wall", "again, device p50"]
    rows = []
    for engine, scenarios in first.items():
        for size in BATCH_SIZES:
            wall, device = (scenarios.get(f"image-b{size}{end}") for end in ("", "-device"))
            if wall is None:
                continue
            repeated = second.get(engine, {}).get(f"image-b{size}-device")
            tail = [_ms(device and device["p90_s"]), _ms(device and device["p99_s"])]
            rate = f"{wall['images_per_s']:,.0f}"
            rows.append([engine, str(size), _with_interval(device), *tail, _with_interval(wall), rate, _ms(repeated and repeated["p50_s"])])
    return _table(f"Latency of {model}, milliseconds", columns, rows)


def _with_interval(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return NONE
    low, high = summary["p50_s_ci95"]
    return f"{_ms(summary['p50_s'])} [{_ms(low)}, {_ms(high)}]"


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1000 * seconds:.3f}"


def _ratios(outcomes: Mapping[str, Any], model: str) -> list[str]:
    rows = []
    for found in latencies(outcomes, model):
        for scenario, ratio in found["int8_over_fp16"].items():
            low, high = ratio["ci95"]
            rows.append([scenario, f"{ratio['value']:.2f} [{low:.2f}, {high:.2f}]", str(ratio["turns"])])
    return _table(f"trt-int8 on {model}, times as fast as trt-fp16", ["scenario", "ratio of medians [95 %]", "turns"], rows)


def _loops(outcomes: Mapping[str, Any], model: str) -> list[str]:
    found = (result_of(outcomes, f"bare loop {model}") or {"loops": {}})["loops"]
    rows = []
    for engine, sizes in found.items():
        for size, times in sizes.items():
            p50 = [_ms(times[f"{name}_p50_s"]) for name in ("ours", "bare")] + [_ms(times.get("replayed_p50_s"))]
            trtexec = _ms(times["trtexec"]["p50_s"]) if "p50_s" in times["trtexec"] else times["trtexec"]["missing"]
            rows.append([engine, size, *p50, trtexec, f"{100 * (times['ours_over_bare']['value'] - 1):+.1f}"])
    columns = ["engine", "batch", "ours", "bare loop", "ours as a CUDA graph", "trtexec", "ours over bare, %"]
    return _table(f"The same plans of {model} by other hands, device p50 in milliseconds", columns, rows)


def _plans(outcomes: Mapping[str, Any], model: str) -> list[str]:
    built = result_of(outcomes, f"build {model}") or {"plans": {}}
    rows = [
        [engine, tower, f"{facts['size_bytes'] / 1e6:.1f}", f"{facts['build_seconds']:.1f}", str(facts["layers"])]
        for engine, towers in built["plans"].items()
        for tower, facts in towers.items()
    ]
    return _table(f"Plans of {model}", ["engine", "tower", "size, MB", "build, s", "layers of the network"], rows)


def _layers(outcomes: Mapping[str, Any], model: str) -> list[str]:
    found = (result_of(outcomes, f"layers {model}") or {"layers": {}})["layers"]
    rows = []
    for engine, summary in found.items():
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in summary["multiply_adds"].items())
        rows.append([engine, shares or "unknown", summary["attention"], str(summary["reformats"]), summary.get("note", "")])
    return _table(f"Layers that ran, {model}", ["engine", "multiply-adds", "attention", "reformats", "remark"], rows)


def _reliability(outcomes: Mapping[str, Any]) -> list[str]:
    rows = [row for name in outcomes if name.startswith("suite ") for row in _suite_rows(result_of(outcomes, name))]
    columns = ["model", "data", "engine", "top-1", "ECE-15", "confidence - accuracy", "disagreement %", "centred cosine", "verdict"]
    ood = [row for name in outcomes if name.startswith("suite ") for row in _ood_rows(result_of(outcomes, name))]
    against = ["model", "ID against OOD", "engine", "MCM", "max logit", "energy"]
    title = "Reliability against FP32 PyTorch, percent, difference in points with its 95 % interval"
    return [*_table(title, columns, rows), *_table("OOD detection, AUROC in percent", against, ood)]


def _suite_rows(result: Mapping[str, Any] | None) -> Iterator[list[str]]:
    for engine, sets in (result or {"paired": {}})["paired"].items():
        for data, paired in sets.items():
            found = result["results"][engine][data]  # type: ignore[index]
            figures = [_points(found[metric]) for metric in ("acc1", "ece15", "signed_gap")]
            close = [f"{100 * paired['disagreement']:.2f}", f"{paired['cosine_centred_mean']:.4f}"]
            yield [_model(result), _short(data), engine, *figures, *close, result["verdict"][engine]["outcome"]]  # type: ignore[index]


def _ood_rows(result: Mapping[str, Any] | None) -> Iterator[list[str]]:
    for engine, pairs in (result or {"ood": {}})["ood"].items():
        for pair, scores in pairs.items():
            yield [_model(result), " / ".join(map(_short, pair.split("|"))), engine, *(_points(scores[score]) for score in scores)]


def _model(result: Mapping[str, Any] | None) -> str:
    text = str(result["model"]) if result else NONE
    return next((name for name in PHOTO_MODELS if text.endswith(name)), text)


def _short(data: str) -> str:
    return data.split(":")[1].rsplit("/", 1)[-1]


def _points(entry: Mapping[str, Any]) -> str:
    text = f"{100 * entry['value']:.2f}"
    if entry["delta"] is None or entry["delta_ci95"] is None:
        return text
    low, high = entry["delta_ci95"]
    return f"{text} ({100 * entry['delta']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}])"


def _rest(record: Mapping[str, Any]) -> list[str]:
    """Return everything that did not run, with its reason."""
    left_out: dict[str, list[str]] = {}
    for engine, reason in record["engines_left_out"].items():
        left_out.setdefault(reason, []).append(engine)
    lines = [f"- {', '.join(engines)}: {reason}" for reason, engines in left_out.items()]
    for name, part in record["parts"].items():
        if part["status"] != "done":
            lines.append(f"- {name}: {part['status']}: {part['why']}")
        else:
            lines += [f"- {name}, {what}: {why}" for what, why in (part["result"].get("failed") or {}).items()]
    return ["", "### What did not run", "", *lines] if lines else []
