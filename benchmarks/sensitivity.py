"""Does ``--sensitivity`` find the parts that matter, and does ``--max-drop`` repair an engine on images that the search never saw?

Exports a CLIP trained on photographs without a bound and with several, judges each bundle on other images and on an OOD set of
another kind than the search's. Everything is deterministic; nothing is timed. Needs checkpoints in open_clip's format and
photographs in the webdataset layout (not part of this project):

    python benchmarks/sensitivity.py --shared FOLDER -o out/sensitivity --output benchmarks/results/sensitivity.json
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

MODELS = ("photo-over",)
BOUNDS: tuple[tuple[str, ...], ...] = ((), ("cosine_centred=0.0004",), ("cosine_centred=0.0002",), ("fpr95=0.01",))
CALIBRATION, SEARCH_OOD = "imagenette:train", "dtd10:test"
JUDGED_ON, JUDGED_OOD = "tiny_imagenet:test", "pneumoniamnist:test"


def run(words: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    print("$", " ".join(words), file=sys.stderr, flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def measure(model: str, bounds: tuple[str, ...], shared: Path, folder: Path) -> dict[str, Any]:
    """Return the search's facts and the judgement of one bundle."""
    bundle, report = folder / "bundle", folder / "report"
    data = {name: f"wds:{shared / 'data' / name}" for name in (CALIBRATION, SEARCH_OOD, JUDGED_ON, JUDGED_OOD)}
    words = ["clipq-export", f"local-dir:{shared / 'models' / model}", "-o", str(bundle), "--engines", "ort-fp32,ort-int8-static"]
    words += ["--calib", data[CALIBRATION], "--calib-ood", data[SEARCH_OOD], "--sensitivity"]
    run([*words, *(word for bound in bounds for word in ("--max-drop", bound))])
    judge = ["clipq", "eval", str(bundle), "-o", str(report), "--engines", "ort-fp32,ort-int8-static", "--baseline", "ort-fp32"]
    run([*judge, "--data", data[JUDGED_ON], "--ood", data[JUDGED_OOD], "--no-bench"])
    facts = json.loads((bundle / "sensitivity.json").read_text())
    facts["data"] = {**facts["data"], "calib": CALIBRATION, "calib_ood": SEARCH_OOD}
    judged = json.loads((report / "report.json").read_text())
    (results,), (paired,), (ood,) = (judged[part]["ort-int8-static"].values() for part in ("results", "paired", "ood"))
    wanted = {name: ood["mcm"][name] for name in ("auroc", "fpr95_id_pos")}
    return {"model": model, "bounds": list(bounds), "search": facts, "judged": {**results, **wanted, **paired}}


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the ranking of each model and the judgement of each bundle as Markdown."""
    lines = []
    for row in rows:
        if not row["bounds"]:
            lines += [
                f"{row['model']}, parts by damage alone:",
                "",
                "| part | centred cosine loss | share of multiply-adds |",
                "|---|---|---|",
            ]
            for entry in row["search"]["blocks"][:12]:
                lines.append(f"| {entry['block']} | {entry['damage']['cosine_centred']:.2e} | {entry['multiply_adds']:.3f} |")
            lines.append("")
    lines += [
        f"Judged on {JUDGED_ON} and {JUDGED_OOD}:",
        "",
        "| model | bounds | kept | share kept | centred cosine | disagreement % | MCM AUROC delta pp | FPR95 delta pp | ECE-15 delta pp |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_judged, rows)])


def _judged(row: dict[str, Any]) -> str:
    judged, search = row["judged"], row["search"]
    cells = [row["model"], ", ".join(row["bounds"]) or "none", str(sum(entry["kept"] for entry in search["blocks"]))]
    cells += [f"{search['kept_multiply_adds']:.3f}", f"{judged['cosine_centred_mean']:.5f}", f"{100 * judged['disagreement']:.2f}"]
    return f"| {' | '.join([*cells, *(_delta(judged[name]) for name in ('auroc', 'fpr95_id_pos', 'ece15'))])} |"


def _delta(entry: dict[str, Any]) -> str:
    low, high = entry["delta_ci95"]
    return f"{100 * entry['delta']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def main() -> None:
    """Measure every bound on every model, print the tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("-o", "--folder", type=Path, required=True, help="new folder for bundles and reports")
    parser.add_argument("--output", type=Path, help="the record")
    args = parser.parse_args()
    cases = [(model, bounds) for model in MODELS for bounds in BOUNDS]
    rows = [measure(model, bounds, args.shared, args.folder / model / ("_".join(bounds) or "none")) for model, bounds in cases]
    print(tables(rows))
    if args.output:
        write_json(args.output, record("sensitivity", {"calibration": CALIBRATION, "judged_on": [JUDGED_ON, JUDGED_OOD], "results": rows}))


if __name__ == "__main__":
    main()
