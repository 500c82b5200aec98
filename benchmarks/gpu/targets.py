"""What was aimed at, held against a record: met, missed with the reason that the layers give, or not measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from schedule import SPEED_MODELS

FASTER, NEAR, SHARE = 1.3, 0.02, 0.9


def targets(outcomes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every target with ``outcome`` (``met``, ``missed`` or ``not measured``), the figures and one sentence."""
    return [found for model in SPEED_MODELS for found in (_int8(outcomes, model), _near(outcomes, model), _share(outcomes, model))]


def result_of(outcomes: Mapping[str, Any], name: str) -> Any:
    """Return the result of a part that was done, or None."""
    found = outcomes.get(name, {})
    return found.get("result") if found.get("status") == "done" else None


def latencies(outcomes: Mapping[str, Any], model: str, *, again: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the results of a model's latency parts, of the first time or of the repetition."""
    for python in ("", " (torch)", " (tensorrt)"):
        found = result_of(outcomes, f"latency {model}{python}{' again' if again else ''}")
        if found:
            yield found


def _target(name: str, model: str, outcome: str, why: str, **figures: Any) -> dict[str, Any]:
    return {"target": name, "model": model, "outcome": outcome, "why": why, **figures}


def _missing(outcomes: Mapping[str, Any], prefix: str) -> str:
    reasons = [f"{name}: {found.get('why', found['status'])}" for name, found in outcomes.items() if name.startswith(prefix)]
    return "; ".join(reasons) or f"no part {prefix!r} ran"


def _int8(outcomes: Mapping[str, Any], model: str) -> dict[str, Any]:
    name = f"INT8 at least {FASTER}x FP16 at batch 32 (device)"
    ratio = next((r for r in (found["int8_over_fp16"].get("image-b32-device") for found in latencies(outcomes, model)) if r), None)
    if ratio is None:
        return _target(name, model, "not measured", _missing(outcomes, f"latency {model}"))
    low, high = ratio["ci95"]
    shown = f"{ratio['value']:.2f}x [{low:.2f}, {high:.2f}]"
    if ratio["value"] >= FASTER:
        return _target(name, model, "met", shown, ratio=ratio)
    proof = (result_of(outcomes, f"layers {model}") or {}).get("layers", {})
    verdict = "INT8 is dominated by FP16 here" if ratio["value"] <= 1 else "INT8 is faster than FP16 here, by less than was aimed at"
    return _target(name, model, "missed", f"{verdict}: {shown}. {layer_reason(proof)}", ratio=ratio)


def layer_reason(proof: Mapping[str, Any]) -> str:
    """Return what the layers of the two engines say about their speed, in one sentence."""
    int8, fp16 = proof.get("trt-int8"), proof.get("trt-fp16")
    if not int8 or not fp16:
        return "The layers are not known, so the reason is not either."
    return "Layers of INT8: " + _layers(int8) + "; of FP16: " + _layers(fp16) + "."


def _layers(summary: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{100 * share:.0f} % of the multiply-adds in {name.upper()}" for name, share in summary["multiply_adds"].items())
    return f"{shares or 'multiply-adds unknown'}, attention {summary['attention']}, {summary['reformats']} reformats"


def _near(outcomes: Mapping[str, Any], model: str) -> dict[str, Any]:
    name = f"our p50 within {100 * NEAR:.0f} % of a bare enqueue loop on the same plan"
    found = result_of(outcomes, f"bare loop {model}")
    pairs = {f"{engine} b{n}": v["ours_over_bare"] for engine, sizes in (found or {}).get("loops", {}).items() for n, v in sizes.items()}
    if not pairs:
        return _target(name, model, "not measured", _missing(outcomes, f"bare loop {model}"))
    worst = max(pairs, key=lambda key: pairs[key]["value"])
    low, high = pairs[worst]["ci95"]
    why = f"worst of {len(pairs)}: {worst}, {100 * (pairs[worst]['value'] - 1):+.1f} % [{100 * (low - 1):+.1f}, {100 * (high - 1):+.1f}]"
    return _target(name, model, "met" if pairs[worst]["value"] <= 1 + NEAR else "missed", why, pairs=pairs)


def _share(outcomes: Mapping[str, Any], model: str) -> dict[str, Any]:
    name = f"throughput of the suite at least {SHARE} of the engine's"
    found = result_of(outcomes, f"throughput {model}")
    if not found or not found["engines"]:
        return _target(name, model, "not measured", _missing(outcomes, f"throughput {model}"))
    shares = {engine: v["suite_images_per_s"] / v["engine_images_per_s"] for engine, v in found["engines"].items()}
    limits = {engine: min(found["decoding_images_per_s"], v["engine_images_per_s"]) for engine, v in found["engines"].items()}
    said = [
        f"{engine} {shares[engine]:.2f} ({v['suite_images_per_s']:.0f} of {v['engine_images_per_s']:.0f} images/s; "
        f"{v['suite_images_per_s'] / limits[engine]:.2f} of the slower of engine and decoding)"
        for engine, v in found["engines"].items()
    ]
    why = f"{'; '.join(said)}; decoding alone gives {found['decoding_images_per_s']:.0f} images/s"
    return _target(name, model, "met" if min(shares.values()) >= SHARE else "missed", why, shares=shares)
