"""Exports small CLIPs trained on photographs, judges every engine, and writes the tables of docs/results/photographs.md.

Needs three checkpoints in open_clip's format and photographs in the webdataset layout (not part of this project):

    python benchmarks/photographs.py --shared FOLDER -o out/photographs --table docs/results/photographs.md
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("photo-base", "photo-over", "photo-under")
ID_SETS = ("tiny_imagenet", "cifar10", "imagenette")
OOD_SETS = ("dtd10", "pneumoniamnist")
ENGINES = ("torch-fp32", "ort-fp32", "ort-int8-dynamic", "ort-int8-static")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def export_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that makes a model's bundle."""
    words = ["clipq-export", f"local-dir:{shared}/models/{model}", "-o", f"{folder}/{model}/bundle", "--engines", ",".join(ENGINES)]
    return [*words, "--calib", f"wds:{shared}/data/imagenette:train", "--calib-n", "512"]


def eval_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that judges it."""
    words = ["clipq", "eval", f"{folder}/{model}/bundle", "-o", f"{folder}/{model}/report"]
    words += ["--data", ",".join(f"wds:{shared}/data/{name}" for name in ID_SETS)]
    return [*words, "--ood", ",".join(f"wds:{shared}/data/{name}" for name in OOD_SETS)]


def run(command: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    program = str(Path(sys.executable).parent / command[0])
    subprocess.run([program, *command[1:]], check=True)


def short(data_id: str) -> str:
    """Return a data set's folder name: ``wds:/somewhere/cifar10:test`` is ``cifar10``."""
    return data_id.split(":")[1].rsplit("/", 1)[-1]


def points(entry: dict[str, Any]) -> str:
    """Return a fraction in percent, with its paired delta and interval in percent points."""
    text = f"{100 * entry['value']:.2f}"
    if entry["delta"] is None:
        return text
    low, high = entry["delta_ci95"]
    return f"{text} ({100 * entry['delta']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}])"


def classification_rows(model: str, report: dict[str, Any]) -> list[str]:
    """Return one row per data set and engine: accuracy, calibration and agreement with the baseline."""
    rows = []
    for data in next(iter(report["results"].values())):
        for engine in ENGINES:
            metrics = report["results"][engine][data]
            paired = report["paired"].get(engine, {}).get(data)
            agreement = [f"{100 * paired['disagreement']:.2f}", f"{paired['cosine_centred_mean']:.4f}"] if paired else ["", ""]
            cells = [model, short(data), engine, *(points(metrics[name]) for name in ("acc1", "ece15", "signed_gap"))]
            rows.append(f"| {' | '.join([*cells, format(metrics['nll']['value'], '.3f'), *agreement])} |")
    return rows


def ood_rows(model: str, report: dict[str, Any], id_set: str) -> list[str]:
    """Return one row per OOD set and engine: AUROC by score."""
    rows = []
    for pair in next(iter(report["ood"].values())):
        if short(pair.split("|")[0]) != id_set:
            continue
        for engine in ENGINES:
            scores = report["ood"][engine][pair]
            cells = [points(scores[score]["auroc"]) for score in ("mcm", "maxlogit", "energy_logit")]
            rows.append(f"| {' | '.join([model, short(pair.split('|')[1]), engine, *cells])} |")
    return rows


def tables(reports: dict[str, dict[str, Any]]) -> str:
    """Return both tables and what made them as Markdown."""
    head = next(iter(reports.values()))["provenance"]
    lines = [
        f"Recorded {head['created']} on {head['device']['cpu']}, {head['device']['cores']} cores; "
        + ", ".join(f"{k} {v}" for k, v in head["versions"].items())
        + ".",
        "",
    ]
    lines += ["Values in percent; in parentheses the paired difference from `torch-fp32` in percent points with its 95 % interval.", ""]
    lines += [
        "| model | data | engine | top-1 | ECE-15 | confidence - accuracy | NLL | disagreement % | centred cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, report in reports.items():
        lines += classification_rows(model, report)
    lines += [
        "",
        f"OOD detection, AUROC in percent, in-distribution {ID_SETS[0]}:",
        "",
        "| model | OOD | engine | MCM | max logit | energy |",
        "|---|---|---|---|---|---|",
    ]
    for model, report in reports.items():
        lines += ood_rows(model, report, ID_SETS[0])
    return "\n".join(lines)


def replace_tables(page: Path, text: str) -> None:
    """Put the tables between the two marks of the page; what stands around them is written by hand."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def main() -> None:
    """Run what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", required=True, help="folder with models/ and data/")
    parser.add_argument("-o", "--output", required=True, help="folder for bundles and reports")
    parser.add_argument("--table", type=Path, help="page whose tables are replaced")
    parser.add_argument("--skip-export", action="store_true", help="the bundles are there already")
    args = parser.parse_args()
    reports = {}
    for model in MODELS:
        for command in ([] if args.skip_export else [export_command(model, args.shared, args.output)]) + [
            eval_command(model, args.shared, args.output)
        ]:
            print(f"$ {shlex.join(command)}", file=sys.stderr)
            run(command)
        reports[model] = json.loads((Path(args.output) / model / "report" / "report.json").read_text())
    text = tables(reports)
    if args.table:
        replace_tables(args.table, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
