"""Image-text retrieval: every engine embeds images and captions with its own towers, then both directions are ranked and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.calib_data.captions import open_captioned
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Float32
from clipq.evaluate.correction import add_holm
from clipq.evaluate.datasets import EvalSet, calibration_hashes, load_set
from clipq.evaluate.embed import Work, embed_images, embed_texts
from clipq.evaluate.embeddings import opened, readable_images, text_facts, tokenise
from clipq.evaluate.entries import measurements
from clipq.evaluate.metrics.arrays import Bool, Int64
from clipq.evaluate.metrics.retrieval import Retrieved, overlap, rank_correlation, retrieve
from clipq.evaluate.provenance import tower_facts
from clipq.evaluate.statistics.bootstrap import Resampled, compare
from clipq.evaluate.statistics.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, RetrievalOutcomes, resample_retrieval
from clipq.evaluate.store import Stores
from clipq.evaluate.zeroshot import l2_normalised
from clipq.progress import bar

TOP = 10  # items whose overlap with the baseline's is told
CORRELATED = 200  # queries, evenly spaced, whose whole ranking is correlated with the baseline's


@dataclass(frozen=True, slots=True, eq=False)
class CaptionSet:
    """The images of one data set that are used, and their captions.

    Attributes:
        images: The images.
        texts: Every caption, image by image.
        owner: int64 ``(texts,)``: the row of the index that each caption belongs to.
    """

    images: EvalSet
    texts: Sequence[str]
    owner: Int64


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The parts of a report.

    Attributes:
        results: ENGINE -> DATA -> METRIC -> measurement.
        datasets: DATA -> what ``report["datasets"]`` says of it.
    """

    results: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Sides:
    """One engine's unit vectors of the readable images and their captions, and what both directions retrieved."""

    images: Float32
    texts: Float32
    by_image: Retrieved
    by_text: Retrieved


def load_caption_sets(bundle: Bundle, data_ids: Sequence[str], *, limit: int | None, seed: int) -> dict[str, CaptionSet]:
    """Return the data sets by their canonical ids, in the order they were named; a limit counts images, with all their captions.

    Raises:
        UsageError: An id is unknown.
        DataError: Images were used for calibration, or have no caption.
    """
    sets = {}
    seen = calibration_hashes(bundle) if data_ids else set()
    for data_id in data_ids:
        found = open_captioned(data_id)
        images = load_set(found.source, seen, limit, seed)
        captions = [found.captions[position] for position in images.index.positions]
        owner = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
        sets[found.source.id] = CaptionSet(images, [text for texts in captions for text in texts], owner.astype(np.int64))
    return sets


def evaluate_retrieval(  # noqa: PLR0913 - each is one choice of the caller
    bundle: Bundle,
    engine_ids: Sequence[str],
    sets: Mapping[str, CaptionSet],
    work: Work,
    root: Path,
    *,
    resume: bool,
    resamples: int,
    seed: int,
) -> Retrieval:
    """Embed what no store under ``root`` holds yet, and compare every engine with the first one.

    Args:
        bundle: Where the engines are.
        engine_ids: The baseline first.
        sets: From ``load_caption_sets``.
        work: How the cores are shared.
        root: Folder of the stores.
        resume: Go on with unfinished stores.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Raises:
        DataError: Too many images are unreadable.
        EngineError: An engine failed.
    """
    made = Retrieval({name: {} for name in engine_ids}, {})
    stores = Stores(root, resume=resume)
    for data, captions in sets.items():
        embedded = _embed(bundle, engine_ids, captions, work, stores)
        readable = readable_images({name: images for name, (images, _) in embedded.items()})
        made.datasets[data] = _describe(captions, readable)
        owner = _renumbered(captions.owner, readable)
        baseline: tuple[_Sides, Resampled] | None = None
        with bar(f"Ranking {data}", len(engine_ids)) as advance:
            for name, (images, texts) in embedded.items():
                said = readable[captions.owner]
                sides = _ranked(images.read()[readable], texts.read()[said], owner, f"{name} on {data}")
                outcomes = RetrievalOutcomes(owner, sides.by_image.ranks, sides.by_text.ranks, _agreement(baseline, sides))
                own = resample_retrieval(outcomes, resamples=resamples, seed=seed)
                made.results[name][data] = measurements(compare(baseline[1] if baseline else None, own)) | _correlation(baseline, sides)
                baseline = baseline or (sides, own)
                advance(1)
    add_holm(made.results)
    return made


def _embed(bundle: Bundle, engine_ids: Sequence[str], captions: CaptionSet, work: Work, stores: Stores) -> dict[str, tuple[Any, Any]]:
    """Return ENGINE -> (store of the images, store of the captions), both finished."""
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    tokens = tokenise(bundle, {"captions": captions.texts})["captions"]
    facts = {"data": captions.images.index.digest, "preprocess": preprocess.sha256(), "batch_size": work.batch_size}
    images = {name: stores.of({**tower_facts(bundle, name, "image"), **facts}) for name in engine_ids}
    texts = {name: stores.of({**tower_facts(bundle, name, "text"), **text_facts(tokens, work)}) for name in engine_ids}
    missing = [name for name in engine_ids if not (images[name].finished and texts[name].finished)]
    with opened(bundle, missing, work) as engines:
        embed_texts(engines, texts, tokens, work)
        embed_images(engines, images, captions.images, preprocess, work)
    return {name: (images[name], texts[name]) for name in engine_ids}


def _describe(captions: CaptionSet, readable: Bool) -> dict[str, Any]:
    index = captions.images.index
    return {
        "n": int(readable.sum()),
        "classes": 0,
        "captions": int(readable[captions.owner].sum()),
        "sha256": index.digest,
        "skipped": [index.ids[row] for row in np.flatnonzero(~readable)],
        "templates": [],
        "role": "retrieval",
    }


def _renumbered(owner: Int64, readable: Bool) -> Int64:
    """Return the owners of the captions of readable images, counted among these images."""
    place = np.cumsum(readable) - 1
    return place[owner[readable[owner]]].astype(np.int64)


def _ranked(images: Float32, texts: Float32, owner: Int64, what: str) -> _Sides:
    image_units, text_units = l2_normalised(images, f"images: {what}"), l2_normalised(texts, f"captions: {what}")
    everyone = np.arange(len(images))
    by_image = retrieve(image_units, text_units, everyone, owner, k=TOP)
    return _Sides(image_units, text_units, by_image, retrieve(text_units, image_units, owner, everyone, k=TOP))


def _agreement(baseline: tuple[_Sides, Resampled] | None, sides: _Sides) -> dict[str, Any]:
    if baseline is None:
        return {}
    pairs = {IMAGE_TO_TEXT: (baseline[0].by_image, sides.by_image), TEXT_TO_IMAGE: (baseline[0].by_text, sides.by_text)}
    return {f"{way}_overlap_at_{TOP}": overlap(before.top, after.top) for way, (before, after) in pairs.items()}


def _correlation(baseline: tuple[_Sides, Resampled] | None, sides: _Sides) -> dict[str, Any]:
    """Return the mean rank correlation of whole rankings with the baseline's, over a few queries of each direction."""
    if baseline is None:
        return {}
    found = {}
    before = baseline[0]
    for way, queries, gallery in ((IMAGE_TO_TEXT, "images", "texts"), (TEXT_TO_IMAGE, "texts", "images")):
        count = len(getattr(sides, queries))
        rows = np.unique(np.linspace(0, count - 1, min(count, CORRELATED)).astype(np.int64))
        scores = [getattr(side, queries)[rows] @ getattr(side, gallery).T for side in (before, sides)]
        mean = float(rank_correlation(scores[0], scores[1]).mean())
        found[f"{way}_rank_correlation"] = _plain(mean, len(rows))
    return found


def _plain(value: float, n: int) -> dict[str, Any]:
    """Return a measurement without interval and without difference."""
    return {"value": value if np.isfinite(value) else None, "ci95": None, "n": n, "delta": None, "delta_ci95": None, "p_value": None}
