"""How many calibration images do small CLIPs on photographs need, how much does their draw move them, and what do foreign images do?

Runs ``clipq calibration`` on models trained on photographs: several numbers of calibration images, several draws of each, images of the
test set's own training split and of another data set. Everything is deterministic but for the processor's floating point; nothing is
timed. Needs checkpoints in open_clip's format and photographs in the webdataset layout (not part of this project):

    python benchmarks/calibration.py --shared FOLDER -o out/calibration --output benchmarks/results/calibration.json \
        --page docs/results/calibration.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from clipq.calibration_lab.tell import QUANTITIES, foreign_columns, foreign_rows, present, rows, sentences
from clipq.evaluate.report.plain import markdown_table
from clipq.files import write_json, write_text
from clipq.machine import record

METHODS = {"photo-over": "percentile,minmax", "photo-base": "percentile"}
CALIBRATION = ("imagenette:train", "cifar10:test")  # imagenette alone has a training split
DATA, OOD, LIMIT, SEEDS, RESAMPLES = "imagenette:test", "dtd10:test", 400, 5, 1000
COLUMNS = ("calibration images from", "n", "mean", "band", "sd", "from FP32", "95 % interval", "wider is")
SHOWN = ("disagreement", "acc1", "ece15", "auroc", "cosine_centred")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def run(words: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    print("$", " ".join(words), file=sys.stderr, flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def measure(model: str, numbers: str, shared: Path, folder: Path) -> dict[str, Any]:
    """Return what ``clipq calibration`` says of one model, with data ids that name no folder."""
    bundle, out = folder / f"{model}-bundle", folder / model
    if not (bundle / "manifest.json").exists():
        run(["clipq-export", f"local-dir:{shared / 'models' / model}", "-o", str(bundle), "--engines", "ort-fp32"])
    data = {name: f"wds:{shared / 'data' / name}" for name in (*CALIBRATION, DATA, OOD)}
    words = ["clipq", "calibration", str(bundle), "--calib", ",".join(data[name] for name in CALIBRATION), "--method", METHODS[model]]
    words += ["--calib-n", numbers, "--seeds", str(SEEDS), "--limit", str(LIMIT), "--resamples", str(RESAMPLES)]
    run([*words, "--data", data[DATA], "--ood", data[OOD], "-o", str(out), "--resume"])
    text = (out / "calibration.json").read_text().replace(f"wds:{shared.resolve() / 'data'}/", "").replace(f"wds:{shared / 'data'}/", "")
    found = json.loads(text)
    wanted = ("dataset", "ood", "calibration", "forms", "fp32", "rows", "enough", "foreign")
    return {"model": model, "seeds": found["provenance"]["seeds"], **{name: found[name] for name in wanted}}


def tables(results: list[dict[str, Any]]) -> str:
    """Return what was found of every model as Markdown: the sentences, a table per metric, and what foreign images change."""
    parts = []
    for found in results:
        for form, sentence in zip(found["forms"], sentences(found), strict=True):
            own = {**found, **{part: _of(found[part], form) for part in ("rows", "foreign")}}
            parts += [f"## {found['model']}, {form['method']} {form['bits']}", sentence]
            for name in (name for name in SHOWN if name in present(found)):
                level = found["fp32"].get(name)
                before = f" (FP32 {100 * level['value']:.2f} %)" if level else ""
                parts += [f"{QUANTITIES[name].label}{before}:", markdown_table(COLUMNS, [row[1:] for row in rows(own, name)])]
            changes = [row[1:] for row in foreign_rows(own)]
            parts += [f"Instead of {CALIBRATION[0]}:", markdown_table(foreign_columns(own)[1:], changes)]
    return "\n\n".join(parts)


def _of(entries: list[dict[str, Any]], form: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if (entry["method"], entry["bits"]) == (form["method"], form["bits"])]


def main() -> None:
    """Export, run the lab, print the tables, write the record and the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument(
        "-o", "--folder", type=Path, required=True, help="folder for bundles and pages; what is finished there is used again"
    )
    parser.add_argument("--models", nargs="+", choices=list(METHODS), default=list(METHODS), help="which models (default: all)")
    parser.add_argument("--numbers", default="16,64,256", help="numbers of calibration images (default: 16,64,256)")
    parser.add_argument("--output", type=Path, help="the record")
    parser.add_argument("--page", type=Path, help="page whose tables are written anew, between its two marks")
    args = parser.parse_args()
    results = [measure(model, args.numbers, args.shared, args.folder) for model in args.models]
    made = tables(results)
    print(made)
    if args.output:
        head = {
            "calibration": list(CALIBRATION),
            "data": DATA,
            "ood": OOD,
            "limit": LIMIT,
            "numbers": args.numbers,
            "seeds": SEEDS,
            "resamples": RESAMPLES,
        }
        write_json(args.output, record("calibration", {**head, "results": results}))
    if args.page:
        before, rest = args.page.read_text().split(BEGIN)
        write_text(args.page, f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
