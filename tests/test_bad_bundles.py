"""Bad bundles: every one is refused with exit code 5 and one line, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_bundle import MODEL, make_toy_bundle, rewrite_manifest
from toy_packs import Member, compress, edited, member, members, tar, write_pack

from clipq.artifact import MANIFEST_LIMIT, Bundle
from clipq.cli.main import main
from clipq.pack.compression import load_zstd

INT8 = "engines/ort-int8-static/image.onnx"
Make = Callable[[list[Member]], bytes]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("good") / "bundle"
    make_toy_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole bundle of another model."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("other") / "bundle"
    make_toy_bundle(folder, model=replace(MODEL, id="toy:other", state_sha256="cd" * 32))
    return folder


def _with(*more: Member) -> Make:
    return lambda entries: compress(tar([*entries, *more]))


def _replaced(name: str, data: bytes, **changes: Any) -> Make:
    return lambda entries: compress(tar([member(name, data, **changes) if info.name == name else (info, old) for info, old in entries]))


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Make:
    return lambda entries: compress(tar(edited(entries, change)))


def _named(name: str) -> Make:
    """Name a file in the manifest and pack it, hash and all."""
    entry = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size_bytes": 0, "parent": ""}
    return lambda entries: compress(tar([*edited(entries, lambda value: value["files"].update({name: entry})), member(name)]))


def _size(size: object) -> Make:
    return _manifest(lambda value: value["files"]["preprocess.json"].update(size_bytes=size))


def _one_bit(entries: list[Member]) -> bytes:
    """Change one bit of a graph and pack again, so that everything else fits."""
    info, data = entries[-1]
    return compress(tar([*entries[:-1], (info, data[:40] + bytes([data[40] ^ 1]) + data[41:])]))


def _raw(change: Callable[[bytes], bytes]) -> Make:
    """Change the compressed file itself."""
    return lambda entries: change(compress(tar(entries)))


_DEEP = b'{"schema":' * 100_000
_HUGE = b" " * (MANIFEST_LIMIT + 1)
PACKS: dict[str, tuple[Make, str]] = {
    "symbolic link": (
        lambda entries: compress(tar([entries[0], member("x", type=tarfile.SYMTYPE, linkname="/etc/passwd")])),
        "'x'; found a symbolic link",
    ),
    "symbolic link instead of a file": (_replaced(INT8, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "found a symbolic link"),
    "hard link": (_replaced(INT8, b"", type=tarfile.LNKTYPE, linkname="manifest.json"), "found a hard link"),
    "character device": (_replaced(INT8, b"", type=tarfile.CHRTYPE), "found a device"),
    "block device": (_replaced(INT8, b"", type=tarfile.BLKTYPE), "found a device"),
    "pipe": (_replaced(INT8, b"", type=tarfile.FIFOTYPE), "found a pipe"),
    "folder": (_replaced(INT8, b"", type=tarfile.DIRTYPE), "found a folder"),
    "extended header": (_replaced(INT8, b"", type=tarfile.XHDTYPE), "found an entry of type b'x'"),
    "long name of GNU tar": (_replaced(INT8, b"", type=tarfile.GNUTYPE_LONGNAME), "found an entry of type b'L'"),
    "sparse file": (_replaced(INT8, b"", type=tarfile.GNUTYPE_SPARSE), "found an entry of type b'S'"),
    "absolute path": (lambda entries: compress(tar([entries[0], member("/etc/passwd")])), "'/etc/passwd'; found an absolute path"),
    "path out of the folder": (lambda entries: compress(tar([entries[0], member("a/../../b")])), r"'a/../../b'; found '\.\.'"),
    "longer path than needed": (lambda entries: compress(tar([entries[0], member("./preprocess.json")])), "not written in the shortest"),
    "path with an escape": (lambda entries: compress(tar([entries[0], member("\x1b[2J")])), "cannot be printed"),
    "named absolute path": (_named("/etc/passwd"), "names '/etc/passwd'; found an absolute path"),
    "named path out of the folder": (_named("../b"), r"names '\.\./b'; found '\.\.'"),
    "named path written twice": (_named("towers//image.fp32.onnx"), "not written in the shortest way"),
    "manifest that names itself": (_named("manifest.json"), "found the manifest itself"),
    "file as a folder": (_named("preprocess.json/a"), "'preprocess.json' is a file already"),
    "manifest as a folder": (_named("manifest.json/a"), "'manifest.json' is a file already"),
    "name without bytes": (
        _manifest(lambda value: value["files"].update({"\ud800": value["files"]["preprocess.json"]})),
        "cannot be printed",
    ),
    "file twice": (lambda entries: compress(tar([*entries[:2], *entries[1:]])), "found it twice"),
    "manifest twice": (lambda entries: compress(tar([entries[0], *entries])), "'manifest.json'; found it twice"),
    "file that nobody named": (lambda entries: compress(tar([entries[0], member("extra"), *entries[1:]])), "the manifest does not name"),
    "more than the manifest says": (_replaced(INT8, b"", size=1 << 32), "found 4294967296 bytes; expected .*, as its manifest says"),
    "negative size": (
        lambda entries: compress(tar([*entries[:-1], member(entries[-1][0].name, size=-1)], form=tarfile.GNU_FORMAT)),
        "bytes",
    ),
    "less than the manifest says": (_replaced(INT8, b"graph"), "found 5 bytes; expected"),
    "bomb in the manifest": (lambda _: compress(tar([member("manifest.json", size=1 << 32)])), f"expected at most {MANIFEST_LIMIT}"),
    "manifest above the limit": (lambda _: compress(tar([member("manifest.json", _HUGE)])), "is too large"),
    "missing file": (lambda entries: compress(tar(entries[:-1])), "found no 'towers/text.fp32.onnx'"),
    "no files": (lambda entries: compress(tar(entries[:1])), "is not whole"),
    "no manifest": (lambda entries: compress(tar(entries[1:])), "does not begin with its manifest; found 'engines/"),
    "no entry": (lambda _: compress(tar([])), "found the end of the files"),
    "nothing in the frame": (lambda _: compress(b""), "is cut off"),
    "another file of this size": (_replaced("preprocess.json", b" " * 195), "preprocess.json'; found"),
    "one bit": (_one_bit, "towers/text.fp32.onnx'; found sha256"),
    "no end": (lambda entries: compress(tar(entries, end=b"")), "is cut off"),
    "half an end": (lambda entries: compress(tar(entries, end=bytes(512))), "is cut off"),
    "one more file after the last": (_with(member("extra")), "found data between files"),
    "bomb after the last file": (lambda entries: compress(tar(entries) + bytes(1 << 26)), "goes on after its end"),
    "data in the padding": (lambda entries: compress(tar(entries).replace(bytes(100), b"\1" + bytes(99), 1)), "is damaged|holds"),
    "data after the frame": (_raw(lambda data: data + b"x"), "goes on after its end"),
    "another frame": (_raw(lambda data: data + data), "goes on after its end"),
    "empty file": (lambda _: b"", "is no pack; found nothing"),
    "something else": (lambda _: b"PK\3\4" + bytes(100), "is no pack; found 504b0304"),
    "frame without a checksum": (lambda entries: compress(tar(entries), checksum=0), "is no pack"),
    "frame that needs a gigabyte": (lambda entries: compress(tar(entries), window_log=27), "is damaged; found .*memory"),
    "no tar": (lambda _: compress(os.urandom(4096)), "is damaged"),
    "no manifest of ours": (lambda entries: compress(tar([member("manifest.json", b"{}"), *entries[1:]])), "is not a manifest"),
    "manifest of a thousand levels": (lambda entries: compress(tar([member("manifest.json", _DEEP), *entries[1:]])), "is not a manifest"),
    "manifest of another version": (_manifest(lambda value: value.update(schema="clipq.bundle/9")), "unknown schema"),
    "versions that are none": (_manifest(lambda value: value.update(versions=["a"])), "incomplete or wrong"),
    "provenance that is none": (_manifest(lambda value: value.update(provenance="a")), "incomplete or wrong"),
    "key that clears the screen": (_manifest(lambda value: value["model"].update({"\x1b[2J": 1})), "incomplete or wrong"),
    "size below zero": (_size(-1), "incomplete or wrong"),
    "size as text": (_size("5"), "incomplete or wrong"),
    "size as truth": (_size(True), "incomplete or wrong"),
    "hash that is none": (_manifest(lambda value: value["files"]["preprocess.json"].update(sha256="../x")), "incomplete or wrong"),
}


def _refused(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command and check code and line."""
    import re

    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 5, err
    assert out == ""
    assert err.startswith("clipq: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 600
    assert re.search(says, err), err


@pytest.mark.parametrize("name", PACKS)
def test_bad_pack_is_refused(name: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is wrong; neither the folder nor a part of it stays."""
    make, says = PACKS[name]
    pack = tmp_path / "bad.clipq.tar.zst"
    pack.write_bytes(make(members(good)))
    _refused(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"], says, capsys)
    assert [path.name for path in tmp_path.iterdir()] == [pack.name]


def test_good_pack_made_by_hand_is_taken(good: Path, tmp_path: Path) -> None:
    """What the table changes is sound before it is changed."""
    pack = write_pack(tmp_path / "good.clipq.tar.zst", members(good))
    assert main(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"]) == 0
    Bundle.open(tmp_path / "out").verify()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_cut_off_pack_is_refused(part: float, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it ends early, down to the last byte of its checksum."""
    data = compress(tar(members(good)))
    pack = tmp_path / "cut.clipq.tar.zst"
    pack.write_bytes(data[: max(5, int(part * len(data)) - 1)])
    _refused(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"], "is cut off", capsys)
    assert not (tmp_path / "out").exists()


def test_pack_with_one_changed_bit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every 29th bit of a small pack, one after the other: refused, or (zstd reads past some bits) what is unpacked is the same."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "preprocess.json").write_bytes(os.urandom(100))
    rewrite_manifest(folder, {})
    data = compress(tar(members(folder)))
    pack, out, same = tmp_path / "bit.clipq.tar.zst", tmp_path / "out", 0
    for bit in range(0, 8 * len(data), 29):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        pack.write_bytes(changed)
        code = main(["unpack", str(pack), "-o", str(out), "-q"])
        assert code in {0, 5}
        if code == 0:
            same += 1
            assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in ("manifest.json", "preprocess.json"))
            shutil.rmtree(out)
        else:
            assert capsys.readouterr().err.count("\n") == 1
    assert same <= len(data) // 100


@pytest.mark.parametrize("where", ["manifest", "file", "end"])
def test_bomb_takes_no_memory(where: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gibibyte of zeros in a pack of some tens of kilobytes: reading stops at what was declared."""
    entries = members(good)
    at = {"manifest": 0, "file": 1, "end": len(entries)}[where]
    head = tar(entries[:at], end=b"") + (tar([member(entries[at][0].name, size=1 << 30)], end=b"") if where != "end" else bytes(1024))
    zstd = load_zstd()
    encoder = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})
    pack = tmp_path / "bomb.clipq.tar.zst"
    block = bytes(1 << 20)
    pack.write_bytes(b"".join([encoder.compress(head), *(encoder.compress(block) for _ in range(1 << 10)), encoder.flush()]))
    assert pack.stat().st_size < 200_000
    tracemalloc.start()
    try:
        _refused(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"], "too large|as its manifest says|goes on after its end", capsys)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_foreign_manifest_is_refused(good: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest of one bundle and the files of another do not fit."""
    pack = write_pack(tmp_path / "foreign.clipq.tar.zst", [members(other)[0], *members(good)[1:]])
    _refused(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"], "holds another 'engines/ort-int8-dynamic/image.onnx'", capsys)


def test_swapped_engine_is_refused(good: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same engine of another model has another hash."""
    swapped = [theirs if ours[0].name == INT8 else ours for ours, theirs in zip(members(good), members(other), strict=True)]
    pack = write_pack(tmp_path / "swapped.clipq.tar.zst", swapped)
    _refused(["unpack", str(pack), "-o", str(tmp_path / "out"), "-q"], f"holds another '{INT8}'", capsys)


def test_swapped_engine_that_the_manifest_names_is_refused(
    good: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hashed anew it packs and unpacks, and is refused when it is opened: its graph names the model that it was made from."""
    folder = shutil.copytree(good, tmp_path / "bundle")
    shutil.copy(other / INT8, folder / INT8)
    rewrite_manifest(folder, Bundle.open(folder).manifest.engines)
    assert main(["pack", str(folder), "-o", str(tmp_path / "a.tar.zst"), "-q"]) == 0
    assert main(["unpack", str(tmp_path / "a.tar.zst"), "-o", str(tmp_path / "out"), "-q"]) == 0
    capsys.readouterr()
    arguments = ["bench", str(tmp_path / "out"), "--engines", "ort-int8-static", "--bench-seconds", "0.1", "-q"]
    _refused(arguments, "is an engine of another model; found clipq.model 'toy:other'", capsys)


def _link(folder: Path) -> None:
    shutil.move(folder / INT8, folder / "moved")
    (folder / INT8).symlink_to(folder / "moved")


def _linked_folder(folder: Path) -> None:
    shutil.move(folder / "towers", folder / "moved")
    (folder / "towers").symlink_to(folder / "moved")


def _pipe(folder: Path) -> None:
    (folder / INT8).unlink()
    os.mkfifo(folder / INT8)


def _change(folder: Path) -> None:
    data = (folder / INT8).read_bytes()
    (folder / INT8).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / "manifest.json").read_text())
        change(value)
        (folder / "manifest.json").write_text(json.dumps(value))

    return edit


def _outside(folder: Path) -> None:
    shutil.move(folder / INT8, folder.parent / "outside")
    _edit(lambda value: value["files"].update({"../outside": value["files"].pop(INT8)}))(folder)
    _edit(lambda value: value["engines"]["ort-int8-static"]["towers"].update(image="../outside"))(folder)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed file": (_change, "is not the file the manifest names"),
    "cut off file": (lambda folder: os.truncate(folder / INT8, 100), "is not the file the manifest names"),
    "longer file": (lambda folder: os.truncate(folder / INT8, 1 << 20), "is not the file the manifest names"),
    "missing file": (lambda folder: (folder / INT8).unlink(), "is missing|cannot be read"),
    "folder instead of a file": (lambda folder: ((folder / INT8).unlink(), (folder / INT8).mkdir()), "is missing|no regular file"),
    "link": (_link, "is a symbolic link"),
    "linked folder": (_linked_folder, "is a symbolic link"),
    "pipe": (_pipe, "is missing|no regular file"),
    "path out of the folder": (_outside, "outside the bundle|found '..'"),
    "manifest of another version": (_edit(lambda value: value.update(schema="clipq.bundle/0")), "unknown schema"),
    "incomplete manifest": (_edit(lambda value: value.pop("model")), "incomplete"),
    "manifest of a thousand levels": (lambda folder: (folder / "manifest.json").write_bytes(_DEEP), "is not a manifest"),
    "manifest above the limit": (lambda folder: (folder / "manifest.json").write_bytes(_HUGE), "is too large"),
}


@pytest.mark.parametrize("command", ["pack", "bench"])
@pytest.mark.parametrize("name", FOLDERS)
def test_bad_folder_is_refused(name: str, command: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is packed or run is what the manifest names, and no file is left of a pack that failed."""
    change, says = FOLDERS[name]
    folder = shutil.copytree(good, tmp_path / "bundle")
    change(folder)
    out = tmp_path / "packs"
    out.mkdir()
    options = {"pack": ["-o", str(out / "a.tar.zst")], "bench": ["--engines", "ort-int8-static", "--bench-seconds", "0.1"]}
    _refused([command, str(folder), *options[command], "-q"], says, capsys)
    assert not list(out.iterdir())


def test_plan_for_another_gpu_is_not_refused_but_missing_its_device(tmp_path: Path) -> None:
    """Packed and unpacked it is sound; where it does not fit, the line tells how to rebuild it, with exit code 4."""
    from toy_plans import ENGINE, make_planned_bundle

    from clipq.engines.tensorrt.adapter import load_api
    from clipq.engines.tensorrt.device import DeviceFacts
    from clipq.engines.tensorrt.trust import check_plan, read_plan_facts
    from clipq.errors import MissingRuntimeError

    make_planned_bundle(tmp_path / "bundle")
    assert main(["pack", str(tmp_path / "bundle"), "-o", str(tmp_path / "a.tar.zst"), "-q"]) == 0
    assert main(["unpack", str(tmp_path / "a.tar.zst"), "-o", str(tmp_path / "out"), "-q"]) == 0
    bundle, old = Bundle.open(tmp_path / "out"), DeviceFacts("Tesla P4", "6.1", "470.0", "11.4", 8 << 30)
    facts = read_plan_facts(bundle, ENGINE)["image"]
    with pytest.raises(MissingRuntimeError, match=r"needs another GPU; found Tesla P4.*clipq-export --rebuild") as caught:
        check_plan(bundle, ENGINE, f"engines/{ENGINE}/image.plan", facts, (load_api("tensorrt-rtx").version, old))
    assert caught.value.exit_code == 4
