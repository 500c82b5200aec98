"""Embed once: one decoding pass over a data set feeds every engine that still lacks rows; texts go the same way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
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


def embed_images(engines: Mapping[str, Engine], stores: Mapping[str, Store], images: EvalSet, preprocess: Preprocess, work: Work) -> None:
    """Fill every store with the image embeddings of its engine; finished stores are left as they are.

    Images are decoded once for all engines, and memory does not grow with their number. What was embedded before an error or an
    interruption is on disk.

    Args:
        engines: Open engines by id.
        stores: A store per engine id; engines with the same image tower may share one.
        images: The images, in order: row i of a store is image i of the index.
        preprocess: Encoded image to pixels.
        work: How the cores are shared.

    Raises:
        DataError: More than 1 % of the images are unreadable.
        EngineError: An engine failed or gave NaN.
    """
    behind = _behind(engines, stores)
    if not behind:
        return
    first = min(store.rows for _, store in behind)
    begin = {store.folder: store.rows for _, store in behind}
    unreadable = int(np.isnan(behind[0][1].partial()[:first]).all(axis=1).sum())

    def embed(batch: Batch) -> dict[Path, Float32]:
        size = min(work.batch_size, len(images.index) - batch.start)
        return {store.folder: _image_rows(engine, batch, size) for engine, store in behind if batch.start >= begin[store.folder]}

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
    _fill([store for _, store in behind], in_order(embed, stream, work.streams), f"Embedding {images.index.data_id}", left)


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


def _image_rows(engine: Engine, batch: Batch, size: int) -> Float32:
    rows = np.full((size, engine.towers["image"].embed_dim), np.nan, np.float32)
    if len(batch.rows):
        rows[batch.rows - batch.start] = engine.run("image", batch.pixels)
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
