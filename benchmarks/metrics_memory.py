"""Peak memory of the metrics at a million samples of 1,000 classes over that at 50,000: memory must not grow with samples times classes.

score: clipq score of drawn float32 logits in a folder of .npy files (4 GB at a million), with themselves as baseline and as OOD data.
eval: what clipq eval computes from stored embeddings (128 numbers each), of a baseline and one engine, on one ID data set.
Each figure comes from a process of its own: its peak resident memory and its wall time. Files are drawn before, into a temporary folder.

python benchmarks/metrics_memory.py --resamples 100 --output benchmarks/results/metrics_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from clipq.artifact import ModelEntry
from clipq.errors import ClipqError
from clipq.evaluate.embeddings import Embedded
from clipq.evaluate.scoring import score
from clipq.evaluate.store import Store
from clipq.evaluate.stored import Keys
from clipq.evaluate.stored_score import score_files
from clipq.files import write_json
from clipq.machine import record, usable_cores
from clipq.progress import set_quiet

COUNTS = (50_000, 1_000_000)
DIM = 128
ROWS = 10_000  # drawn at a time
LIMIT_BYTES = 5 << 29  # 2.5 GiB
MODEL = ModelEntry("drawn", "", DIM, logit_scale=100.0, logit_bias=None, context_length=0)
ENGINES = {"baseline": 0.0, "engine": 0.05}


def draw_logits(folder: Path, n: int, classes: int) -> None:
    """Write logits of a model that is right in about two of three cases, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    np.save(folder / "labels.npy", labels)
    with (folder / "logits.npy").open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, classes)}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, n, ROWS):
            own = labels[start : start + ROWS]
            block = rng.standard_normal((len(own), classes), dtype=np.float32) * 2
            block[np.arange(len(own)), own] += 7.0
            stream.write(block.data)


def draw_embeddings(folder: Path, n: int, classes: int) -> None:
    """Fill a store per engine with embeddings around their class, and one with a text per class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    np.save(folder / "labels.npy", labels)
    prototypes = rng.standard_normal((classes, DIM), dtype=np.float32)
    texts, images = Store(folder, {"texts": 0}), {name: Store(folder, {"images": name}) for name in ENGINES}
    texts.append(prototypes)
    texts.finish()
    for start in range(0, n, ROWS):
        rows = prototypes[labels[start : start + ROWS]] + np.float32(2.5) * rng.standard_normal(
            (min(ROWS, n - start), DIM), dtype=np.float32
        )
        for name, noise in ENGINES.items():
            images[name].append(rows + np.float32(noise) * rng.standard_normal(rows.shape, dtype=np.float32))
    for store in images.values():
        store.finish()


def from_stores(folder: Path) -> Embedded:
    """Return the embeddings that ``draw_embeddings`` wrote, as an evaluation has them."""
    labels = np.load(folder / "labels.npy")
    index = SimpleNamespace(data_id="drawn", labels=labels, ids=tuple(f"{row:07d}.jpg" for row in range(len(labels))))
    images: Any = SimpleNamespace(index=index, source=SimpleNamespace(templates=("{c}",)), distance=None)
    stores = {"drawn": {name: Store(folder, {"images": name}) for name in ENGINES}}
    texts = {"drawn": dict.fromkeys(ENGINES, Store(folder, {"texts": 0}))}
    return Embedded(list(ENGINES), {"drawn": images}, {}, {"drawn": np.ones(len(labels), np.bool_)}, stores, texts)


def work(what: str, folder: Path, resamples: int) -> None:
    """Do one measurement in this process and print it as JSON."""
    set_quiet(quiet=True)
    start = time.perf_counter()
    if what == "score":
        found = score_files(folder, Keys(), baseline=folder, ood_file=folder, resamples=resamples)
        accuracy = found["acc1"]["value"]
    else:
        scores = score(from_stores(folder), MODEL, resamples=resamples, seed=0)
        accuracy = scores.results["engine"]["drawn"]["acc1"]["value"]
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "acc1": accuracy}))


def measure(what: str, n: int, classes: int, resamples: int) -> dict[str, Any]:
    """Draw the files and return seconds, peak bytes and size on disk of one measurement in a fresh process."""
    needed = 1.2 * n * (classes if what == "score" else DIM * len(ENGINES)) * 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < needed:
            raise ClipqError(f"too little space in {folder}", expected=f"{needed / 1e9:.1f} GB", fix="Set TMPDIR to another disk.")
        (draw_logits if what == "score" else draw_embeddings)(folder, n, classes)
        command = [sys.executable, __file__, "--work", what, name, str(resamples)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    values: dict[str, Any] = {"samples": n, **json.loads(answer.splitlines()[-1]), "files_bytes": size}
    print(what, json.dumps(values), flush=True)
    return values


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=COUNTS, metavar=("FEW", "MANY"))
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work[0], Path(args.work[1]), int(args.work[2]))
        return
    results = {}
    for what in ("score", "eval"):
        few, many = (measure(what, n, args.classes, args.resamples) for n in args.samples)
        met = many["peak_bytes"] <= LIMIT_BYTES
        results[what] = {"few": few, "many": many, "memory_ratio": many["peak_bytes"] / few["peak_bytes"], "met": met}
    conditions = {"classes": args.classes, "resamples": args.resamples, "dim": DIM, "threads": usable_cores(), "limit_bytes": LIMIT_BYTES}
    made = record("metrics_memory", {**conditions, "load_average": os.getloadavg()[0], "results": results})
    print(json.dumps(made["results"], indent=2))
    if args.output:
        write_json(args.output, made)


if __name__ == "__main__":
    main()
