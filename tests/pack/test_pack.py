"""Packing and unpacking: the same bytes for the same bundle, a whole folder or none, little memory."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import make_toy_bundle, rewrite_manifest
from toy_packs import member, members, tar, write_pack

from clipq.artifact import MANIFEST, Bundle, describe_file, write_manifest
from clipq.cli.main import main
from clipq.errors import BusyError, ClipqError, MissingRuntimeError, RefusedError, UsageError
from clipq.files import locked
from clipq.pack.compression import load_zstd
from clipq.pack.members import END, HEADER, header, packed_bytes, padding, read_header
from clipq.pack.read import unpack_bundle
from clipq.pack.write import pack_bundle


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("good") / "bundle"
    make_toy_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def pack(good: Path) -> Path:
    """Return its pack."""
    return pack_bundle(good, good.parent / "good.clipq.tar.zst").path


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_unpacked_bundle_is_the_packed_one(good: Path, pack: Path, tmp_path: Path) -> None:
    """Every file comes back, and nothing else; the folder is one that runs."""
    unpacked = unpack_bundle(pack, tmp_path / "new" / "out")
    assert _files(unpacked.folder) == _files(good)
    assert unpacked.manifest == Bundle.open(good).manifest
    assert unpacked.manifest_sha256 == hashlib.sha256((good / MANIFEST).read_bytes()).hexdigest()
    assert {path.stat().st_mode & 0o777 for path in unpacked.folder.rglob("*") if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in (unpacked.folder, unpacked.folder / "towers")} == {0o755}
    Bundle.open(unpacked.folder).verify()


def test_pack_is_what_tarfile_makes(good: Path, pack: Path) -> None:
    """Without its compression it is byte for byte the tar that Python writes of the sorted files, manifest first."""
    assert load_zstd().decompress(pack.read_bytes()) == tar(members(good))


def test_tarfile_reads_a_pack(good: Path, pack: Path) -> None:
    """Any tar that knows zstd opens it."""
    with tarfile.open(fileobj=io.BytesIO(load_zstd().decompress(pack.read_bytes()))) as opened:
        found = {info.name: opened.extractfile(info) for info in opened}
        assert {name: stream.read() for name, stream in found.items() if stream} == _files(good)
        assert next(iter(found)) == MANIFEST


@pytest.mark.skipif(shutil.which("tar") is None or shutil.which("zstd") is None, reason="no tar, or no zstd program")
def test_tar_unpacks_a_pack(good: Path, pack: Path, tmp_path: Path) -> None:
    """A device without Python's zstd still has tar."""
    subprocess.run(["tar", "--zstd", "-xf", str(pack), "-C", str(tmp_path)], check=True)
    assert _files(tmp_path) == _files(good)


def test_same_bundle_has_the_same_bytes(good: Path, pack: Path, tmp_path: Path) -> None:
    """Copied in another order, with other times and modes, in another folder, under another name of the pack."""
    copy = tmp_path / "copy"
    for number, name in enumerate(sorted(_files(good), reverse=True)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(good / name, copy / name)
        (copy / name).chmod(0o600 + number % 2 * 0o055)
        os.utime(copy / name, (number * 1e8, number * 1e8))
    (copy / "not-named").write_bytes(b"left out")
    again = pack_bundle(copy, tmp_path / "again.clipq.tar.zst")
    assert again.path.read_bytes() == pack.read_bytes()
    assert again.sha256 == hashlib.sha256(pack.read_bytes()).hexdigest()
    assert again.blake2b == hashlib.blake2b(pack.read_bytes()).digest()
    assert (again.size_bytes, again.content_bytes) == (pack.stat().st_size, sum(map(len, _files(good).values())))


def test_unpacking_and_packing_again_gives_the_same_pack(pack: Path, tmp_path: Path) -> None:
    """A pack goes from hand to hand without changing."""
    unpack_bundle(pack, tmp_path / "out")
    assert pack_bundle(tmp_path / "out", tmp_path / "b.tar.zst").path.read_bytes() == pack.read_bytes()


_NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,30}(/[a-z][a-z0-9]{0,30}){0,2}", fullmatch=True)


@settings(max_examples=10, deadline=None)
@given(st.dictionaries(_NAMES, st.binary(max_size=3000), max_size=5))
def test_any_files_come_back(contents: dict[str, bytes]) -> None:
    """Empty files, sizes around a block of tar, names in folders."""
    contents = {
        name: data
        for name, data in contents.items()
        if name.split("/")[0] != MANIFEST and not any(other.startswith(f"{name}/") for other in contents)
    }
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "bundle"
        for name, data in {"a": b"", **contents}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_dir():
                (folder / name).write_bytes(data)
        rewrite_manifest(folder, {})
        packed = pack_bundle(folder, Path(work) / "a.tar.zst")
        assert _files(unpack_bundle(packed.path, Path(work) / "out").folder) == _files(folder)
        assert len(load_zstd().decompress(packed.path.read_bytes())) == packed_bytes([len(data) for data in _files(folder).values()])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 96 MiB passes through both ways in a few blocks of 1 MiB."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    with (folder / "large").open("wb") as stream:
        for _ in range(96):
            stream.write(os.urandom(1 << 16) * 16)
    rewrite_manifest(folder, {})
    tracemalloc.start()
    try:
        unpack_bundle(pack_bundle(folder, tmp_path / "a.tar.zst").path, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
    assert describe_file(tmp_path / "out", "large") == describe_file(folder, "large")


@pytest.mark.parametrize(("size", "name"), [(0, "a"), (8**11 - 1, "b"), (8**11, "c"), (1 << 45, "towers/image.onnx.data"), (7, "d" * 99)])
def test_header_says_name_and_size(size: int, name: str) -> None:
    """Also of files of more than 8 GiB, which a plain tar header has no room for."""
    block = header(name, size)
    assert len(block) == HEADER
    assert read_header(block, "pack") == (name, size)
    info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    assert (info.mode, info.uid, info.gid, info.mtime, info.uname, info.gname) == (0o644, 0, 0, 0, "", "")


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 0), ("é" * 51, 0), ("a" * 60 + "/" + "b" * 60, 8**11)])
def test_name_without_room_is_refused(name: str, size: int) -> None:
    """Instead of a second kind of header."""
    with pytest.raises(RefusedError, match=r"cannot be packed.*Use a shorter name"):
        header(name, size)


def test_padding_fills_blocks() -> None:
    """By hand: a tar of an empty file and one of 513 bytes is 512 + 512 + 1024 bytes and its end."""
    assert [padding(size) for size in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]
    assert packed_bytes([0, 513]) == 512 + 512 + 1024 + len(END)


@pytest.mark.parametrize("time", [0, 1, 2**33 - 1])
def test_wrong_clock_does_not_matter(good: Path, tmp_path: Path, time: int) -> None:
    """Times in a pack are not read, and what is unpacked has those of now."""
    entries = [member(info.name, data, mtime=time) for info, data in members(good)]
    unpack_bundle(write_pack(tmp_path / "a.tar.zst", entries), tmp_path / "out")
    Bundle.open(tmp_path / "out").verify()


def test_empty_folder_is_taken(pack: Path, tmp_path: Path) -> None:
    """A folder made for it counts as new, also through a link."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    unpack_bundle(pack, tmp_path / "link")
    Bundle.open(tmp_path / "empty").verify()


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_there_is_left_alone(pack: Path, tmp_path: Path, there: str) -> None:
    """A file, or a folder with anything in it, is the user's slip: exit code 2."""
    target = tmp_path / "out"
    (target if there == "file" else target / "mine").parent.mkdir(exist_ok=True)
    (target if there == "file" else target / "mine").write_bytes(b"mine")
    before = _files(tmp_path)
    with pytest.raises(UsageError, match="is there already; expected a new or an empty folder") as caught:
        unpack_bundle(pack, target)
    assert caught.value.exit_code == 2
    assert _files(tmp_path) == before


def test_no_pack_is_a_slip(tmp_path: Path) -> None:
    """A name that does not exist, or is a folder."""
    for source in (tmp_path / "none.tar.zst", tmp_path):
        with pytest.raises(UsageError, match="no pack at"):
            unpack_bundle(source, tmp_path / "out")


def test_no_bundle_is_a_slip(tmp_path: Path) -> None:
    """The line says how to make one."""
    with pytest.raises(UsageError, match="clipq-export MODEL"):
        pack_bundle(tmp_path, tmp_path / "a.tar.zst")


def test_other_endings_are_a_slip(good: Path, tmp_path: Path) -> None:
    """A pack is called what it is."""
    for name in ("a.zip", "a", ".tar.zst"):
        with pytest.raises(UsageError, match=r"expected \*\.tar\.zst"):
            pack_bundle(good, tmp_path / name)
    (tmp_path / "b.tar.zst").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        pack_bundle(good, tmp_path / "b.tar.zst")


def test_bundle_that_is_written_is_not_packed(good: Path, tmp_path: Path) -> None:
    """Another run holds it."""
    with locked(good), pytest.raises(BusyError):
        pack_bundle(good, tmp_path / "a.tar.zst")


def test_missing_library_names_the_extra(good: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 and the line to install, before anything is written."""
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: pack_bundle(good, tmp_path / "a.tar.zst"), lambda: unpack_bundle(pack, tmp_path / "out")):
        with pytest.raises(MissingRuntimeError, match=r"Run: pip install 'clipq\[pack\]'") as caught:
            call()
        assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_small_disk_is_told_before_the_work(good: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says how much is needed."""
    needed = sum(entry.size_bytes for entry in Bundle.open(good).manifest.files.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=needed - 1))
    with pytest.raises(ClipqError, match=f"no space for .*; found {needed - 1} bytes; expected {needed}"):
        unpack_bundle(pack, tmp_path / "out")
    assert not list(tmp_path.iterdir())


_FULL = """
import resource, sys
from clipq.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_full_disk_leaves_nothing(tmp_path: Path, command: str) -> None:
    """When it fills up in the middle, one line says so, and no file or folder looks finished."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "weights").write_bytes(os.urandom(100_000))
    rewrite_manifest(folder, {})
    source = folder if command == "pack" else pack_bundle(folder, tmp_path / "a.tar.zst").path
    work = tmp_path / "work"
    work.mkdir()
    target = work / ("b.tar.zst" if command == "pack" else "out")
    run = [sys.executable, "-c", _FULL, command, str(source), "-o", str(target), "-q"]
    ended = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith(f"clipq: cannot write {target}; found File too large. Free space")
    assert ended.stderr.count("\n") == 1
    assert not list(work.iterdir())


_KILLED = """
import os, signal, sys
import clipq.pack.read as read
from clipq.cli.main import main
write, written = read._write, []
def die(path, blocks):
    written.append(path)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, blocks)
read._write = die
main(sys.argv[1:])
"""


def test_killed_unpack_leaves_no_bundle(pack: Path, tmp_path: Path) -> None:
    """After kill -9 the folder does not exist, its hidden beginning has no manifest, and a second try succeeds."""
    run = [sys.executable, "-c", _KILLED, "unpack", str(pack), "-o", str(tmp_path / "out"), "-q"]
    assert subprocess.run(run, check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    assert not (left / MANIFEST).exists()
    unpack_bundle(pack, tmp_path / "out")


@pytest.fixture
def nobody(pack: Path) -> Iterator[Path]:
    """Return a folder that may be read but not written, as a user whose rights count; everything is imported before."""
    for command in ("pack", "unpack"):
        importlib.import_module(f"clipq.cli.{command}")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["pack", "unpack"])
def test_read_only_folder_is_one_line(command: str, nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be written there, and the line names what."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "bundle"
        folder.mkdir()
        rewrite_manifest(folder, {})
        source = folder if command == "pack" else pack_bundle(folder, Path(work) / "a.tar.zst").path
        target = nobody / ("a.tar.zst" if command == "pack" else "out")
        assert main([command, str(source), "-o", str(target), "-q"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"clipq: cannot write {target}; found Permission denied. Free space or choose another folder with -o."
    )


def test_read_only_bundle_is_packed(good: Path, pack: Path, tmp_path: Path) -> None:
    """Packing writes nothing into the bundle that cannot be written."""
    folder = shutil.copytree(good, tmp_path / "bundle", ignore=shutil.ignore_patterns(".lock"))
    folder.chmod(0o555)
    assert pack_bundle(folder, tmp_path / "a.tar.zst").path.read_bytes() == pack.read_bytes()
    folder.chmod(0o755)


def test_bundle_of_an_older_version_is_packed(good: Path, tmp_path: Path) -> None:
    """A manifest without provenance opens, packs and comes back as it was."""
    folder = shutil.copytree(good, tmp_path / "bundle")
    value = json.loads((folder / MANIFEST).read_text())
    del value["provenance"]
    (folder / MANIFEST).write_text(json.dumps(value))
    unpacked = unpack_bundle(pack_bundle(folder, tmp_path / "a.tar.zst").path, tmp_path / "out")
    assert unpacked.manifest.provenance == {}
    assert "provenance" not in (tmp_path / "out" / MANIFEST).read_text()


def test_failed_pack_keeps_the_old_one(good: Path, pack: Path, tmp_path: Path) -> None:
    """A file that changed since the manifest was written ends the packing before the target is touched."""
    folder = shutil.copytree(good, tmp_path / "bundle")
    target = Path(shutil.copy(pack, tmp_path / "a.tar.zst"))
    data = (folder / "preprocess.json").read_bytes()
    (folder / "preprocess.json").write_bytes(b" " * len(data))
    with pytest.raises(RefusedError, match=r"preprocess\.json is not the file the manifest names; found sha256"):
        pack_bundle(folder, target)
    assert target.read_bytes() == pack.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "a.tar.zst"}


def test_unnameable_files_are_not_packed(good: Path, tmp_path: Path) -> None:
    """A manifest that no folder could hold is refused by pack as by unpack."""
    folder = shutil.copytree(good, tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, replace(manifest, files={**manifest.files, "towers//x": manifest.files["preprocess.json"]}))
    with pytest.raises(RefusedError, match="not written in the shortest way"):
        pack_bundle(folder, tmp_path / "a.tar.zst")


def test_commands_tell_what_they_did(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout for a reader, or as JSON."""
    target, out = str(tmp_path / "a.clipq.tar.zst"), str(tmp_path / "out")
    assert main(["pack", str(good), "-o", target, "-q", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sha256"] == hashlib.sha256(Path(target).read_bytes()).hexdigest()
    assert (record["files"], record["model"], record["signature"], record["key"]) == (len(_files(good)) - 1, "toy:none", None, None)
    assert main(["unpack", target, "-o", out, "-q", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest_sha256"] == record["manifest_sha256"]
    assert main(["pack", str(good), "-o", target, "-q"]) == 0
    assert record["sha256"] in capsys.readouterr().out
    assert main(["unpack", target, "-o", f"{out}2", "-q"]) == 0
    assert "no signature asked for" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["pack"], ["pack", "bundle"], ["pack", "-o", "a.tar.zst"], ["pack", "bundle", "--make-key", "k"]])
def test_half_a_command_is_a_slip(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing, or too much, is told with exit code 2."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("clipq: ")
