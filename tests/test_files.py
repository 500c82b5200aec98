"""Files are whole or absent; hashes depend on content only; a lock keeps a second run out and ends with its process."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipq.errors import BusyError, ClipqError
from clipq.files import atomic_path, locked, sha256_bytes, sha256_file, sha256_json, write_json, write_text


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_hashes_agree_with_hashlib(tmp_path: Path) -> None:
    """A file longer than one block has the hash of its bytes."""
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_json_hash_ignores_key_order() -> None:
    """Equal values have equal hashes; other values have others."""
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def test_a_write_makes_its_folder_and_replaces_the_file(tmp_path: Path) -> None:
    """The second content stands, nothing else does."""
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "two")
    assert target.read_text() == "two"
    assert _names(target.parent) == ["file.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def _stop_halfway(part: Path) -> None:
    part.write_text("half")
    raise RuntimeError("stop")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """An error in the middle changes nothing and leaves nothing behind."""
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(target) as part:
        _stop_halfway(part)
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """ENOSPC names the file and the way out, and leaves nothing behind."""
    with pytest.raises(ClipqError, match=r"cannot write .*file\.txt; found No space left.*Free space"), atomic_path(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert _names(tmp_path) == []


def test_json_refuses_nan(tmp_path: Path) -> None:
    """JSON has no NaN: a file that others cannot read is not written."""
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert _names(tmp_path) == []


def test_a_lock_keeps_a_second_run_out(tmp_path: Path) -> None:
    """Exclusive means one; afterwards the folder is free again."""
    with locked(tmp_path), pytest.raises(BusyError, match="in use by another clipq run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_readers_share_and_keep_writers_out(tmp_path: Path) -> None:
    """Two shared locks stand together; an exclusive one waits for neither, it is refused."""
    with locked(tmp_path, exclusive=False), locked(tmp_path, exclusive=False), pytest.raises(BusyError), locked(tmp_path):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """After kill -9 the folder is free."""
    code = (
        "import os, pathlib, signal, sys, clipq.files as f\nwith f.locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    """A file where the folder should be is named."""
    (tmp_path / "file").touch()
    with pytest.raises(ClipqError, match=r"cannot open .*file"), locked(tmp_path / "file"):
        pass
