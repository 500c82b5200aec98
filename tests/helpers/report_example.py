"""A realistic report made by simulation: embeddings around class prototypes, engines as FP32 plus noise and shrinkage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from scipy.stats import rankdata

CLASSES, DIM, SCALE = 20, 48, 30.0
ID = "synthetic:scenes"
ROBUST = {"synthetic:scenes-noise": 0.34, "synthetic:scenes-shift": 0.38, "synthetic:scenes-spurious": 0.31}
OOD = ("synthetic:scenes-near", "synthetic:scenes-far")
ENGINES = {"torch-fp32": 0.0, "ort-fp32": 1e-6, "ort-int8-static": 0.02, "ort-int8-dynamic": 0.06}
SIZES = {"torch-fp32": 34_200_000, "ort-fp32": 33_900_000, "ort-int8-static": 9_300_000, "ort-int8-dynamic": 8_900_000}
P50 = {"torch-fp32": (0.0121, 0.201), "ort-fp32": (0.0047, 0.118), "ort-int8-static": (0.0026, 0.055), "ort-int8-dynamic": (0.0023, 0.057)}

Arrays = dict[str, Any]


def unit(x: np.ndarray) -> np.ndarray:
    """Rows divided by their norm."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def images(rng: np.random.Generator, prototypes: np.ndarray, n: int, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """FP32 embeddings and labels; label -1 and no prototype where ``signal`` is 0."""
    noise = unit(rng.standard_normal((n, DIM)))
    if signal == 0:
        return noise, np.full(n, -1)
    labels = rng.integers(0, len(prototypes), n)
    return unit(signal * prototypes[labels] + noise), labels


def rows(engine: str, data: str, classifier: str, embeddings: np.ndarray, labels: np.ndarray, prototypes: np.ndarray) -> Arrays:
    """One engine's part of the samples table for one data set, with what the metrics need beside it."""
    cosine = unit(embeddings) @ prototypes.T
    logits = SCALE * cosine
    p = softmax(logits, axis=1)
    top5 = np.argsort(-logits, axis=1)[:, :5]
    n = len(labels)
    return {
        "engine": np.full(n, engine, dtype=object), "data": np.full(n, data, dtype=object),
        "classifier": np.full(n, classifier, dtype=object), "role": np.full(n, "id" if data == classifier else "ood", dtype=object),
        "image_id": np.array([f"{data.rpartition('-')[2]}/{i:06d}.ppm" for i in range(n)], dtype=object),
        "label": labels, "prediction": logits.argmax(axis=1), "confidence": p.max(axis=1),
        "correct5": (top5 == labels[:, None]).any(axis=1),
        "mcm": -softmax(cosine, axis=1).max(axis=1), "msp": -p.max(axis=1), "maxlogit": -logits.max(axis=1),
        "energy_cos": -logsumexp(cosine, axis=1), "energy_logit": -logsumexp(logits, axis=1),
        "entropy": -(p * np.log(p)).sum(axis=1), "_p": p,
    }  # fmt: skip


def ece15(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Top-label ECE, 15 bins of equal width, (low, high]."""
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = np.abs(np.bincount(bins, confidence - correct, 15))
    return float(gaps.sum() / len(confidence))


def accuracy_metrics(r: Arrays) -> dict[str, Callable[[np.ndarray], float]]:
    """Metric -> function of resampled row indices."""
    correct = (r["prediction"] == r["label"]).astype(float)
    picked = r["_p"][np.arange(len(correct)), r["label"]]
    brier = ((r["_p"] - np.eye(CLASSES)[r["label"]]) ** 2).sum(axis=1)
    return {
        "acc1": lambda i: float(correct[i].mean()),
        "acc5": lambda i: float(r["correct5"][i].mean()),
        "nll": lambda i: float(-np.log(picked[i]).mean()),
        "brier": lambda i: float(brier[i].mean()),
        "ece15": lambda i: ece15(r["confidence"][i], correct[i]),
        "signed_gap": lambda i: float((r["confidence"][i] - correct[i]).mean()),
    }


def auroc(known: np.ndarray, foreign: np.ndarray) -> float:
    """Mann-Whitney with mid-ranks."""
    ranks = rankdata(np.concatenate([known, foreign]))[len(known) :]
    return float((ranks.sum() - len(foreign) * (len(foreign) + 1) / 2) / (len(known) * len(foreign)))


def measured(value: float, resampled: np.ndarray, base: np.ndarray | None, base_value: float, n: int) -> dict[str, Any]:
    """A METRIC entry from bootstrap values."""
    entry = {
        "value": value,
        "ci95": np.quantile(resampled, [0.025, 0.975]).tolist(),
        "n": n,
        "delta": None,
        "delta_ci95": None,
        "p_value": None,
    }
    if base is not None:
        deltas = resampled - base
        tail = min((deltas <= 0).mean(), (deltas >= 0).mean())
        entry |= {
            "delta": value - base_value,
            "delta_ci95": np.quantile(deltas, [0.025, 0.975]).tolist(),
            "p_value": float(min(1, 2 * tail)),
        }
    return entry


def score_all(all_rows: dict[tuple[str, str, str], Arrays], n: int, resamples: int, rng: np.random.Generator) -> tuple[dict, dict, dict]:
    """results, ood and paired of the report."""
    results: dict[str, Any] = {e: {} for e in ENGINES}
    ood: dict[str, Any] = {e: {} for e in ENGINES}
    paired: dict[str, Any] = {e: {} for e in ENGINES if e != "torch-fp32"}
    index = rng.integers(0, n, (resamples, n))
    boot: dict[Any, Any] = {}
    for (engine, data, classifier), r in all_rows.items():
        base = all_rows["torch-fp32", data, classifier]
        if data == classifier:
            entries = {}
            for metric, f in accuracy_metrics(r).items():
                boot[engine, data, metric] = (f(np.arange(n)), np.array([f(i) for i in index]))
                value, resampled = boot[engine, data, metric]
                base_value, base_boot = boot["torch-fp32", data, metric]
                entries[metric] = measured(value, resampled, None if engine == "torch-fp32" else base_boot, base_value, n)
            results[engine][data] = entries
            if engine in paired:
                paired[engine][data] = pair(r, base)
        else:
            known = all_rows[engine, classifier, classifier]
            ood[engine][f"{classifier}|{data}"] = {}
            for score in ("mcm", "msp", "maxlogit", "energy_cos", "energy_logit", "entropy"):
                value = auroc(known[score], r[score])
                resampled = np.array([auroc(known[score][i], r[score][i]) for i in index[:60]])
                boot[engine, data, score] = (value, resampled)
                base_value, base_boot = boot["torch-fp32", data, score]
                entry = measured(value, resampled, None if engine == "torch-fp32" else base_boot, base_value, 2 * n)
                ood[engine][f"{classifier}|{data}"][score] = {"auroc": entry}
    return results, ood, paired


def pair(r: Arrays, base: Arrays) -> dict[str, float]:
    """PAIRED entry of one engine and data set."""
    right, was = r["prediction"] == r["label"], base["prediction"] == base["label"]
    mean = (r["_p"] + base["_p"]) / 2
    js = 0.5 * ((r["_p"] * np.log(r["_p"] / mean)).sum(axis=1) + (base["_p"] * np.log(base["_p"] / mean)).sum(axis=1))
    return {
        "disagreement": float((r["prediction"] != base["prediction"]).mean()), "flips": float((right != was).mean()),
        "flips_pos_to_neg": float((was & ~right).mean()), "flips_neg_to_pos": float((right & ~was).mean()),
        "js_divergence": float(js.mean()), "cosine_mean": 0.9996, "cosine_centred_mean": 0.9981,
    }  # fmt: skip


def bench() -> dict[str, Any]:
    """BENCH of every engine."""
    out: dict[str, Any] = {}
    for engine, (one, many) in P50.items():
        out[engine] = {
            f"image-b{b}": {
                "batch": b,
                "threads": 2,
                "n": k,
                "warmup": 10,
                "p50_s": t,
                "p90_s": 1.1 * t,
                "p99_s": 1.3 * t,
                "images_per_s": b / t,
            }
            for b, t, k in ((1, one, 400), (32, many, 60))
        }
        out[engine]["artefact"] = {"size_bytes": SIZES[engine], "load_s": 0.31, "peak_rss_bytes": 9 * SIZES[engine]}
    return out


@functools.lru_cache(maxsize=4)
def make_example(n: int = 1500, resamples: int = 120, *, random_weights: bool = False) -> tuple[dict[str, Any], Arrays]:
    """Return (report without gates and verdict, samples); treat both as read-only."""
    rng = np.random.default_rng(0)
    prototypes = unit(rng.standard_normal((CLASSES, DIM)))
    sets = {ID: 0.45, **ROBUST, "synthetic:scenes-near": 0.2, "synthetic:scenes-far": 0.0}
    drawn = {data: images(rng, prototypes, n, signal) for data, signal in sets.items()}
    all_rows: dict[tuple[str, str, str], Arrays] = {}
    for engine, noise in ENGINES.items():
        for data, (embeddings, labels) in drawn.items():
            moved = embeddings + noise * (0.35 * rng.standard_normal(embeddings.shape) - 2.0 * prototypes.mean(axis=0))
            where = ID if data in OOD else data
            shown = np.full(n, -1) if data in OOD else labels
            all_rows[engine, data, where] = rows(engine, data, where, moved, shown, prototypes)
    results, ood, paired = score_all(all_rows, n, resamples, rng)
    samples = {name: np.concatenate([r[name] for r in all_rows.values()]) for name in next(iter(all_rows.values())) if name != "_p"}
    return _report(n, resamples, results, ood, paired, random_weights=random_weights), samples


def _report(n: int, resamples: int, results: Any, ood: Any, paired: Any, *, random_weights: bool) -> dict[str, Any]:
    runtime = {e: "torch" if e.startswith("torch") else "onnxruntime" for e in ENGINES}
    return {
        "schema": "clipq.report/1", "baseline": "torch-fp32",
        "provenance": _provenance(resamples, random_weights=random_weights),
        "engines": {e: _engine(e, runtime[e]) for e in ENGINES},
        "datasets": {data: _dataset(data, n) for data in (ID, *ROBUST, *OOD)},
        "results": results, "ood": ood, "paired": paired, "bench": bench(), "gates": [], "verdict": {},
    }  # fmt: skip


def _provenance(resamples: int, *, random_weights: bool) -> dict[str, Any]:
    model = {"id": "demo:over", "state_sha256": "ab" * 32, "embed_dim": DIM, "logit_scale": SCALE, "logit_bias": None}
    return {
        "created": "2026-11-25T14:03:11+00:00", "clipq": "0.1.0", "commit": "3f1c0de", "dirty": False, "seed": 0, "resamples": resamples,
        "model": {**model, "random_weights": random_weights}, "recipe_sha256": "cd" * 32,
        "versions": {"python": "3.11.9", "onnxruntime": "1.32.0", "torch": "2.13.0"},
        "device": {"system": "Linux x86_64", "processor": "Example CPU with AVX512-VNNI", "cores": 2, "memory_bytes": 24_000_000_000},
    }  # fmt: skip


def _engine(engine: str, runtime: str) -> dict[str, Any]:
    return {
        "sha256": {f"engines/{engine}/image.onnx": "ef" * 32}, "runtime": runtime,
        "provider": "cpu" if runtime == "torch" else "CPUExecutionProvider",
        "precision": "int8" if "int8" in engine else "fp32", "size_bytes": SIZES[engine],
        **({} if runtime == "torch" else {"layers": _layers("int8" if "int8" in engine else "fp32")}),
    }  # fmt: skip


def _layers(precision: str) -> dict[str, Any]:
    shares = {"int8": 0.94, "fp32": 0.06} if precision == "int8" else {"fp32": 1.0}
    product = {"name": "/blocks.0/attn/project/MatMul", "kind": "product", "precision": precision, "share": shares[precision]}
    rest = {"name": "/blocks.0/attn/MatMul", "kind": "product", "precision": "fp32", "share": 1 - shares[precision]}
    return {
        "source": "onnxruntime profile", "towers": ["image"], "precision": {precision: 1, "fp32": 1 + (precision == "fp32")},
        "multiply_adds": shares, "asked": shares, "attention": "not fused", "reformats": 34 if precision == "int8" else 18,
        "providers": {"CPUExecutionProvider": 120}, "each": {"image": [product, rest]},
    }  # fmt: skip


def _dataset(data: str, n: int) -> dict[str, Any]:
    skipped = [{"id": "bad/000007.ppm", "reason": "truncated"}] if data == ID else []
    return {"n": n, "classes": 0 if data in OOD else CLASSES, "sha256": "12" * 32, "skipped": skipped}
