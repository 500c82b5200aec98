"""Timings are kept by content hash, put together with those of other builds, and never fail a build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipq.engines.tensorrt.device import DeviceFacts
from clipq.engines.tensorrt.timing_cache import _KEPT, TimingCache, user_folder
from clipq.files import locked, sha256_bytes

ORIN = DeviceFacts("Orin (nvgpu)", "8.7", "540.3.0", "12.2", 1)


class Cache:
    """A set of timings with the calls of ITimingCache."""

    def __init__(self, blob: bytes) -> None:
        self.timings = set(json.loads(blob or b"[]"))

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.timings)).encode()

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings |= other.timings
        return True


class Config:
    """The calls of IBuilderConfig; ``accepts`` is False for a cache of another GPU."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts = accepts
        self.cache: Cache | None = None

    def create_timing_cache(self, blob: bytes) -> Cache:
        return Cache(blob)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        if self.accepts or not cache.timings:
            self.cache = cache
            return True
        return False

    def get_timing_cache(self) -> Cache | None:
        return self.cache


def build(cache: TimingCache, *timings: str) -> tuple[str, str]:
    """Load, time something, save; return the hashes of both."""
    config = Config()
    loaded = cache.load(config)
    assert config.cache is not None
    config.cache.timings |= set(timings)
    return loaded, cache.save(config, loaded)


def test_next_build_starts_from_the_last(tmp_path: Path) -> None:
    """The hash that one build keeps is the one that the next loads; the file is named by its content."""
    cache = TimingCache(tmp_path, "8.6.2", ORIN)
    first, kept = build(cache, "a")
    again, more = build(cache, "b")
    assert (first, again) == ("", kept)
    files = {path.stem: path.read_bytes() for path in tmp_path.rglob("*.timing")}
    assert set(files) == {kept, more}
    assert all(sha256_bytes(blob) == name for name, blob in files.items())
    assert json.loads(files[more]) == ["a", "b"]


def test_builds_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """A build that ends after another one that began later puts both together."""
    cache, config = TimingCache(tmp_path, "8.6.2", ORIN), Config()
    loaded = cache.load(config)
    build(cache, "theirs")
    assert config.cache is not None
    config.cache.timings.add("mine")
    kept = cache.save(config, loaded)
    assert json.loads((next(tmp_path.iterdir()) / f"{kept}.timing").read_bytes()) == ["mine", "theirs"]


def test_each_library_gpu_and_driver_has_its_own(tmp_path: Path) -> None:
    """What another library, GPU or driver measured is not loaded."""
    build(TimingCache(tmp_path, "8.6.2", ORIN), "a")
    other_driver = DeviceFacts(ORIN.name, ORIN.sm, "540.4.0", ORIN.cuda, 1)
    for cache in (TimingCache(tmp_path, "10.3.0", ORIN), TimingCache(tmp_path, "8.6.2", other_driver)):
        assert cache.load(Config()) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["8.6.2-sm8.7-540.3.0-Orin-nvgpu"]


def test_foreign_or_damaged_timings_are_left_out(tmp_path: Path) -> None:
    """A cache that TensorRT refuses, or whose bytes are not its hash, is as good as none."""
    cache = TimingCache(tmp_path, "8.6.2", ORIN)
    _, kept = build(cache, "a")
    refusing = Config(accepts=False)
    assert cache.load(refusing) == ""
    assert refusing.cache is not None
    assert not refusing.cache.timings
    (next(tmp_path.iterdir()) / f"{kept}.timing").write_bytes(b"[]x")
    assert cache.load(Config()) == ""


def test_timings_that_the_library_cannot_read_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT answers with none at all; the build goes on without them, and keeps its own."""
    cache = TimingCache(tmp_path, "8.6.2", ORIN)
    build(cache, "a")
    monkeypatch.setattr(Config, "create_timing_cache", lambda _self, blob: None if blob else Cache(blob))
    loaded, kept = build(cache, "b")
    assert loaded == ""
    assert json.loads((next(tmp_path.iterdir()) / f"{kept}.timing").read_bytes()) == ["b"]


def test_old_timings_are_cleared(tmp_path: Path) -> None:
    """The folder does not grow without end, and the latest is never cleared."""
    cache = TimingCache(tmp_path, "8.6.2", ORIN)
    for index in range(_KEPT + 5):
        _, kept = build(cache, f"t{index}")
    names = {path.stem for path in tmp_path.rglob("*.timing")}
    assert len(names) == _KEPT
    assert kept in names


def test_what_cannot_be_kept_is_said_and_fails_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that another run holds for long costs the timings, not the plan."""
    monkeypatch.setattr("clipq.engines.tensorrt.timing_cache._WAIT_S", 0.05)
    cache = TimingCache(tmp_path, "8.6.2", ORIN)
    build(cache, "a")
    with locked(next(tmp_path.iterdir())):
        loaded, kept = build(cache, "b")
    assert loaded
    assert kept == ""
    assert "timings were not kept" in capsys.readouterr().err
    config = Config()
    config.cache = None
    assert cache.save(config, "") == ""


def test_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME counts; a user without a home has the system's folder of temporary files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "clipq" / "tensorrt"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", nobody)
    assert user_folder().parts[-3:] == (".cache", "clipq", "tensorrt")
