r"""Compares our metrics with those of torchmetrics, netcal, scikit-learn, pytorch-ood and torch-uncertainty: the same number, and how fast.

The same arrays go to both: 50,000 x 1,000 logits drawn by a seed, and with ``--predictions`` every stored ``.npz`` of published networks
(arrays ``predictions`` and ``ground_truth``). Two values agree where they differ by at most 1e-6; where they do not, the reason counts as
verified only if the other library's rule, written down in ``metrics_against_cases.py``, gives its value to 1e-6.

Times are of the drawn logits: both take float64 probabilities in memory (scores for the detection metrics) and end with a number; one
warm-up each, then in turns, medians; torch may use every core, ours is a single thread.

pytorch-ood and torch-uncertainty are in none of our extras: without their dependencies they leave torch as it is, beside the `dev` extra.

python -m pip install --no-deps --target out/against pytorch-ood==0.4.0 torch-uncertainty==0.13.0 lightning==2.6.6 \
    pytorch-lightning==2.6.6 einops seaborn pandas python-dateutil six pytz tzdata matplotlib contourpy cycler fonttools kiwisolver \
    pyparsing timm jsonargparse torchinfo
PYTHONPATH=out/against python benchmarks/metrics_against.py --predictions SHARED/data/predictions \
    --output benchmarks/results/metrics_against.json --table docs/results/metrics.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from metrics_against_cases import Case, Problem, cases

from clipq.evaluate.metrics.probabilities import softmax
from clipq.files import sha256_file, write_json, write_text
from clipq.machine import record, usable_cores

AGREE = 1e-6
LIBRARIES = ("torchmetrics", "netcal", "scikit-learn", "pytorch-ood", "torch-uncertainty")


def drawn(n: int, classes: int, seed: int) -> Problem:
    """Return float32 logits of a model that is right in about two of three cases, as float64, and their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, classes), dtype=np.float32) * 2
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 7.0
    wide = logits.astype(np.float64)
    return Problem.of(softmax(wide), labels, wide)


def stored(path: Path) -> Problem:
    """Return a file of softmax outputs; float32 rows are made to sum to 1 in float64."""
    with np.load(path, allow_pickle=False) as arrays:
        probabilities, labels = arrays["predictions"].astype(np.float64), arrays["ground_truth"].astype(np.int64).ravel()
    return Problem.of(probabilities / probabilities.sum(axis=1, keepdims=True), labels)


def quietly(function: Callable[[], Any]) -> Any:
    """Run what may print and warn, and return what it returned."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return function()


def as_array(value: Any) -> Any:
    """Return a number, array or tensor as float64."""
    return np.asarray(value, dtype=np.float64).reshape(-1)


def difference(first: Any, second: Any) -> float:
    """Return the largest absolute difference; two values that are both undefined do not differ."""
    a, b = as_array(first), as_array(second)
    return float(np.max(np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b)), initial=0.0))


def compare(case: Case, problem: Problem) -> dict[str, Any]:
    """Return both values, their difference, and whether the reason for it holds."""
    ours, theirs = case.ours(problem), quietly(lambda: case.theirs(problem))
    apart = difference(ours, theirs)
    found: dict[str, Any] = {"difference": apart, "agrees": apart <= AGREE}
    if as_array(ours).size == 1:
        found = {"ours": float(as_array(ours)[0]), "theirs": float(as_array(theirs)[0]), **found}
    if not found["agrees"]:
        rule = case.by_their_rule
        found["verified"] = rule is not None and difference(rule(problem), theirs) <= AGREE
    return found


def seconds(function: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case: Case, problem: Problem, rounds: int) -> dict[str, Any]:
    """Return the times of both in turns, after one warm-up each, and how many times as long theirs takes."""
    sides = {"ours": lambda: case.ours(problem), "theirs": lambda: case.theirs(problem)}

    def run() -> dict[str, list[float]]:
        for side in sides.values():
            side()
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                times[name].append(seconds(side))
        return times

    times = quietly(run)
    ours, theirs = (statistics.median(times[name]) for name in sides)
    return {"ours_s": ours, "theirs_s": theirs, "ratio": theirs / ours, "times_s": times}


def prepare() -> None:
    """Make torchvision importable beside a torch without CUDA, as open_clip needs it too; pytorch-ood imports it."""
    from clipq.engines.torch.compat import define_missing_operators

    define_missing_operators()


def table(result: dict[str, Any]) -> str:
    """Return the page: one row per metric and library."""
    head = ["metric", "library", "call", *(["drawn"] + (["stored"] if len(result["data"]) > 1 else [])), "agrees", "time, theirs / ours"]
    rows = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    for entry in result["cases"]:
        data = entry["data"]
        others = [found["difference"] for name, found in data.items() if name != "drawn"]
        cells = [f"`{entry['metric']}`", entry["library"], entry["call"], f"{data['drawn']['difference']:.1e}"]
        cells += [f"{max(others):.1e}" if others else ""] if len(result["data"]) > 1 else []
        cells += [said(entry), f"{entry['time']['ratio']:.1f}" if "time" in entry else "not measured"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*_introduction(result), *rows, ""])


def _introduction(result: dict[str, Any]) -> list[str]:
    found = [one for entry in result["cases"] for one in entry["data"].values()]
    whole = sum(all(one["agrees"] for one in entry["data"].values()) for entry in result["cases"])
    explained = sum(one.get("verified", True) for one in found)
    ratios = [entry["time"]["ratio"] for entry in result["cases"] if "time" in entry]
    versions = ", ".join(f"{name} {version}" for name, version in result["libraries"].items())
    machine = f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
    data = f"{result['samples']:,} x {result['classes']:,} drawn logits"
    script, kept = "[`metrics_against.py`](../../benchmarks/metrics_against.py)", "[record](../../benchmarks/results/metrics_against.json)"
    lines = [
        "# Our metrics against others",
        "",
        f"Made by {script}, {kept} of {result['created'][:10]}: {versions}; {machine}.",
        "",
        f'"Drawn" is the difference on {data} (of OOD scores the largest of any sample), "stored" the largest one on',
        f"{len(result['data']) - 1} files of published networks. Known and foreign images are here those answered right and wrong.",
        f"{whole} of {len(result['cases'])} comparisons agree to 1e-6 everywhere. Of the {len(found)} single ones {explained} agree",
        "or have a reason that was verified: the other library's rule, written down again, gives its value.",
    ]
    if ratios:
        lines.append(
            f"Ours is faster in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)}; median {statistics.median(ratios):.1f} times."
        )
    return [*lines, ""]


def said(entry: dict[str, Any]) -> str:
    """Return whether two values agree, and why not."""
    apart = [found for found in entry["data"].values() if not found["agrees"]]
    if not apart:
        return "yes"
    if not all(found["verified"] for found in apart):
        return "no, NOT EXPLAINED"
    where = "" if len(apart) == len(entry["data"]) else f" on {len(apart)} of {len(entry['data'])}"
    return f"no{where}: {entry['reason']}"


def main() -> None:
    """Compare, print JSON and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, help="folder with .npz files, searched through")
    parser.add_argument("-n", "--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--no-timing", action="store_true", help="values only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    prepare()
    problems = {"drawn": drawn(args.samples, args.classes, args.seed)}
    files = sorted(args.predictions.rglob("*.npz")) if args.predictions else []
    entries = []
    known = cases()
    for case in known:
        entry = {"metric": case.metric, "library": case.library, "call": case.call, "reason": case.reason}
        entries.append({**entry, "data": {"drawn": compare(case, problems["drawn"])}})
        if not args.no_timing:
            entries[-1]["time"] = measure(case, problems["drawn"], args.rounds)
    for path in files:
        problem = stored(path)
        for case, entry in zip(known, entries, strict=True):
            if not case.needs_logits:
                entry["data"][path.stem] = compare(case, problem)
    result = record(
        "metrics_against",
        {
            "samples": args.samples,
            "classes": args.classes,
            "seed": args.seed,
            "rounds": 0 if args.no_timing else args.rounds,
            "threads": {"ours": 1, "torch": usable_cores()},
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "data": {"drawn": f"seed {args.seed}", **{path.stem: sha256_file(path) for path in files}},
            "cases": entries,
        },
    )
    print(json.dumps(result, indent=2))
    if args.output:
        write_json(args.output, result)
    if args.table:
        write_text(args.table, table(result))


if __name__ == "__main__":
    main()
