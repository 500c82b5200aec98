"""Embed once: one decoding pass over a data set feeds every engine that still lacks rows; texts go the same way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clipq.calib_data.pipeline import Batch, batches
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.base import Engine, Float32
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.store import Store
from clipq.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")
Tokens = npt.NDArray[np.int32]

MAX_STREAMS = 8  # bounds the memory for activations on machines with many cores


@dataclass(frozen=True, slots=True)
class Work:
    """How the cores are shared.

    Several batches are embedded at once, each by few threads. One batch at a time on all cores would wait at the end of every
    operator for the slowest thread, and the slowest is the one whose core is decoding.

    Attributes:
        batch_size: Images or texts of one inference.
        streams: Batches embedded at the same time.
        threads: CPU threads of one inference.
        workers: Threads that decode and preprocess.
    """

    batch_size: int
    streams: int
    threads: int
    workers: int


def plan_work(cores: int, batch_size: int) -> Work:
    """Return how to share ``cores``.

    >>> plan_work(2, 32)
    Work(batch_size=32, streams=2, threads=1, workers=2)
    >>> plan_work(64, 32)
    Work(batch_size=32, streams=8, threads=8, workers=64)
    """
    streams = min(cores, MAX_STREAMS)
    return Work(batch_size=batch_size, streams=streams, threads=cores // streams, workers=cores)


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is kept of an engine's patch tokens.

    Attributes:
        store: Where.
        columns: How many numbers are kept of an image.
        reduce: Patch tokens float32 ``(n, patches, dim)`` to rows ``(n, columns)``; images are independent of each other.
    """

    store: Store
    columns: int
    reduce: Callable[[Float32], Float32]


def embed_images(  # noqa: PLR0913, PLR0917 - what is embedded, by what, how, and what is kept beside
    engines: Mapping[str, Engine],
    stores: Mapping[str, Store],
    images: EvalSet,
    preprocess: Preprocess,
    work: Work,
    reductions: Mapping[str, Sequence[Reduction]] = MappingProxyType({}),
) -> None:
    """Fill every store with the image embeddings of its engine; finished stores are left as they are.

    Images are decoded once for all engines, and memory does not grow with their number. What was embedded before an error or an
    interruption is on disk.

    Args:
        engines: Open engines by id.
        stores: A store per engine id; engines with the same image tower may share one.
        images: The images, in order: row i of a store is image i of the index.
        preprocess: Encoded image to pixels.
        work: How the cores are shared.
        reductions: Engine id -> what is kept of its patch tokens; they themselves are not.

    Raises:
        DataError: More than 1 % of the images are unreadable.
        EngineError: An engine failed or gave NaN.
    """
    embeddings, kept = _behind(engines, stores), _reductions_behind(engines, reductions)
    behind = [store for _, store in embeddings] + [reduction.store for _, reduction in kept]
    if not behind:
        return
    first = min(store.rows for store in behind)
    begin = {store.folder: store.rows for store in behind}
    unreadable = int(np.isnan(behind[0].partial()[:first]).all(axis=1).sum())

    def embed(batch: Batch) -> dict[Path, Float32]:
        size = min(work.batch_size, len(images.index) - batch.start)
        rows: dict[Path, Float32] = {}
        for engine in engines.values():
            own = [store.folder for it, store in embeddings if it is engine and batch.start >= begin[store.folder]]
            due = [reduction for it, reduction in kept if it is engine and batch.start >= begin[reduction.store.folder]]
            rows |= _image_rows(engine, batch, size, own, due)
        return rows

    stream = batches(
        images.source,
        images.index,
        preprocess,
        batch_size=work.batch_size,
        workers=work.workers,
        start=first,
        skipped_before=unreadable,
    )
    left = len(images.index) - first
    _fill(behind, in_order(embed, stream, work.streams), f"Embedding {images.index.data_id}", left)


def embed_texts(engines: Mapping[str, Engine], stores: Mapping[str, Store], tokens: Tokens, work: Work) -> None:
    """Fill every store with the text embeddings of its engine; finished stores are left as they are.

    Args:
        engines: Open engines by id.
        stores: A store per engine id; engines with the same text tower share one.
        tokens: int32 ``(n, context length)``.
        work: How the cores are shared.

    Raises:
        EngineError: An engine failed or gave NaN.
    """
    for engine, store in _behind(engines, stores):

        def embed(start: int, engine: Engine = engine, folder: Path = store.folder) -> dict[Path, Float32]:
            return {folder: engine.run("text", tokens[start : start + work.batch_size])}

        starts = range(store.rows, len(tokens), work.batch_size)
        _fill([store], in_order(embed, starts, work.streams), f"Embedding texts with {engine.id}", len(tokens) - store.rows)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], streams: int) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of the items, computed in ``streams`` threads, at most ``streams + 1`` ahead."""
    pool = ThreadPoolExecutor(streams, "clipq-embed")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > streams:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _behind(engines: Mapping[str, Engine], stores: Mapping[str, Store]) -> list[tuple[Engine, Store]]:
    """Return each unfinished store once, with an engine that fills it."""
    unfinished: dict[Path, tuple[Engine, Store]] = {}
    for name, engine in engines.items():
        if not stores[name].finished:
            unfinished.setdefault(stores[name].folder, (engine, stores[name]))
    return list(unfinished.values())


def _reductions_behind(engines: Mapping[str, Engine], reductions: Mapping[str, Sequence[Reduction]]) -> list[tuple[Engine, Reduction]]:
    """Return each unfinished reduction once, with an engine that feeds it."""
    unfinished: dict[Path, tuple[Engine, Reduction]] = {}
    for name, listed in reductions.items():
        for reduction in listed:
            if not reduction.store.finished:
                unfinished.setdefault(reduction.store.folder, (engines[name], reduction))
    return list(unfinished.values())


def _image_rows(engine: Engine, batch: Batch, size: int, own: Sequence[Path], due: Sequence[Reduction]) -> dict[Path, Float32]:
    """Return the rows of one batch for the stores that wait for them: its embeddings, and what is kept of its patch tokens."""
    if not own and not due:
        return {}
    kept: list[Float32] = []
    if not len(batch.rows):
        embeddings = np.empty((0, engine.towers["image"].embed_dim), np.float32)
        kept = [np.empty((0, reduction.columns), np.float32) for reduction in due]
    elif due:
        embeddings, patches = engine.run_patches(batch.pixels)
        kept = [reduction.reduce(patches) for reduction in due]
    else:
        embeddings = engine.run("image", batch.pixels)
    rows = dict.fromkeys(own, _with_gaps(embeddings, batch, size))
    return rows | {reduction.store.folder: _with_gaps(found, batch, size) for reduction, found in zip(due, kept, strict=True)}


def _with_gaps(found: Float32, batch: Batch, size: int) -> Float32:
    """Return rows for all images of a batch, those of NaN that could not be read."""
    rows = np.full((size, found.shape[1]), np.nan, np.float32)
    rows[batch.rows - batch.start] = found
    return rows


def _fill(stores: list[Store], results: Iterator[dict[Path, Float32]], title: str, total: int) -> None:
    by_folder: dict[Any, Store] = {store.folder: store for store in stores}
    try:
        with bar(title, total) as advance:
            for result in results:
                for folder, rows in result.items():
                    by_folder[folder].append(rows)
                advance(max(len(rows) for rows in result.values()))
    finally:
        for store in stores:
            store.flush()
    for store in stores:
        store.finish()
