"""The lab for calibration data: draws, measures, compares, and writes the record as JSON, Markdown and one page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from clipq import __version__
from clipq.artifact import Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.calibration_lab.bands import bands, enough, levels, resampled, shift
from clipq.calibration_lab.cells import Answered, Cells
from clipq.calibration_lab.draws import Pool, describe_pool, draw_pool
from clipq.calibration_lab.fill import FP32, Lab, Tested, checked_graph, graph_hashes
from clipq.calibration_lab.graphs import Graphs
from clipq.calibration_lab.options import Form, LabOptions
from clipq.calibration_lab.page import page
from clipq.calibration_lab.pixels import Decoder
from clipq.calibration_lab.tell import markdown
from clipq.engines.onnxruntime.providers import CPU, require_provider
from clipq.evaluate.datasets import EvalSet, load_sets
from clipq.evaluate.embed import plan_work
from clipq.evaluate.embeddings import tokenise
from clipq.evaluate.provenance import describe_run
from clipq.evaluate.statistics.bootstrap import Resampled
from clipq.evaluate.zeroshot import prompts
from clipq.export.quantize.graph import scratch_folder
from clipq.files import write_json, write_text
from clipq.machine import library_versions, usable_cores
from clipq.progress import bar

SCHEMA = "clipq.calibration/1"
PARTIAL, CELLS = "pixels.partial", "cells"


def calibration_lab(bundle: Bundle, options: LabOptions, folder: Path) -> dict[str, Any]:
    """Measure every draw, write the record into ``folder`` and return it.

    Raises:
        UsageError: A method, bits or a data set is unknown, or a draw needs more images than its source has.
        MissingRuntimeError: A library is not here.
        DataError: The data is unusable, or a calibration image is a test image.
        ExportError: A graph cannot be made.
        EngineError: A graph gives NaN or infinity, or the bundle has no FP32 graph.
        RefusedError: A file is not what the manifest says.
    """
    require_provider(CPU)
    forms, work = options.forms(), plan_work(options.threads or usable_cores(), options.batch_size)
    fp32 = checked_graph(bundle, "image")
    tested = _tested(bundle, options)
    drawn = (draw_pool(data_id, options, [one.index for one in tested.sets]) for data_id in dict.fromkeys(options.calib))
    pools = list({pool.source.id: pool for pool in drawn}.values())
    _sweep(folder, pixels=not options.resume)
    with scratch_folder(folder / "graphs") as scratch:
        graphs = Graphs(bundle, fp32, scratch)
        graphs.prepare(forms)
        preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
        decoder = Decoder(preprocess, work.workers, folder / PARTIAL, folder / CELLS)
        cells = Cells(folder / CELLS, _shared_facts(bundle, tested, preprocess, graphs, options))
        lab = Lab(bundle, tested, decoder, cells, graphs, work)
        lab.fill(pools, forms, options)
    found = _record(bundle, options, tested, pools, lab)
    write_json(folder / "calibration.json", found)
    write_text(folder / "calibration.md", markdown(found))
    write_text(folder / "calibration.html", page(found))
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    return found


def _sweep(folder: Path, *, pixels: bool) -> None:
    """Remove what a killed run left half-written, and its pixels where nobody goes on with them; the caller holds the folder's lock."""
    for left in folder.glob(".graphs.*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in [*folder.glob(f"{CELLS}/.*.part"), *folder.glob(f"{PARTIAL}/.*.part")]:
        left.unlink(missing_ok=True)
    if pixels:
        shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def _tested(bundle: Bundle, options: LabOptions) -> Tested:
    ood = (options.ood,) if options.ood else ()
    inside, outside = load_sets(bundle, (options.data,), ood, limit=options.limit, seed=options.seed)
    (images,) = inside.values()
    texts = prompts(images.source.classnames, images.source.templates)
    tokens = tokenise(bundle, {images.source.id: texts})[images.source.id]
    return Tested(images, next(iter(outside.values()), None), tokens)


def _shared_facts(bundle: Bundle, tested: Tested, preprocess: Preprocess, graphs: Graphs, options: LabOptions) -> dict[str, Any]:
    """Return what decides every cell beside its own images and form."""
    return {
        "clipq": __version__,
        "versions": library_versions(),
        "graphs": {tower: graph_hashes(bundle, tower) for tower in ("image", "text")},
        "preprocess": preprocess.sha256(),
        "sets": [one.index.digest for one in tested.sets],
        "templates": list(tested.images.source.templates),
        "classes": list(tested.images.source.classnames),
        "mha": graphs.mha,
        "ranges": graphs.ranges,
        "batch_size": options.batch_size,
    }


def _record(bundle: Bundle, options: LabOptions, tested: Tested, pools: Sequence[Pool], lab: Lab) -> dict[str, Any]:
    forms = options.forms()
    before, rows, foreign = _compare(options, tested, pools, lab)
    return {
        "schema": SCHEMA,
        "provenance": {
            **describe_run(bundle),
            "seed": options.seed,
            "seeds": list(options.draws),
            "resamples": options.resamples,
            "limit": options.limit,
            "batch_size": options.batch_size,
        },
        "dataset": {**_describe(tested.images, lab), "classes": len(tested.images.source.classnames)},
        "ood": None if tested.outside is None else _describe(tested.outside, lab),
        "calibration": [describe_pool(pool, lab.readable(pool), options) for pool in pools],
        "forms": [{"method": form.method.name, "bits": str(form.bits), "simulated": form.bits.simulated} for form in forms],
        "fp32": levels(before),
        "rows": rows,
        "enough": _enough(rows, forms, pools),
        "foreign": foreign,
    }


def _compare(
    options: LabOptions, tested: Tested, pools: Sequence[Pool], lab: Lab
) -> tuple[Resampled, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return FP32's figures, the bands of every form, source and number, and what each further source changes over the first."""
    labels, fp32 = tested.images.index.labels[lab.readable(tested.images)], lab.read(FP32)

    def seen(answers: Answered) -> Resampled:
        return resampled(answers, fp32, labels, resamples=options.resamples, seed=options.seed)

    rows: list[dict[str, Any]] = []
    foreign: list[dict[str, Any]] = []
    before = seen(fp32)
    forms = options.forms()
    order = {(form.method.name, str(form.bits)): place for place, form in enumerate(forms)}
    places = {pool.source.id: place for place, pool in enumerate(pools)}
    with bar("Comparing draws", len(forms) * len(options.numbers) * len(pools) * options.seeds) as advance:
        for form, n in product(forms, options.numbers):
            first: list[Resampled] = []
            for pool in pools:
                draws = []
                for seed in options.draws:
                    draws.append(seen(lab.read(lab.facts(pool, form, n, seed))))
                    advance(1)
                head = {"method": form.method.name, "bits": str(form.bits), "calib": pool.source.id}
                rows.append({**head, "n": n, "metrics": bands(draws, before)})
                if first:
                    foreign.append({**head, "against": pools[0].source.id, "n": n, "metrics": shift(first, draws)})
                first = first or draws
    for listed in (rows, foreign):  # measured number by number, read source by source
        listed.sort(key=lambda row: (order[row["method"], row["bits"]], places[row["calib"]], row["n"]))
    return before, rows, foreign


def _describe(images: EvalSet, lab: Lab) -> dict[str, Any]:
    readable = lab.readable(images)
    skipped = [images.index.ids[row] for row in np.flatnonzero(~readable)]
    return {"id": images.source.id, "n": int(readable.sum()), "sha256": images.index.digest, "skipped": skipped}


def _enough(rows: Sequence[Mapping[str, Any]], forms: Sequence[Form], pools: Sequence[Pool]) -> list[dict[str, Any]]:
    """Return from which number of images on the draw matters less than the test images, for each form and source."""
    found = []
    for form in forms:
        for pool in pools:
            head = {"method": form.method.name, "bits": str(form.bits), "calib": pool.source.id}
            own = {row["n"]: row["metrics"] for row in rows if {name: row[name] for name in head} == head}
            found.append({**head, "n": enough(own)})
    return found
