"""Load one engine and run it once: its load time and peak memory, printed as one JSON line (a process of its own per engine)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.engines.table import open_engine

BATCH_SIZE = 32


def measure(folder: Path, engine_id: str, threads: int, *, trust_plans: bool = False) -> dict[str, Any]:
    """Return ``load_s``, ``peak_rss_bytes`` and what they include.

    ``load_s`` runs from the opened manifest to an engine that can compute: hashes, import of the runtime, sessions.
    The peak is the process's highest resident memory after one batch of 32 (or the nearest it takes), Python and libraries included.
    """
    bundle = Bundle.open(folder, trust_plans=trust_plans)
    start = time.perf_counter()
    with open_engine(bundle, engine_id, threads) as engine:
        load_s = time.perf_counter() - start
        size = min(max(BATCH_SIZE, engine.batches[0]), engine.batches[1])
        engine.run("image", np.zeros((size, *engine.towers["image"].input_shape), np.float32))
    return {"load_s": load_s, "peak_rss_bytes": peak_memory_bytes(), "batch": size, "includes": "interpreter and libraries"}


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process image.

    Linux counts it anew after exec (VmHWM); ``getrusage`` would hand on the parent's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), trust_plans="--trust-engine" in sys.argv[4:])))
