"""The decoding pipeline: order, batch boundaries, resume, unreadable images, bounded memory, threads that end."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from odd_pictures import declared
from PIL import Image

from clipq.calib_data.index import DataIndex, build_index
from clipq.calib_data.pipeline import Batch, batches
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.source import MAX_ENCODED_BYTES, Sample
from clipq.errors import DataError, UsageError


class MemorySource:
    """Samples held in memory, which counts how many were read; an exception among them is raised when it is reached."""

    def __init__(self, data: Sequence[bytes | Exception]) -> None:
        self.id, self.classnames, self.templates = "memory", (), ()
        self.labels = np.full(len(data), -1, np.int64)
        self.data = list(data)
        self.taken = 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        for position in range(len(self)) if positions is None else positions:
            self.taken += 1
            data = self.data[position]
            if isinstance(data, Exception):
                raise data
            yield Sample(f"i{position:04d}", -1, data)


@pytest.fixture
def photographs(image: Callable[..., bytes]) -> list[bytes]:
    """Return 230 small images."""
    return [image(seed, size=(20 + seed % 7, 18 + seed % 5)) for seed in range(230)]


def expected_pixels(data: bytes, preprocess: Preprocess) -> np.ndarray:
    """Return an image's pixels without the pipeline."""
    return preprocess.normalise(preprocess.pixels_u8(Image.open(io.BytesIO(data)))[None])[0]


def clipq_threads() -> list[str]:
    """Return the pipeline's threads that are still alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clipq-")]


def run(source: MemorySource, preprocess: Preprocess, index: DataIndex | None = None, **options: int) -> list[Batch]:
    """Return all batches of a source."""
    return list(batches(source, index or build_index(source), preprocess, **options))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 32, 300])
def test_order_and_pixels(photographs: list[bytes], preprocess: Preprocess, workers: int, batch_size: int) -> None:
    """Any number of workers and any batch size gives the same pixels in the order of the index."""
    found = run(MemorySource(photographs), preprocess, workers=workers, batch_size=batch_size)
    assert [batch.start for batch in found] == list(range(0, 230, batch_size))
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in found]), np.arange(230))
    expected = np.stack([expected_pixels(data, preprocess) for data in photographs])
    np.testing.assert_array_equal(np.concatenate([batch.pixels for batch in found]), expected, strict=True)
    assert not clipq_threads()


@pytest.mark.parametrize("start", [0, 1, 64, 229, 230])
def test_resume_gives_the_rest(photographs: list[bytes], preprocess: Preprocess, start: int) -> None:
    """Starting at a row yields the rows from there, in blocks from there."""
    found = run(MemorySource(photographs), preprocess, start=start, batch_size=50)
    assert [row for batch in found for row in batch.rows.tolist()] == list(range(start, 230))
    assert all(batch.start == start + 50 * k for k, batch in enumerate(found))


def test_rows_are_of_the_index_not_the_source(photographs: list[bytes], preprocess: Preprocess) -> None:
    """A sampled index yields its own rows, with the pixels of its positions."""
    source = MemorySource(photographs)
    index = build_index(source, limit=20, seed=1)
    pixels = np.concatenate([batch.pixels for batch in run(source, preprocess, index, batch_size=6)])
    expected = np.stack([expected_pixels(photographs[position], preprocess) for position in index.positions])
    np.testing.assert_array_equal(pixels, expected)


def _bomb(image: Callable[..., bytes]) -> bytes:
    """Return a PNG whose header claims 40,000 x 40,000 pixels."""
    return declared(image, "PNG", 40_000)


def _strip() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (1, 400_000)).save(stream, "PPM")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "empty or cannot be read"),
        ("garbage", "cannot identify"),
        ("truncated jpeg", "truncated"),
        ("truncated png", ""),
        ("bomb", "pixels"),
        ("strip", "too narrow"),
        ("giant file", "larger than 64 MiB"),
        ("eps", "cannot identify"),
    ],
)
def test_unreadable_images_are_counted_and_listed(
    photographs: list[bytes], preprocess: Preprocess, image: Callable[..., bytes], kind: str, reason: str
) -> None:
    """A bad image leaves its batch with a reason; no other row moves, and no other image is lost."""
    bad = {
        "empty": b"",
        "garbage": b"no image at all",
        "truncated jpeg": photographs[5][:-200],
        "truncated png": image(5, kind="PNG")[:-300],
        "bomb": _bomb(image),
        "strip": _strip(),
        "giant file": photographs[5] + bytes(MAX_ENCODED_BYTES),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }[kind]
    photographs[5] = bad
    first, *others = run(
        MemorySource(photographs), Preprocess((224, 224), "shortest", "bicubic", preprocess.mean, preprocess.std), batch_size=8
    )
    assert first.rows.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert len(first.pixels) == 7
    assert [skipped.id for skipped in first.skipped] == ["i0005"]
    assert reason in first.skipped[0].reason
    assert "\n" not in first.skipped[0].reason
    assert [batch.start for batch in others] == list(range(8, 230, 8))
    assert not any(batch.skipped for batch in others)


def test_a_batch_of_unreadable_images_is_empty(photographs: list[bytes], preprocess: Preprocess) -> None:
    """A batch without any readable image still comes, so that its skipped images are counted."""
    photographs[3] = b""
    found = run(MemorySource(photographs), preprocess, batch_size=1)
    assert found[3].pixels.shape == (0, 3, 16, 16)
    assert (found[3].start, found[3].rows.tolist(), [item.id for item in found[3].skipped]) == (3, [], ["i0003"])


def test_more_than_one_percent_unreadable_is_an_error(photographs: list[bytes], preprocess: Preprocess) -> None:
    """Two of 230 pass, three do not; the line names the first ones and why."""
    photographs[3] = photographs[100] = b""
    assert sum(len(batch.skipped) for batch in run(MemorySource(photographs), preprocess)) == 2
    photographs[200] = b"x"
    with pytest.raises(DataError) as caught:
        run(MemorySource(photographs), preprocess)
    line = str(caught.value)
    assert "more than 1 % of the 230 images of memory are unreadable; found 3 so far: i0003 (the file is empty" in line
    assert caught.value.exit_code == 1
    assert not clipq_threads()


def test_skipped_images_before_a_resume_count(photographs: list[bytes], preprocess: Preprocess) -> None:
    """What was skipped before an interruption counts towards the limit afterwards."""
    photographs[200] = b""
    source = MemorySource(photographs)
    assert run(source, preprocess, start=100, skipped_before=1)
    with pytest.raises(DataError, match="found 3 so far: i0200"):
        run(source, preprocess, start=100, skipped_before=2)


def test_an_error_while_reading_ends_the_run(photographs: list[bytes], preprocess: Preprocess) -> None:
    """A source that fails raises in the consumer, after the batches that were whole."""
    source = MemorySource(photographs)
    index = build_index(source)
    source.data[100] = OSError("the disk is gone")
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batches(source, index, preprocess, batch_size=32))
    assert [batch.start for batch in seen] == [0, 32, 64]
    assert not clipq_threads()


def test_data_that_changed_is_refused(photographs: list[bytes], preprocess: Preprocess) -> None:
    """A source with other images than its index is an error, not a wrong result."""
    source = MemorySource(photographs)
    index = build_index(MemorySource(photographs[:100]))
    index.positions[50:] += 1
    with pytest.raises(DataError, match="memory changed while it was read"):
        run(source, preprocess, index)


@pytest.mark.parametrize("ending", ["close", "raise"])
def test_threads_end_when_the_consumer_stops(photographs: list[bytes], preprocess: Preprocess, ending: str) -> None:
    """A consumer that leaves early, or fails, leaves no thread behind."""
    source = MemorySource(photographs)
    stream = batches(source, build_index(source), preprocess, batch_size=4, workers=3)
    next(stream)
    assert clipq_threads()
    if ending == "close":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    assert not clipq_threads()


def test_reading_ahead_is_bounded(photographs: list[bytes], preprocess: Preprocess) -> None:
    """A slow consumer makes the reader wait: only a few batches are held."""
    source = MemorySource(photographs)
    index = build_index(source)
    source.taken = 0
    stream = batches(source, index, preprocess, batch_size=8, workers=2)
    next(stream)
    time.sleep(0.3)
    assert source.taken <= 6 * 8
    stream.close()


def test_decoding_runs_ahead_of_the_consumer(photographs: list[bytes], preprocess: Preprocess) -> None:
    """While the consumer computes, the next batches are decoded."""
    source = MemorySource(photographs)
    stream = batches(source, build_index(source), preprocess, batch_size=8, workers=2)
    next(stream)
    time.sleep(0.5)
    began = time.perf_counter()
    next(stream)
    assert time.perf_counter() - began < 0.2
    stream.close()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_wrong_sizes_are_refused(photographs: list[bytes], preprocess: Preprocess, options: dict[str, int]) -> None:
    """A batch of no images, or no worker, is a usage error."""
    with pytest.raises(UsageError, match="at least 1"):
        run(MemorySource(photographs[:2]), preprocess, **options)
