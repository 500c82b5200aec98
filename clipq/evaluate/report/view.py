"""What the page and the Markdown say in words: verdict cards, facts, notes on sample size, glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from clipq.evaluate.correction import FAMILY
from clipq.evaluate.metrics.calibration import ECE_CHANCES, ece_by_chance
from clipq.evaluate.report import tables
from clipq.evaluate.report.format import difference, interval, quantity, ratio
from clipq.evaluate.report.names import BENCH, METRICS, OOD_METRICS, PAIRED, RETRIEVAL, SCORES, Quantity
from clipq.evaluate.report.ran import in_words, proof_of
from clipq.evaluate.report.robustness import robustness_glossary
from clipq.evaluate.report.spectral import spectral_keys
from clipq.evaluate.report.spectral_names import SPECTRAL

OUTCOMES = {
    "ship": ("Ship", "Every gate passes, and the sample is large enough to show it."),
    "not shown": ("Not shown", "No gate fails, but the sample is too small to show that nothing is lost."),
    "do not ship": ("Do not ship", "At least one gate fails."),
}
TESTS = "Exact McNemar (mid-p) for top-1 and top-5 accuracy, DeLong for AUROC, the bootstrap for all others"
_SHOWN_REASONS = 2
_ECE_WARNING = (
    " That is close to chance: the ECE and its interval lie too high, and differences between engines come out too small. "
    "The Brier score and the over-confidence have no such bias; more images lessen it."
)


@dataclass(frozen=True, slots=True)
class Card:
    """The verdict on one engine.

    Attributes:
        engine: Its id.
        outcome: As in the report.
        word: The outcome in words, ``sentence`` explains it.
        sentence: See ``word``.
        figures: (label, value, remark).
        reasons: What decided, and a fallback that was allowed.
        more: The rest of why.
        domination: Which engine is the better choice here and why; empty where none is.
    """

    engine: str
    outcome: str
    word: str
    sentence: str
    figures: list[tuple[str, str, str]]
    reasons: list[str]
    more: list[str]
    domination: str


def cards(report: Mapping[str, Any]) -> list[Card]:
    """Return the verdicts, engines that may ship first."""
    order = list(OUTCOMES)
    made = []
    for engine, verdict in report["verdict"].items():
        outcome = verdict.get("outcome") or ("ship" if verdict["ship"] else "do not ship")
        word, sentence = OUTCOMES[outcome]
        decisive = {"ship": "", "not shown": "unproven", "do not ship": "fail"}[outcome]
        reasons = [gate["why"] for gate in report["gates"] if gate["engine"] == engine and gate["outcome"] == decisive][:_SHOWN_REASONS]
        layers = proof_of(report["engines"][engine]) or {}
        reasons = [layers["note"], *reasons] if layers.get("fallback") else reasons
        domination = next((why for why in verdict["why"] if why.startswith("dominated by ")), "")
        more = [reason for reason in verdict["why"] if reason not in {*reasons, domination}]
        made.append(Card(engine, outcome, word, sentence, _figures(report, engine), reasons, more, domination))
    return sorted(made, key=lambda card: order.index(card.outcome))


def _figures(report: Mapping[str, Any], engine: str) -> list[tuple[str, str, str]]:
    return [figure for found in worst_differences(report, engine).values() for figure in found] + _speed(report, engine)


def worst_differences(report: Mapping[str, Any], engine: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return label -> the (label, difference, interval) of the data set where it is worst, none or one: accuracy, ECE and AUROC of MCM."""
    worst = {}
    for metric in ("acc1", "ece15"):
        found = {data: metrics[metric] for data, metrics in report["results"].get(engine, {}).items() if metric in metrics}
        worst[METRICS[metric].label] = _worst(found, METRICS[metric])
    found = {pair: scores["mcm"]["auroc"] for pair, scores in report["ood"].get(engine, {}).items() if "auroc" in scores.get("mcm", {})}
    return {**worst, OOD_METRICS["auroc"].label: _worst(found, OOD_METRICS["auroc"])}


def _worst(found: Mapping[str, Mapping[str, Any]], kind: Quantity) -> list[tuple[str, str, str]]:
    known = {data: entry for data, entry in found.items() if entry["delta"] is not None}
    if not known:
        return []
    sign = 1 if kind.better == "high" else -1
    data = min(known, key=lambda name: sign * known[name]["delta"])
    label = kind.label + (f", worst of {len(known)}" if len(known) > 1 else "")
    return [(label, difference(known[data]["delta"], kind.unit), interval(known[data]["delta_ci95"], kind.unit, signed=True))]


def _speed(report: Mapping[str, Any], engine: str) -> list[tuple[str, str, str]]:
    ours, base = report["bench"].get(engine, {}), report["bench"].get(report["baseline"], {})
    figures = []
    of_int8 = " of INT8" if report["engines"].get(engine, {}).get("simulated") else ""
    for name in ours:
        if name != "artefact" and name in base:
            label, seconds = f"Speed{of_int8}, batch {ours[name]['batch']}", ours[name]["p50_s"]
            figures.append((label, ratio(base[name]["p50_s"] / seconds), f"{quantity(seconds, 'seconds')}"))
    size, base_size = tables.size_bytes(report, engine), tables.size_bytes(report, report["baseline"])
    if size and base_size:
        figures.append((f"Size{of_int8}", ratio(size / base_size), quantity(size, "bytes")))
    elif size:
        figures.append((f"Size{of_int8}", quantity(size, "bytes"), ""))
    return figures


def headline(report: Mapping[str, Any]) -> str:
    """Return the answer: how many engines may ship, which of them is the fastest, and which are pointless here."""
    if report["provenance"]["model"].get("random_weights"):
        return "Random weights: this tells how fast and how close to FP32 the engines are, not whether they may ship."
    outcomes = {card.engine: card.outcome for card in cards(report)}
    if not outcomes:
        return "No engine was judged."
    return " ".join([who_may_ship(report, outcomes), *_pointless(report)])


def _pointless(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each quantized engine that a wider one dominates: what a reader of the verdicts alone would not expect."""
    narrow = {engine for engine, entry in report["engines"].items() if entry["precision"] in {"int8", "fp8"}}
    pairs = {engine: verdict.get("dominated_by") for engine, verdict in report["verdict"].items()}
    return [f"{engine} is dominated by {by} here." for engine, by in pairs.items() if engine in narrow and by and by not in narrow]


def who_may_ship(report: Mapping[str, Any], outcomes: Mapping[str, str]) -> str:
    """Return how many engines may ship and the fastest of them; ``outcomes`` is engine -> outcome of the verdict."""
    ready = [engine for engine, outcome in outcomes.items() if outcome == "ship"]
    if not ready:
        return "No engine is shown to be fit to ship." if "not shown" in outcomes.values() else "No engine may ship."
    open_cases = sum(outcome == "not shown" for outcome in outcomes.values())
    text = f"{len(ready)} of {len(outcomes)} engines may ship" + (f", {open_cases} not shown." if open_cases else ".")
    own = [engine for engine in ready if not report["engines"].get(engine, {}).get("simulated")]  # the others run at INT8's speed
    times = {e: report["bench"].get(e, {}).get("image-b1", {}).get("p50_s") for e in own}
    timed = {e: t for e, t in times.items() if t}
    return text + (f" The fastest that may is {min(timed, key=lambda e: timed[e])}." if timed else "")


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was compared, as (term, text)."""
    origin = report["provenance"]
    model = origin["model"]
    found = [("Model", model["id"]), ("Baseline", f"{report['baseline']}: every difference is to it, on the same images")]
    if "logit_scale" in model:
        found.append(
            (
                "Logit scale",
                f"{model['logit_scale']:.2f}" + (f", bias {model['logit_bias']:.2f}" if model.get("logit_bias") is not None else ""),
            )
        )
    for data, entry in report["datasets"].items():
        classes = f", {entry['classes']:,} classes" if entry["classes"] else ""
        skipped = f", {len(entry['skipped']):,} more could not be read" if entry["skipped"] else ""
        found.append((f"Data: {data}", f"{entry['n']:,} images{classes}{skipped}"))
    found += [(f"Left out: {engine_id}", why) for engine_id, why in origin.get("left_out", {}).items()]
    found += _suite_facts(origin.get("suite"))
    found += [("Machine", plain(origin.get("device", {}))), ("Date", origin["created"]), ("Versions", plain(origin.get("versions", {})))]
    if origin.get("resamples"):
        resamples = f"{origin['resamples']:,} resamples, seed {origin.get('seed', '?')}"
        found.append(("Intervals", f"95 %, paired bootstrap: BCa for means and AUROC, percentile for all others; {resamples}"))
        found.append(("Tests", f"{TESTS}. p-values are corrected (Holm) over {FAMILY}"))
        found.append(("No interval", "; ".join(METRICS[metric].label for metric in _without_interval(report))))
    return [(term, text) for term, text in found if text]


def _suite_facts(suite: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return which suite asked for this, what replaced a part of it, and which of its data sets are not here."""
    if suite is None:
        return []
    other = f", with its own {', '.join(suite['replaced'])} replaced" if suite.get("replaced") else ""
    missing = [(f"Left out: {data}", why) for data, why in suite["left_out"].items()]
    return [("Suite", f"{suite['name']} (sha256 {suite['sha256'][:12]}){other}"), *missing]


def _without_interval(report: Mapping[str, Any]) -> list[str]:
    """Return the metrics that were measured and have no interval anywhere, in the order of ``METRICS``."""
    entries = [(metric, entry) for results in report["results"].values() for own in results.values() for metric, entry in own.items()]
    known = {metric for metric, entry in entries if entry["ci95"] is not None}
    measured = {metric for metric, entry in entries if entry["value"] is not None}
    return [metric for metric in METRICS if metric in measured - known]


def plain(value: Any) -> str:
    """Return nested JSON as one readable line."""
    if isinstance(value, Mapping):
        return ", ".join(_named(str(key), item) for key, item in value.items() if item not in (None, "", {}, []))
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def _named(key: str, value: Any) -> str:
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{key.removesuffix('_bytes')} {quantity(value, 'bytes')}"
    return f"{key.replace('_', ' ')} {plain(value)}"


def engine_facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what ran, engine by engine, with the beginning of each file's hash."""
    found = []
    for engine, entry in report["engines"].items():
        files = "; ".join(f"{name} sha256 {digest[:12]}" for name, digest in entry["sha256"].items())
        found.append(
            (
                engine,
                ". ".join(
                    part
                    for part in (
                        _arm(entry),
                        f"{entry['runtime']}, {entry['provider']}, {entry['precision']}",
                        _simulated(entry),
                        in_words(entry),
                        files,
                    )
                    if part
                ),
            )
        )
    return found


def _simulated(entry: Mapping[str, Any]) -> str:
    """Return that an engine computes in more bits than it stands for, or nothing."""
    return "Simulated: fewer than 8 bits, computed in INT8; speed and size are those of INT8" if entry.get("simulated") else ""


def _arm(entry: Mapping[str, Any]) -> str:
    """Return whose embeddings an arm has and where its scale comes from; nothing of an engine itself."""
    if "arm_of" not in entry:
        return ""
    tuned = entry["tuned_on"]
    return f"{entry['arm_of']} with logit scale {entry['logit_scale']:.4g}, fitted on {tuned['n']:,} images of {tuned['data']}"


def skipped(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (data, image and reason) for every image that could not be read."""
    found = []
    for data, entry in report["datasets"].items():
        for item in entry["skipped"]:
            text = item if isinstance(item, str) else f"{item['id']}: {item.get('reason', 'unreadable')}"
            found.append((data, text))
    return found


def sample_notes(report: Mapping[str, Any], rows: Mapping[tuple[str, str, str], Mapping[str, npt.NDArray[Any]]]) -> list[str]:
    """Return, per labelled data set, how much of the ECE is there by chance at this n; ``rows`` as ``samples.grouped`` gives them."""
    notes = []
    baseline = report["baseline"]
    for data in tables.labelled(report):
        if (baseline, data, data) in rows:
            confidence = rows[baseline, data, data]["confidence"]
            value, by_chance = report["results"][baseline][data].get("ece15", {}).get("value"), ece_by_chance(confidence)
            shown, chance = quantity(value, "fraction"), quantity(by_chance, "fraction")
            notes.append(
                f"{data}, n = {len(confidence):,}: a perfectly calibrated model with these confidences would show an ECE-15 "
                f"of {chance} by chance alone; {baseline} shows {shown}."
                + (_ECE_WARNING if value is not None and value < ECE_CHANCES * by_chance else "")
            )
    return notes


def glossary(report: Mapping[str, Any]) -> list[tuple[str, Quantity]]:
    """Return every quantity this report shows, as (key, quantity)."""
    keys = {metric for data in tables.labelled(report) for metric in tables.measured_metrics(report, data)}
    keys |= {metric for pair in tables.pairs(report) for metric in tables.ood_metrics(report, pair)}
    keys |= {score for scored in report["ood"].values() for scores in scored.values() for score in scores}
    keys |= {key for values in report["paired"].values() for entry in values.values() for key in entry}
    keys |= {key for values in report["bench"].values() for scenario in values.values() for key in scenario}
    keys |= spectral_keys(report)
    keys |= {key for data in report.get("retrieval", {}).values() for entry in data.values() for key in entry}
    everything = {**METRICS, **OOD_METRICS, **SCORES, **PAIRED, **RETRIEVAL, **SPECTRAL, **BENCH}
    return [(key, kind) for key, kind in everything.items() if key in keys] + robustness_glossary(report)
