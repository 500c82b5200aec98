"""Stages: what is finished and intact is not made again; anything else is; a foreign folder is left alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from clipq.errors import ClipqError, ExportError, UsageError
from clipq.export.stages import Facts, Stages, refuse_foreign

KEY = {"recipe": "a", "model": "b"}


class Maker:
    """Writes a file and counts how often it was asked to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    def __call__(self) -> Facts:
        self.calls += 1
        (self.folder / "a.bin").write_bytes(b"content")
        return {"calls": self.calls}


def _run(folder: Path, maker: Maker, *, resume: bool = False, parent: str = "p") -> Facts:
    return Stages.open(folder, KEY, resume=resume).run("make a", ["a.bin"], parent, maker)


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    """Its facts and its file entries come from the record."""
    maker = Maker(tmp_path)
    _run(tmp_path, maker)
    stages = Stages.open(tmp_path, KEY, resume=True)
    assert stages.run("make a", ["a.bin"], "p", maker) == {"calls": 1}
    assert (stages.files["a.bin"].size_bytes, stages.files["a.bin"].parent) == (7, "p")


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    """The record is believed only as far as the hashes hold."""
    maker = Maker(tmp_path)
    _run(tmp_path, maker)
    (tmp_path / "a.bin").unlink() if damage == "missing" else (tmp_path / "a.bin").write_bytes(b"conten")
    assert _run(tmp_path, maker, resume=True) == {"calls": 2}


def test_another_parent_makes_the_file_again(tmp_path: Path) -> None:
    """What was made from another file is not this file."""
    maker = Maker(tmp_path)
    _run(tmp_path, maker)
    assert _run(tmp_path, maker, resume=True, parent="q") == {"calls": 2}


def test_external_data_beside_a_file_is_found(tmp_path: Path) -> None:
    """``<name>.data`` belongs to the stage without being named."""
    (tmp_path / "a.bin.data").write_bytes(b"weights")
    stages = Stages.open(tmp_path / "b", KEY, resume=False)
    (tmp_path / "b" / "a.bin.data").write_bytes(b"weights")
    stages.run("make a", ["a.bin"], "p", Maker(tmp_path / "b"))
    assert sorted(stages.files) == ["a.bin", "a.bin.data"]


def test_half_written_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    """Only names with a dot go, and not the lock."""
    _run(tmp_path, Maker(tmp_path))
    (tmp_path / "towers" / ".x.onnx.abc").mkdir(parents=True)
    (tmp_path / "towers" / ".x.onnx.abc" / "half").touch()
    (tmp_path / ".golden.npz.1.part").touch()
    (tmp_path / ".lock").touch()
    Stages.open(tmp_path, KEY, resume=True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [".lock", "a.bin", "stages.json", "towers"]


def test_an_error_keeps_what_is_finished(tmp_path: Path) -> None:
    """The next run continues behind the last whole stage."""
    maker = Maker(tmp_path)
    stages = Stages.open(tmp_path, KEY, resume=False)
    stages.run("make a", ["a.bin"], "p", maker)

    def fail() -> Facts:
        raise ExportError("no")

    with pytest.raises(ExportError):
        stages.run("make b", ["b.bin"], "p", fail)
    assert _run(tmp_path, maker, resume=True) == {"calls": 1}


def test_a_full_disk_tells_how_to_go_on(tmp_path: Path) -> None:
    """An OSError of any library becomes one line with --resume."""

    def fill() -> Facts:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ClipqError, match=r"cannot write .*No space left on device\. Free space.*--resume"):
        Stages.open(tmp_path, KEY, resume=False).run("make a", ["a.bin"], "p", fill)


def test_an_unfinished_export_needs_resume(tmp_path: Path) -> None:
    """Starting over by accident would lose hours."""
    _run(tmp_path, Maker(tmp_path))
    with pytest.raises(UsageError, match=r"unfinished export\. Continue it with --resume"):
        Stages.open(tmp_path, KEY, resume=False)


def test_another_recipe_is_not_continued(tmp_path: Path) -> None:
    """The line names what is different."""
    _run(tmp_path, Maker(tmp_path))
    with pytest.raises(UsageError, match="found another recipe"):
        Stages.open(tmp_path, {**KEY, "recipe": "c"}, resume=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {}}'])
def test_a_broken_record_is_one_clear_line(tmp_path: Path, text: str) -> None:
    """It is written atomically, so this is somebody else's doing."""
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(UsageError, match="is not a record of an export"):
        Stages.open(tmp_path, KEY, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, *, resume: bool) -> None:
    """Somebody's thesis is not mixed with a bundle."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not empty; found thesis\.tex"):
        Stages.open(tmp_path, KEY, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """``-o file`` is one clear line."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        refuse_foreign(tmp_path / "file", resume=False)


def test_a_new_folder_and_a_lock_are_fine(tmp_path: Path) -> None:
    """An empty folder, a missing one, and one that holds a lock only."""
    refuse_foreign(tmp_path / "new", resume=False)
    (tmp_path / ".lock").touch()
    refuse_foreign(tmp_path, resume=False)
    refuse_foreign(tmp_path, resume=True)


def test_closing_removes_the_record(tmp_path: Path) -> None:
    """The manifest then tells everything."""
    stages = Stages.open(tmp_path, KEY, resume=False)
    assert json.loads((tmp_path / "stages.json").read_text())["key"] == KEY
    stages.close()
    assert not (tmp_path / "stages.json").exists()
