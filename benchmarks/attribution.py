"""Where do the INT8 engines of a CLIP lose, and is it where the search for sensitive parts says? ``clipq attribute`` on photographs.

Exports a CLIP trained on photographs with both INT8 engines and one with the layer that ``--sensitivity`` ranks first in FP32, and
attributes the loss of each engine, stage by stage. Everything but the processor's own kernels is deterministic; nothing is timed.
Needs checkpoints in open_clip's format and photographs in the webdataset layout (not part of this project):

    python benchmarks/attribution.py --shared FOLDER -o out/attribution --output benchmarks/results/attribution.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from clipq.files import write_json
from clipq.machine import record

MODEL, CALIBRATION, DATA, LIMIT = "photo-over", "imagenette:train", "imagenette:test", 500
BOUND = "cosine_centred=0.0004"  # of docs/results/mixed_precision.md: keeps two of the six fc2
CASES = (("plain", "ort-int8-static"), ("plain", "ort-int8-dynamic"), ("kept", "ort-int8-static"))
VECTOR_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # which integer kernels there are


def run(words: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    print("$", " ".join(words), file=sys.stderr, flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def export(bundle: str, shared: Path, folder: Path) -> None:
    """Export one bundle; ``kept`` leaves in FP32 what the bound asks for."""
    words = ["clipq-export", f"local-dir:{shared / 'models' / MODEL}", "-o", str(folder / bundle), "--calib-n", "512"]
    words += ["--engines", "torch-fp32,ort-fp32,ort-int8-static,ort-int8-dynamic", "--calib", f"wds:{shared / 'data' / CALIBRATION}"]
    run([*words, "--max-drop", BOUND] if bundle == "kept" else words)


def measure(bundle: str, engine: str, shared: Path, folder: Path) -> dict[str, Any]:
    """Return what ``clipq attribute`` says of one engine."""
    out = folder / f"{bundle}-{engine}"
    data = f"wds:{shared / 'data' / DATA}"
    run(["clipq", "attribute", str(folder / bundle), "--data", data, "--engine", engine, "--limit", str(LIMIT), "-o", str(out)])
    found = json.loads((out / "attribution.json").read_text())
    sets = {**found["dataset"], "id": DATA}
    return {"bundle": bundle, "engine": engine, "dataset": sets, **{name: found[name] for name in ("pixels", "stages", "loss")}}


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the loss of each engine, stage by stage, as Markdown."""
    lines = []
    for row in rows:
        kept = f", kept for {BOUND}" if row["bundle"] == "kept" else ""
        lines += [f"{row['engine']}{kept}:", "", "| stage | loss so far | part | squared step | centred cosine | disagreement % |"]
        lines += ["|---|---|---|---|---|---|", *(_stage(stage, row["loss"]["parts"]) for stage in row["stages"][1:])]
        lines += [f"| remainder | | {_share(row['loss']['remainder'])} | | | |", ""]
    return "\n".join(lines)


def _stage(stage: dict[str, Any], parts: dict[str, Any]) -> str:
    step, whole = stage["to_before"], stage["to_first"]
    cells = [stage["title"], f"{whole['squared_error']['both']:.2e}", _share(parts[stage["key"]]) if stage["key"] in parts else ""]
    cells += [f"{step['squared_error']['both']:.2e}", f"{step['cosine_centred']['mean']:.5f}", f"{100 * step['disagreement']:.2f}"]
    return f"| {' | '.join(cells)} |"


def _share(part: dict[str, Any]) -> str:
    return f"{100 * part['share']:.1f} %"


def extensions() -> list[str]:
    """Return which of the instructions that integer kernels are written for this processor has."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return [name for name in VECTOR_EXTENSIONS if name in words]


def main() -> None:
    """Export, attribute, print the tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("-o", "--folder", type=Path, required=True, help="new folder for bundles and pages")
    parser.add_argument("--output", type=Path, help="the record")
    args = parser.parse_args()
    for bundle in dict.fromkeys(bundle for bundle, _ in CASES):
        export(bundle, args.shared, args.folder)
    rows = [measure(bundle, engine, args.shared, args.folder) for bundle, engine in CASES]
    print(tables(rows))
    if args.output:
        head = {"model": MODEL, "calibration": CALIBRATION, "data": DATA, "limit": LIMIT, "bound": BOUND, "extensions": extensions()}
        write_json(args.output, record("attribution", {**head, "results": rows}))


if __name__ == "__main__":
    main()
