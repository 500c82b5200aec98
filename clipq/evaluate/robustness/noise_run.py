"""Measure the noise axis: corrupted copies of every labelled data set, from one decoding pass per data set to the errors of every engine.

Of a copy only accuracy, ECE-15, NLL, Brier score and over-confidence are computed: no OOD pairs, and no rows of ``samples.parquet``, which
seventy-five copies would make seventy-five times as long. Their embeddings stay in the stores.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.calib_data.corrupted import CorruptedSource
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Float32
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Work, embed_images
from clipq.evaluate.embeddings import Embedded, image_facts, opened
from clipq.evaluate.robustness.light import light_outcomes
from clipq.evaluate.robustness.noise import CELL_METRICS, NoiseCells, facts, finished, noise_estimates
from clipq.evaluate.robustness.noise_options import NoiseOptions
from clipq.evaluate.robustness.prepared import prepared
from clipq.evaluate.statistics.bootstrap import Resampled
from clipq.evaluate.statistics.classification import resample_classification
from clipq.evaluate.store import Store, Stores
from clipq.machine import usable_cores
from clipq.progress import bar

Cell = tuple[str, int]
CellStores = dict[Cell, dict[str, Store]]  # (corruption, severity) -> engine id -> store


@dataclass(frozen=True, slots=True)
class NoiseRun:
    """How to measure.

    Attributes:
        bundle: Where the engines are.
        options: Which corruptions.
        work: How the cores are shared.
        root: Folder of the stores.
        resume: Go on with unfinished stores.
        resamples: Bootstrap resamples.
        seed: Theirs; the pictures do not depend on it.
    """

    bundle: Bundle
    options: NoiseOptions
    work: Work
    root: Path
    resume: bool
    resamples: int
    seed: int


def measure_noise(run: NoiseRun, embedded: Embedded, altered: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return ENGINE -> clean DATA -> the noise part.

    Args:
        run: How.
        embedded: The data sets; their classifiers serve their copies too.
        altered: Data ids without copies, because they are shifted or altered already; corrupted copies have none in any case.

    Raises:
        DataError: More than 1 % of the images are unreadable.
        EngineError: An engine failed.
    """
    clean = {
        data: images for data, images in embedded.inside.items() if data not in altered and not isinstance(images.source, CorruptedSource)
    }
    stores = _embed_copies(run, embedded.engine_ids, clean)
    parts: dict[str, dict[str, Any]] = {engine: {} for engine in embedded.engine_ids}
    facts_by_data = {}
    with bar("Scoring corrupted images", len(clean) * len(parts)) as advance:
        for data, cells in stores.items():
            baseline = None
            for engine in embedded.engine_ids:
                own = _measured(run, embedded, engine, data, cells)
                baseline = baseline or own
                parts[engine][data] = noise_estimates(own, baseline, run.options.reference, is_baseline=own is baseline)
                facts_by_data[data] = facts(own, run.options.reference)
                advance(1)
    return finished(parts, facts_by_data)


def _embed_copies(run: NoiseRun, engine_ids: Sequence[str], clean: Mapping[str, EvalSet]) -> dict[str, CellStores]:
    """Embed every copy that no store holds yet with every engine; return data id -> stores."""
    preprocess = Preprocess.from_file(run.bundle.file("preprocess.json"))
    stores = Stores(run.root, resume=run.resume)
    found: dict[str, CellStores] = {}
    for data, images in clean.items():
        indices = {cell: CorruptedSource(images.source, *cell).index_from(images.index) for cell in _cells(run)}
        found[data] = {
            cell: {name: stores.of(image_facts(run.bundle, name, index.digest, preprocess, run.work)) for name in engine_ids}
            for cell, index in indices.items()
        }
        left = {cell: row for cell, row in found[data].items() if not all(store.finished for store in row.values())}
        missing = [name for name in engine_ids if any(not row[name].finished for row in left.values())]
        if not left:
            continue
        with opened(run.bundle, missing, run.work) as engines, prepared(images, preprocess, run.work.workers, run.root) as source:
            for cell, row in left.items():
                copy = EvalSet(CorruptedSource(source, *cell), indices[cell])
                embed_images(engines, {name: row[name] for name in missing}, copy, preprocess, run.work)
    return found


def _cells(run: NoiseRun) -> list[Cell]:
    return [(name, severity) for name in run.options.corruptions for severity in run.options.severities]


def _measured(run: NoiseRun, embedded: Embedded, engine: str, data: str, cells: CellStores) -> NoiseCells:
    """Return an engine's resampled errors, several copies computed at once: numpy leaves the cores free to other threads."""
    classes, readable = embedded.classes(engine, data), embedded.readable[data]
    labels = embedded.inside[data].index.labels[readable]

    def resampled(embeddings: Float32, what: str) -> Resampled:
        outcomes = light_outcomes(embeddings, classes, run.bundle.manifest.model, labels, f"{engine} on {what}")
        return resample_classification(outcomes, resamples=run.resamples, seed=run.seed, metrics=CELL_METRICS, only=True)

    def of_copy(cell: Cell) -> Resampled:
        return resampled(cells[cell][engine].read()[readable], f"{cell[0]}/{cell[1]} of {data}")

    with ThreadPoolExecutor(usable_cores()) as pool:
        measured = dict(zip(cells, pool.map(of_copy, cells), strict=True))
    return NoiseCells(resampled(embedded.images(engine, data), data), measured)
