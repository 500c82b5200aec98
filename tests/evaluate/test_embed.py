"""Embedding passes: one decode for all engines, rows in order, nothing lost, nothing computed twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipq.calib_data.index import build_index
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.source import Sample
from clipq.calib_data.synthetic import open_synthetic
from clipq.engines.base import Engine, TowerSpec
from clipq.errors import EngineError
from clipq.evaluate import store as store_module
from clipq.evaluate.datasets import EvalSet
from clipq.evaluate.embed import Work, embed_images, embed_texts, in_order, plan_work
from clipq.evaluate.store import Store

PREPROCESS = Preprocess((8, 8), "shortest", "bicubic", (0.5,) * 3, (0.25,) * 3)
WORK = Work(batch_size=4, streams=3, threads=1, workers=2)


class _Source:
    """A few drawn scenes; counts what is read, and breaks the images it is told to."""

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        drawn = open_synthetic("scenes")
        self.id, self.classnames, self.templates = "test:counted", drawn.classnames, drawn.templates
        self.labels = drawn.labels[:n]
        self._samples = list(drawn.read(range(n)))
        for position in broken:
            self._samples[position] = Sample(self._samples[position].id, 0, b"no image")
        self.reads = 0

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        for position in range(len(self)) if positions is None else positions:
            self.reads += 1
            yield self._samples[position]


class _Means(Engine):
    """Embeds an image as the mean of each channel times a factor; may be slow, and may fail at a batch."""

    def __init__(self, factor: float = 1.0, fail_at: int | None = None) -> None:
        super().__init__("means", {"image": TowerSpec("float32", (3, 8, 8), 3), "text": TowerSpec("int32", (2,), 3)})
        self.factor, self.fail_at, self.calls, self.seen = factor, fail_at, 0, 0
        self._lock = threading.Lock()

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _run(self, tower: str, batch: Any) -> Any:
        with self._lock:
            self.calls += 1
            self.seen += len(batch)
            call = self.calls
        if self.fail_at is not None and call >= self.fail_at:
            raise EngineError("the engine broke")
        time.sleep(0.002 * (call % 3))  # batches finish out of order
        if tower == "text":
            return np.repeat(batch[:, :1].astype(np.float32), 3, axis=1) * np.float32(self.factor)
        return batch.mean(axis=(2, 3), dtype=np.float32) * np.float32(self.factor)


def _images(n: int, broken: tuple[int, ...] = ()) -> EvalSet:
    source = _Source(n, broken)
    made = EvalSet(source, build_index(source))
    source.reads = 0
    return made


def _expected(images: EvalSet) -> np.ndarray:
    return np.stack([PREPROCESS.normalise(_pixels(sample)[None])[0].mean(axis=(1, 2), dtype=np.float32) for sample in images.source.read()])


def _pixels(sample: Sample) -> np.ndarray:
    from clipq.calib_data.pipeline import decode

    return PREPROCESS.pixels_u8(decode(sample.data))


def test_one_decode_feeds_every_engine(tmp_path: Path) -> None:
    """Every image is read once for two engines, and row i is image i."""
    images = _images(30)
    stores = {name: Store(tmp_path, {"engine": name}) for name in ("a", "b")}
    embed_images({"a": _Means(), "b": _Means(2.0)}, stores, images, PREPROCESS, WORK)
    assert images.source.reads == 30  # type: ignore[attr-defined]
    np.testing.assert_allclose(stores["a"].read(), _expected(images), rtol=1e-6)
    np.testing.assert_allclose(stores["b"].read(), 2 * _expected(images), rtol=1e-6)


def test_unreadable_images_are_rows_of_nan(tmp_path: Path) -> None:
    """They keep their place, so that the rows of all engines stay those of the index."""
    images = _images(200, broken=(7, 150))
    store = Store(tmp_path, {})
    embed_images({"a": _Means()}, {"a": store}, images, PREPROCESS, WORK)
    assert np.flatnonzero(np.isnan(store.read()).all(axis=1)).tolist() == [7, 150]


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the rows before it are on disk, and the next run starts there and gives the same values."""
    monkeypatch.setattr(store_module, "SHARD_ROWS", 8)
    images, broken, whole = _images(40), _Means(fail_at=6), _Means()
    with pytest.raises(EngineError, match="the engine broke"):
        embed_images({"a": broken}, {"a": Store(tmp_path, {})}, images, PREPROCESS, WORK)
    store = Store(tmp_path, {})
    done = store.rows
    assert 0 < done < 40
    assert done % WORK.batch_size == 0
    embed_images({"a": whole}, {"a": store}, images, PREPROCESS, WORK)
    assert whole.seen == 40 - done
    np.testing.assert_allclose(store.read(), _expected(images), rtol=1e-6)


def test_an_engine_that_is_ahead_waits(tmp_path: Path) -> None:
    """One pass fills what each engine lacks, and only that."""
    images, ahead, behind = _images(24), _Means(), _Means(3.0)
    first = Store(tmp_path, {"engine": "ahead"})
    first.append(_expected(images)[:12])
    first.flush()
    stores = {"ahead": Store(tmp_path, {"engine": "ahead"}), "behind": Store(tmp_path, {"engine": "behind"})}
    embed_images({"ahead": ahead, "behind": behind}, stores, images, PREPROCESS, WORK)
    assert (ahead.seen, behind.seen) == (12, 24)
    np.testing.assert_allclose(stores["ahead"].read(), _expected(images), rtol=1e-6)
    embed_images({"ahead": ahead, "behind": behind}, stores, images, PREPROCESS, WORK)
    assert (ahead.seen, behind.seen) == (12, 24)


def test_engines_with_the_same_tower_share_its_work(tmp_path: Path) -> None:
    """Two engines with one store: one of them computes it, once."""
    images, engines = _images(12), {"a": _Means(), "b": _Means()}
    store = Store(tmp_path, {})
    embed_images(engines, {"a": store, "b": store}, images, PREPROCESS, WORK)
    assert sorted(engine.seen for engine in engines.values()) == [0, 12]
    assert len(store.read()) == 12


def test_texts_resume_too(tmp_path: Path) -> None:
    """Text rows are those of the tokens, whatever was there before."""
    tokens = np.stack([np.arange(50), np.zeros(50)], axis=1).astype(np.int32)
    store, engine = Store(tmp_path, {}), _Means()
    store.append(np.repeat(np.arange(8, dtype=np.float32)[:, None], 3, axis=1))
    embed_texts({"a": engine}, {"a": store}, tokens, WORK)
    np.testing.assert_array_equal(store.read()[:, 0], np.arange(50))
    assert engine.seen == 42


def test_results_keep_the_order_of_the_items() -> None:
    """Whatever finishes first; and only a few items are taken ahead."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def slow(item: int) -> int:
        time.sleep(0.003 * (item % 4 == 0))
        return item

    results = in_order(slow, items(), streams=3)
    assert next(results) == 0
    assert len(taken) == 4
    assert list(results) == list(range(1, 20))


@pytest.mark.parametrize("cores", [1, 2, 6, 8, 12, 64])
def test_no_more_threads_than_cores(cores: int) -> None:
    """Streams times threads never exceeds the cores."""
    work = plan_work(cores, 32)
    assert 1 <= work.streams * work.threads <= cores
