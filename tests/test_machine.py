"""What a record says of the code that made it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from clipq import __version__
from clipq.machine import describe_code

GIT = shutil.which("git")


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run([str(GIT), "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder look like where clipq lies, and return its machine.py."""
    path = folder / "clipq" / "machine.py"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr("clipq.machine.__file__", str(path))
    return path


@pytest.mark.skipif(GIT is None, reason="git is not installed")
def test_code_of_a_checkout_has_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean after the commit, dirty after a change or a new file in the package, not after one elsewhere."""
    path = _package(tmp_path, monkeypatch)
    _git(tmp_path, "init", "--quiet")
    assert describe_code() == {"clipq": __version__}  # nothing is committed yet
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes").touch()
    assert describe_code() == {"clipq": __version__, "commit": commit, "dirty": False}
    path.write_text("changed")
    assert describe_code() == {"clipq": __version__, "commit": commit, "dirty": True}
    _git(tmp_path, "checkout", "--", "clipq")
    (path.parent / "new.py").touch()
    assert describe_code()["dirty"] is True


def test_installed_code_has_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a checkout, or without git, there is no commit to tell, even inside somebody else's checkout."""
    inner = tmp_path / "site-packages"
    inner.mkdir()
    (tmp_path / ".git").mkdir()
    _package(inner, monkeypatch)
    assert describe_code() == {"clipq": __version__}
    (inner / ".git").mkdir()
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert describe_code() == {"clipq": __version__}
