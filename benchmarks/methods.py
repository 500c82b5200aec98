"""What every quantization method costs: methods x bits x towers on small CLIPs, judged by ``clipq eval`` against FP32 PyTorch.

One bundle and one report per model and tower, with all methods and bits that are asked for; rows of earlier runs stay in the record
unless they are made anew, so that long tables can be made in pieces. Everything is deterministic; nothing is timed. The demo models
are embedded; the others need checkpoints in open_clip's format and photographs in the webdataset layout (not part of this project):

    python benchmarks/methods.py --models demo:under,demo:over --method minmax,gptq --bits W8A8,W4A8 -o out/methods
    python benchmarks/methods.py --shared FOLDER --models photo-base --towers image,text --family ptq -o out/methods \
        --output benchmarks/results/methods.json --table docs/results/methods.md
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from methods_tables import BEGIN, END, UNCALIBRATED, label, tables
from scipy.stats import binomtest

from clipq.files import write_json, write_text
from clipq.machine import record
from clipq.methods import BITS, METHODS, method_of

DEMO_DATA = ("synthetic:scenes", "synthetic:scenes-far", "synthetic:scenes:calibration")
PHOTO_DATA = ("tiny_imagenet", "pneumoniamnist", "imagenette:train")  # judged on, foreign, calibrated and trained on
OTHERS = ("ort-fp32", "ort-int8-dynamic", "ort-int8-static")
FIGURES = ("acc1", "ece15", "signed_gap", "nll")


def run(words: list[str]) -> None:
    """Run one of this installation's commands and stop when it fails."""
    print("$", " ".join(words), file=sys.stderr, flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def data_of(model: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Return the data ids that a model is judged on, its foreign data, and what it is calibrated and trained on."""
    if model.startswith("demo:"):
        return DEMO_DATA
    judged_on, foreign, calibration = (f"{args.shared}/data/{name}" for name in PHOTO_DATA)
    if args.own:
        judged_on = str(split(Path(judged_on), args.own, args.folder / f"{Path(judged_on).name}-{args.own}"))
        calibration = f"{judged_on}:calibration"
    return tuple(f"wds:{path}" for path in (judged_on, foreign, calibration))


def split(source: Path, count: int, folder: Path) -> Path:
    """Divide the test images of a webdataset at random: so many to calibrate and train with, the rest to judge on.

    Returns:
        The folder, with the splits ``calibration`` and ``test``.
    """
    (whole,) = (source / "test").glob("*.tar")
    with tarfile.open(whole) as tar:
        members = {member.name: member for member in tar}
        keys = sorted({name.rsplit(".", 1)[0] for name in members})
        taken = {keys[place] for place in np.random.default_rng(0).permutation(len(keys))[:count]}
        for part, inside in (("calibration", True), ("test", False)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / "nshards.txt").write_text("1")
            with tarfile.open(folder / part / "0.tar", "w") as made:
                for name, member in members.items():
                    if (name.rsplit(".", 1)[0] in taken) is inside:
                        made.addfile(member, tar.extractfile(member))
    for text in source.glob("*.txt"):
        shutil.copy(text, folder)
    return folder


def measure(model: str, tower: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Export one bundle, judge it, and return a row per engine."""
    folder = args.folder / model.replace(":", "-") / f"{tower}-{args.name}"
    judged_on, foreign, calibration = data_of(model, args)
    model_id = model if model.startswith("demo:") else f"local-dir:{args.shared}/models/{model}"
    words = ["clipq-export", model_id, "-o", str(folder / "bundle"), "--engines", ",".join(OTHERS), "--towers", tower, "--resume"]
    words += ["--calib", calibration, "--calib-n", str(args.calib_n), "--method", ",".join(args.method), "--bits", ",".join(args.bits)]
    run([*words, *args.options])
    words = ["clipq", "eval", str(folder / "bundle"), "-o", str(folder / "report"), "--no-bench", "--resume"]
    words += ["--data", judged_on, "--ood", foreign, "--resamples", str(args.resamples)]
    run([*words, *(["--limit", str(args.limit)] if args.limit else [])])
    report = json.loads((folder / "report" / "report.json").read_text())
    engines = [engine for engine in report["engines"] if engine != "torch-fp32"]
    shown = f"{model}-own" if args.own else model
    rows = [row(shown, tower, engine, report, args) for engine in ["torch-fp32", *engines]]
    search = folder / "bundle" / "sensitivity.json"
    kept = [block["block"] for block in json.loads(search.read_text())["blocks"] if block["kept"]] if search.exists() else []
    for entry in rows:
        if kept and entry["engine"] not in UNCALIBRATED:
            entry["kept"] = kept
        training = folder / "bundle" / "towers" / f"{tower}.{entry['engine'].removeprefix('ort-')}.training.csv"
        if training.exists():
            entry["training"] = [dict(line) for line in csv.DictReader(training.read_text().splitlines())]
    return rows


def row(model: str, tower: str, engine: str, report: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return what one engine showed."""
    named = method_of(engine)
    (results,), (ood,) = (report[part][engine].values() for part in ("results", "ood"))
    found: dict[str, Any] = {"model": model, "tower": tower, "engine": engine, "calib_n": args.calib_n, "options": args.options}
    found |= {"method": named[0].name, "family": named[0].family, "bits": str(named[1])} if named else {}
    found["figures"] = {name: results[name] for name in FIGURES} | {"auroc": ood["mcm"]["auroc"]}
    if engine in report["paired"]:
        (paired,) = report["paired"][engine].values()
        n = results["acc1"]["n"]
        ends = binomtest(round(paired["disagreement"] * n), n).proportion_ci(method="wilson")
        found["paired"] = {name: paired[name] for name in ("disagreement", "flips", "js_divergence", "cosine_centred_mean")}
        found["paired"]["disagreement_ci95"] = [float(ends.low), float(ends.high)]
    return found


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of both, those made anew in the place of the old ones, in a fixed order."""
    rows = {(entry["model"], entry["tower"], label(entry)): entry for entry in [*old, *new]}
    methods, bits = list(METHODS), list(BITS)

    def place(entry: dict[str, Any]) -> tuple[Any, ...]:
        named = (bits.index(entry["bits"]), methods.index(entry["method"])) if "bits" in entry else (-1, -1)
        return entry["model"], entry["tower"], *named, entry["calib_n"]

    return sorted(rows.values(), key=place)


def main() -> None:
    """Measure what is asked for, and write record and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = {"type": lambda text: text.split(",")}
    parser.add_argument("--shared", type=Path, help="folder with models/ and data/")
    parser.add_argument("--models", default=["demo:under", "demo:over"], **words)
    parser.add_argument("--towers", default=["image"], **words)
    parser.add_argument("--family", choices=("ptq", "weight-only", "qat"), help="every method of a family")
    parser.add_argument("--method", default=[], **words)
    parser.add_argument("--bits", default=[], **words)
    parser.add_argument("--calib-n", type=int, default=256)
    parser.add_argument("--own", type=int, help="calibrate and train on so many of the photographs, judge on the rest (MODEL-own)")
    parser.add_argument("--limit", type=int, help="judge on so many images")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--options", type=str.split, default=[], help="more options for clipq-export, in one word")
    parser.add_argument("--name", default="run", help="of the folder of bundle and report, below model and tower")
    parser.add_argument("-o", "--folder", type=Path, default=Path("out/methods"), help="folder for bundles and reports")
    parser.add_argument("--output", type=Path, help="the record; rows of earlier runs stay")
    parser.add_argument("--table", type=Path, help="page whose tables are replaced")
    parser.add_argument("--join", type=Path, nargs="*", help="measure nothing: take the rows and runs of these records into --output")
    args = parser.parse_args()
    args.method += [name for name, method in METHODS.items() if method.family == args.family]
    args.bits = args.bits or (["W8A32", "W4A32"] if args.family == "weight-only" else ["W8A8", "W6A8", "W6A6", "W4A8", "W4A4"])
    old = json.loads(args.output.read_text()) if args.output and args.output.exists() else {"runs": [], "rows": []}
    if args.join is not None:
        made = [json.loads(path.read_text()) for path in args.join]
    else:
        new = [entry for model in args.models for tower in args.towers for entry in measure(model, tower, args)]
        run_record = record("methods", {"calib_n": args.calib_n, "limit": args.limit, "resamples": args.resamples})
        made = [{"runs": [run_record], "rows": new}]
    found = {"benchmark": "methods", "runs": [*old["runs"], *(one for each in made for one in each["runs"])]}
    found["rows"] = merged(old["rows"], [row for each in made for row in each["rows"]])
    if args.output:
        write_json(args.output, found)
    text = tables(found["rows"])
    if args.table:
        before, rest = args.table.read_text().split(BEGIN)
        write_text(args.table, f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    else:
        print(text)


if __name__ == "__main__":
    main()
