"""Exports small CLIPs trained on photographs, judges every engine, and writes the tables of docs/results/photographs.md.

Needs three checkpoints in open_clip's format and photographs in the webdataset layout (not part of this project):

    python benchmarks/photographs.py --shared FOLDER -o out/photographs --table docs/results/photographs.md

An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from photographs_tables import ENGINES, tables

MODELS = ("photo-base", "photo-over", "photo-under")
ID_SETS = ("tiny_imagenet", "cifar10", "imagenette")
OOD_SETS = ("dtd10", "pneumoniamnist")
NOISY_SET, NOISY_IMAGES, NOISY_ENGINES = "cifar10", "500", ("torch-fp32", "ort-int8-dynamic", "ort-int8-static")
TUNED_ON = "imagenette"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def export_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that makes a model's bundle."""
    words = ["clipq-export", f"local-dir:{shared}/models/{model}", "-o", f"{folder}/{model}/bundle", "--resume"]
    words += ["--engines", ",".join(ENGINES)]
    return [*words, "--calib", f"wds:{shared}/data/imagenette:train", "--calib-n", "512", "--patch-tokens"]


def eval_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that judges it on the images as they are."""
    words = ["clipq", "eval", f"{folder}/{model}/bundle", "-o", f"{folder}/{model}/report", "--resume"]
    words += ["--data", ",".join(f"wds:{shared}/data/{name}" for name in ID_SETS)]
    words += ["--ood-far", ",".join(f"wds:{shared}/data/{name}" for name in OOD_SETS)]
    return [*words, "--neglabel"]


def tune_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that fits a logit scale per engine on images that the others of the command are judged without."""
    words = ["clipq", "eval", f"{folder}/{model}/bundle", "-o", f"{folder}/{model}/report", "--no-bench", "--resume"]
    words += ["--data", ",".join(f"wds:{shared}/data/{name}" for name in ID_SETS if name != TUNED_ON)]
    return [*words, "--tune-scale", f"wds:{shared}/data/{TUNED_ON}"]


def noise_command(model: str, shared: str, folder: str) -> list[str]:
    """Return the command that judges it on corrupted copies."""
    words = ["clipq", "eval", f"{folder}/{model}/bundle", "-o", f"{folder}/{model}/noise", "--no-bench", "--resume"]
    words += ["--data", f"wds:{shared}/data/{NOISY_SET}", "--limit", NOISY_IMAGES, "--engines", ",".join(NOISY_ENGINES)]
    return [*words, "--corruptions", "15", "--severities", "1,3,5"]


def run(command: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    program = str(Path(sys.executable).parent / command[0])
    subprocess.run([program, *command[1:]], check=True)


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
    args = parser.parse_args()
    folder, clean, tuned, noisy = Path(args.output), {}, {}, {}
    for model in MODELS:
        run(export_command(model, args.shared, args.output))
        for name, make, reports in ("tuned", tune_command, tuned), ("clean", eval_command, clean), ("noisy", noise_command, noisy):
            kept = folder / model / f"{name}.json"
            if not kept.exists():
                command = make(model, args.shared, args.output)
                run(command)
                shutil.copyfile(Path(command[command.index("-o") + 1]) / "report.json", kept)
            reports[model] = json.loads(kept.read_text())
    text = tables(clean, tuned, noisy, ID_SETS[0])
    if args.table:
        replace_tables(args.table, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
