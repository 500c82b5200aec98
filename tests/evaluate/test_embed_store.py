"""The embedding store: whole shards, resuming, and refusing what was changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipq.errors import ClipqError, DataError
from clipq.evaluate import store as module
from clipq.evaluate.store import Store, Stores

FACTS = {"weights": "a", "data": "b"}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", 10)


def _rows(start: int, stop: int) -> np.ndarray:
    return np.arange(start * 3, stop * 3, dtype=np.float32).reshape(-1, 3)


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    """What was appended in pieces is read as one array."""
    store = Store(tmp_path, FACTS)
    for start in range(0, 28, 4):
        store.append(_rows(start, start + 4))
    store.finish()
    np.testing.assert_array_equal(Store(tmp_path, FACTS).read(), _rows(0, 28))
    assert len(list(store.folder.glob("*.npy"))) == 3


def test_a_killed_run_keeps_its_whole_shards(tmp_path: Path) -> None:
    """Rows that were only buffered are gone, written ones count, half-written files do not."""
    store = Store(tmp_path, FACTS)
    for start in range(0, 16, 4):
        store.append(_rows(start, start + 4))
    (store.folder / ".000000012-000000020.npy.abc.part").write_bytes(b"half")
    again = Store(tmp_path, FACTS)
    assert again.rows == 12
    assert not again.finished
    with pytest.raises(DataError, match="unfinished"):
        again.read()
    again.append(_rows(12, 20))
    again.finish()
    np.testing.assert_array_equal(again.read(), _rows(0, 20))
    assert not list(again.folder.glob(".*.part"))


def test_rows_are_read_block_by_block(tmp_path: Path) -> None:
    """Any stretch of rows, within a shard or over several, is that of the whole; what was changed is refused there too."""
    store = Store(tmp_path, FACTS)
    for start in range(0, 28, 4):
        store.append(_rows(start, start + 4))
    with pytest.raises(DataError, match="unfinished"):
        store.block(slice(0, 1))
    store.finish()
    again = Store(tmp_path, FACTS)
    assert (len(again), again.dim()) == (28, 3)
    for begin in range(28):
        for end in range(begin, 30):
            np.testing.assert_array_equal(again.block(slice(begin, end)), _rows(0, 28)[begin:end])
    np.save(sorted(store.folder.glob("*.npy"))[1], _rows(0, 12))
    with pytest.raises(DataError, match="were changed"):
        Store(tmp_path, FACTS).block(slice(0, 1))


def test_changed_rows_are_refused(tmp_path: Path) -> None:
    """The marker holds the hash of the rows."""
    store = Store(tmp_path, FACTS)
    store.append(_rows(0, 4))
    store.finish()
    (shard,) = store.folder.glob("*.npy")
    np.save(shard, _rows(1, 5))
    with pytest.raises(DataError, match="were changed"):
        store.read()


def test_a_gap_is_refused(tmp_path: Path) -> None:
    """A missing shard in the middle is no prefix to go on from."""
    store = Store(tmp_path, FACTS)
    for start in range(0, 30, 10):
        store.append(_rows(start, start + 10))
    (store.folder / "000000010-000000020.npy").unlink()
    with pytest.raises(DataError, match="lacks rows 10 to 20"):
        Store(tmp_path, FACTS)


def test_other_facts_are_another_store(tmp_path: Path) -> None:
    """The folder is named by everything that decides the values."""
    assert Store(tmp_path, FACTS).folder == Store(tmp_path, dict(reversed(FACTS.items()))).folder
    assert Store(tmp_path, {**FACTS, "version": "2"}).folder != Store(tmp_path, FACTS).folder


@pytest.mark.parametrize(("resume", "rows"), [(True, 10), (False, 0)])
def test_unfinished_stores_go_on_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int, *, resume: bool) -> None:
    """Without --resume an interrupted run is discarded, and said to be."""
    Store(tmp_path, FACTS).append(_rows(0, 10))
    assert Stores(tmp_path, resume=resume).of(FACTS).rows == rows
    assert ("discarding 10 embeddings" in capsys.readouterr().err) is not resume


def test_finished_stores_are_always_used_again(tmp_path: Path) -> None:
    """They are named by content, so there is nothing to ask; equal facts give one object."""
    store = Store(tmp_path, FACTS)
    store.append(_rows(0, 4))
    store.finish()
    stores = Stores(tmp_path, resume=False)
    assert stores.of(FACTS).finished
    assert stores.of(FACTS) is stores.of(dict(FACTS))


def test_full_disk_is_one_line_and_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that cannot be written is absent, the ones before it stay."""
    store = Store(tmp_path, FACTS)
    store.append(_rows(0, 10))

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ClipqError, match="No space left on device"):
        store.append(_rows(10, 20))
    assert Store(tmp_path, FACTS).rows == 10
    assert not list(store.folder.glob(".*.part"))
