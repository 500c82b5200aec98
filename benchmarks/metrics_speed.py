"""Times the metric set and the paired bootstrap on made-up logits of ImageNet's size, against their limits.

metric_set: every classification metric of 50,000 x 1,000 float32 logits, values only; ood_scores: all five scores of the same logits.
paired_bootstrap: 2,000 resamples of ece15 (50,000 samples) and auroc (25,000 ID + 25,000 OOD), baseline and engine, intervals and p-values.
estimates_5000: every classification metric of 5,000 x 200 logits with 2,000 resamples, baseline and engine.

python benchmarks/metrics_speed.py --output benchmarks/results/metrics_speed.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clipq.evaluate.metrics import ood
from clipq.evaluate.metrics.arrays import Array
from clipq.evaluate.metrics.outcomes import Outcomes, outcomes_from_logits
from clipq.evaluate.statistics.bootstrap import RESAMPLES, compare
from clipq.evaluate.statistics.classification import classification_estimates, classification_values, resample_classification
from clipq.evaluate.statistics.ood import resample_ood
from clipq.files import write_json
from clipq.machine import record, usable_cores

LIMITS_S = {"metric_set": 5.0, "paired_bootstrap": 5.0, "estimates_5000": 2.0}


def make_logits(n: int, classes: int, seed: int) -> tuple[Array, Array]:
    """Return float32 logits ``(n, classes)`` of a model that is right in about two of three cases, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, classes), dtype=np.float32) * 2
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 7.0
    return logits, labels


def paired_bootstrap(before: Outcomes, after: Outcomes, scores: list[tuple[Array, Array]]) -> None:
    """Resample ece15 and auroc of both engines, as many at once as there are cores, and compare them."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        classification = [pool.submit(resample_classification, outcomes, metrics=["ece15"]) for outcomes in (before, after)]
        detection = [pool.submit(resample_ood, *pair, metrics=["auroc"]) for pair in scores]
        for baseline, engine in (classification, detection):
            compare(baseline.result(), engine.result())


def seconds(function: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Return the median and all wall times of a function."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return {"median_s": statistics.median(times), "times_s": times}


def measure(rounds: int, n: int, classes: int) -> dict[str, Any]:
    """Return name -> times, with the limit and whether it was met."""
    logits, labels = make_logits(n, classes, 0)
    before = outcomes_from_logits(logits, labels)
    after = outcomes_from_logits(logits + 0.1 * make_logits(n, classes, 1)[0], labels)
    half = n // 2
    scores = [(outcomes.nll[:half], outcomes.nll[half:] + 0.5) for outcomes in (before, after) if outcomes.nll is not None]
    small = [outcomes_from_logits(logits[:5000, :200] * scale, labels[:5000] % 200) for scale in (1.0, 1.1)]
    score_functions = (ood.mcm, ood.msp, ood.maxlogit, ood.energy, ood.entropy)
    figures = {
        "metric_set": seconds(lambda: classification_values(outcomes_from_logits(logits, labels)), rounds),
        "ood_scores": seconds(lambda: [function(logits) for function in score_functions], rounds),
        "paired_bootstrap": seconds(lambda: paired_bootstrap(before, after, scores), rounds),
        "estimates_5000": seconds(lambda: classification_estimates(small[0], small[1]), rounds),
    }
    for name, limit in LIMITS_S.items():
        figures[name] |= {"limit_s": limit, "met": figures[name]["median_s"] <= limit}
    return figures


def main() -> None:
    """Measure, print JSON and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("-n", "--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    conditions = {"rounds": args.rounds, "samples": args.samples, "classes": args.classes, "resamples": RESAMPLES}
    figures = measure(args.rounds, args.samples, args.classes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the whole benchmark, with its two sets of logits
    result = record("metrics_speed", {**conditions, "figures": figures, "peak_memory_bytes": peak})
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
