"""Signatures: minisign's format both ways, and nothing of a pack is read before its signature is checked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_bundle import make_toy_bundle

from clipq.cli.main import main
from clipq.errors import MissingRuntimeError, RefusedError, UsageError
from clipq.pack.read import unpack_bundle
from clipq.pack.signature import (
    PublicKey,
    SecretKey,
    check_signature,
    make_keys,
    read_public_key,
    read_secret_key,
    sign,
    signature_path,
)

# Made by minisign 0.11 for this test: minisign -G -W, then -S of a file with "hello" and a newline, then -S -l.
PUBLIC = "RWQOokGsZdyXCIKuM630hoJi3xPF5uegDTYoz9SbtGvvybtpwhZkOwGn"
SECRET = (
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAADqJBrGXclwivev0Dk7JnVW55FdfQxrRWHQuIH39agxeHhijGU/iNL4KuM630"
    "hoJi3xPF5uegDTYoz9SbtGvvybtpwhZkOwGnAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)
PROTECTED = (
    "RWRTY0IyTo0+skGCUNh7Ef5AfLDi9fArvTvKMz27HUuV1MGZ0D0AAAACAAAAAAAAAEAAAAAA5iZDo3MXORwCZPKEwu9Wb0JVzCATj0buadyM+MCIKPdXb3WOBev7mWXS9DH2"
    "hfNcyosUYM8AQBfYJzi9TjxIGbDmTfNkuswcgSKcf6G4jw8QOha3sZiMXm7SU57JUfv80BIQVRSApfU="
)
SIGNATURE = """\
untrusted comment: signature from minisign secret key
RUQOokGsZdyXCH/O9t8AQnQ9gr50QaNMajoB5YdSRXsqWqmdB+0/6oQsNccInnqvZ5irgI+dRuoQVKlH9wKBWqQrmw5MpyxaOwM=
trusted comment: a comment
9KMT8WYyfZsKwMy4wxVrwLCfn8IDT4CqzhMLpDiQlSEh2lAqJAb8RwXEqcqE0WSJoz8LqmgZ3Ki3eMsvCRDUBw==
"""
OLD_KIND = """\
untrusted comment: signature from minisign secret key
RWQOokGsZdyXCO1wInt6XiJtDWYa+njFd5g+E2mbxhnDweA0Tt7yklsEvRtzP7ZXQTA1eEbXd+mUxaKI/bbC/deFsqOrZUMeCAY=
trusted comment: old
JJbHPCVt14nPpbNjuYITgIob/UZoZj+Z1lg3JWi6viXshnP2o/XOwCa52zjZB9D3XSyqhlP5+sSrZgaSg2gZAg==
"""
KEY = SecretKey(bytes(range(8)), bytes(range(32)))
MINISIGN = shutil.which("minisign")


def _hello(folder: Path, signature: str) -> tuple[Path, bytes]:
    path = folder / "hello.txt"
    path.write_bytes(b"hello\n")
    signature_path(path).write_text(signature)
    return path, hashlib.blake2b(b"hello\n").digest()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a signed pack, its bill of materials and the keys; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("signed")
    make_toy_bundle(folder / "bundle")
    assert main(["pack", "--make-key", str(folder / "release.key")]) == 0
    options = ["--sign", str(folder / "release.key"), "--sbom", str(folder / "a.cdx.json"), "-q"]
    assert main(["pack", str(folder / "bundle"), "-o", str(folder / "a.tar.zst"), *options]) == 0
    return folder


def test_signature_of_minisign_is_accepted(tmp_path: Path) -> None:
    """A recorded one, with its key as text and as a file."""
    path, digest = _hello(tmp_path, SIGNATURE)
    (tmp_path / "a.pub").write_text(f"untrusted comment: minisign public key 897DC65AC41A20E\n{PUBLIC}\n")
    for text in (PUBLIC, str(tmp_path / "a.pub")):
        key, comment = check_signature(path, [read_public_key(text)], digest)
        assert (key.id, comment) == ("897DC65AC41A20E", "a comment")


def test_signature_is_minisigns_to_the_byte(tmp_path: Path) -> None:
    """Ed25519 has one signature per key and message, so minisign's key signs as minisign did, but for the comment that nobody signs."""
    path, digest = _hello(tmp_path, "")
    (tmp_path / "a.key").write_text(f"untrusted comment: minisign encrypted secret key\n{SECRET}\n")
    sign(path, read_secret_key(tmp_path / "a.key"), digest, "a comment")
    assert signature_path(path).read_text().splitlines()[1:] == SIGNATURE.splitlines()[1:]


@pytest.mark.skipif(MINISIGN is None, reason="minisign is not installed")
def test_minisign_checks_ours_and_signs_with_our_key(signed: Path, tmp_path: Path) -> None:
    """The program itself: verification of pack and bill, and a signature by the key that we made."""
    public = str(signed / "release.key.pub")
    for name in ("a.tar.zst", "a.cdx.json"):
        ended = subprocess.run([str(MINISIGN), "-V", "-m", str(signed / name), "-p", public], capture_output=True, text=True, check=True)
        assert "manifest sha256" in ended.stdout
    pack = Path(shutil.copy(signed / "a.tar.zst", tmp_path))
    subprocess.run([str(MINISIGN), "-S", "-W", "-s", str(signed / "release.key"), "-m", str(pack)], capture_output=True, check=True)
    assert unpack_bundle(pack, tmp_path / "out", [read_public_key(public)]).comment.startswith("timestamp:")


def test_signed_pack_is_unpacked(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the right key among others; the JSON says whose it was and what was signed with it."""
    other = base64.b64encode(b"Ed" + KEY.number + KEY.public().key).decode()
    keys = ["--verify-key", other, "--verify-key", str(signed / "release.key.pub"), "--require-signature"]
    assert main(["unpack", str(signed / "a.tar.zst"), "-o", str(tmp_path / "out"), *keys, "-q", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["signed_by"] == read_public_key(str(signed / "release.key.pub")).id
    assert record["comment"] == f"clipq pack of toy:none, manifest sha256 {record['manifest_sha256']}"


def test_signing_twice_gives_the_same_files(signed: Path, tmp_path: Path) -> None:
    """Pack, bill and both signatures carry no time."""
    options = ["--sign", str(signed / "release.key"), "--sbom", str(tmp_path / "a.cdx.json"), "-q"]
    assert main(["pack", str(signed / "bundle"), "-o", str(tmp_path / "a.tar.zst"), *options]) == 0
    for name in ("a.tar.zst", "a.tar.zst.minisig", "a.cdx.json", "a.cdx.json.minisig"):
        assert (tmp_path / name).read_bytes() == (signed / name).read_bytes()


def test_packing_again_takes_the_old_signature_away(signed: Path, tmp_path: Path) -> None:
    """It would be of another file."""
    folder = shutil.copytree(signed, tmp_path / "copy")
    assert main(["pack", str(folder / "bundle"), "-o", str(folder / "a.tar.zst"), "-q"]) == 0
    assert not (folder / "a.tar.zst.minisig").exists()


def _lines(change: Callable[[list[str]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "a.tar.zst.minisig"
        lines = path.read_text().splitlines()
        change(lines)
        path.write_text("\n".join([*lines, ""]))

    return edit


def _other_pack(folder: Path) -> None:
    make_toy_bundle(folder / "other", change={"towers/text.fp32.onnx": lambda graph: graph.graph.ClearField("name")})
    assert main(["pack", str(folder / "other"), "-o", str(folder / "b.tar.zst"), "-q"]) == 0
    (folder / "b.tar.zst").rename(folder / "a.tar.zst")


def _other_key(folder: Path) -> None:
    (folder / "release.key.pub").unlink()
    (folder / "release.key").unlink()
    make_keys(folder / "release.key")


def _same_number(folder: Path) -> None:
    """Another key that says to be the signer's."""
    key = read_public_key(str(folder / "release.key.pub"))
    text = base64.b64encode(b"Ed" + key.number + KEY.public().key).decode()
    (folder / "release.key.pub").write_text(f"untrusted comment: x\n{text}\n")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no signature": (lambda folder: (folder / "a.tar.zst.minisig").unlink(), "minisig cannot be read; found No such file"),
    "signature of another pack": (_other_pack, "does not sign this file"),
    "one more byte": (
        lambda folder: (folder / "a.tar.zst").write_bytes((folder / "a.tar.zst").read_bytes() + b"x"),
        "does not sign this file",
    ),
    "no pack at all": (lambda folder: (folder / "a.tar.zst").write_bytes(b"x"), "does not sign this file"),
    "unknown key": (_other_key, "is signed by an unknown key; found [0-9A-F]+; expected [0-9A-F]+"),
    "another key of this number": (_same_number, "does not sign this file"),
    "changed comment": (_lines(lambda lines: lines.__setitem__(2, lines[2] + "!")), "does not sign this comment"),
    "no comment": (_lines(lambda lines: lines.__delitem__(2)), "is no signature"),
    "no last line": (_lines(lambda lines: lines.pop()), "does not sign this comment"),
    "something else": (lambda folder: (folder / "a.tar.zst.minisig").write_bytes(bytes(range(256))), "is no signature"),
    "nothing": (lambda folder: (folder / "a.tar.zst.minisig").write_bytes(b""), "is no signature"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_signature_is_refused(name: str, signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5 and one line; nothing is unpacked."""
    import re

    change, says = BAD[name]
    folder = shutil.copytree(signed, tmp_path / "copy")
    change(folder)
    capsys.readouterr()
    arguments = ["unpack", str(folder / "a.tar.zst"), "-o", str(tmp_path / "out"), "--verify-key", str(folder / "release.key.pub"), "-q"]
    assert main(arguments) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(says, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_nothing_is_decompressed_before_the_signature_is_checked(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of an unknown signer never reaches zstd or tar."""

    def fail(*_: object) -> None:
        raise AssertionError("the pack was read")

    monkeypatch.setattr("clipq.pack.read.Decompressor", fail)
    with pytest.raises(RefusedError, match="unknown key"):
        unpack_bundle(signed / "a.tar.zst", tmp_path / "out", [KEY.public()])


def test_pack_that_changes_after_the_check_is_refused(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked is what was signed, even if somebody writes the file in between: here a sound pack of another bundle."""
    folder = shutil.copytree(signed, tmp_path / "copy")
    pack = folder / "a.tar.zst"

    def check_then_change(*arguments: object) -> tuple[PublicKey, str]:
        answer = check_signature(*arguments)  # type: ignore[arg-type]
        signature, content = signature_path(pack).read_bytes(), pack.read_bytes()
        _other_pack(folder)
        changed = pack.read_bytes()
        assert changed != content
        signature_path(pack).write_bytes(signature)
        stream.seek(0)
        stream.write(changed)
        stream.truncate()
        stream.flush()
        return answer

    monkeypatch.setattr("clipq.pack.read.check_signature", check_then_change)
    with pack.open("r+b") as stream, pytest.raises(RefusedError, match="changed after its signature was checked"):
        unpack_bundle(pack, tmp_path / "out", [read_public_key(str(folder / "release.key.pub"))])
    assert not (tmp_path / "out").exists()


def test_signature_of_the_old_kind_is_refused(tmp_path: Path) -> None:
    """It signs the file itself, which would have to be in memory as a whole."""
    path, digest = _hello(tmp_path, OLD_KIND)
    with pytest.raises(RefusedError, match="is of the old kind"):
        check_signature(path, [read_public_key(PUBLIC)], digest)


def test_key_with_a_password_is_a_slip(tmp_path: Path) -> None:
    """The line says what to do instead."""
    (tmp_path / "a.key").write_text(f"untrusted comment: minisign encrypted secret key\n{PROTECTED}\n")
    with pytest.raises(UsageError, match=r"is protected by a password. Sign with minisign -S"):
        read_secret_key(tmp_path / "a.key")


@pytest.mark.parametrize("text", ["", "x", "untrusted comment: x\nUldR\n", f"untrusted comment: x\n{PUBLIC}\n", f"{SECRET}\n", "\0" * 200])
def test_what_is_no_secret_key_is_a_slip(tmp_path: Path, text: str) -> None:
    """Also a public key, or the key without its first line."""
    (tmp_path / "a.key").write_text(text)
    with pytest.raises(UsageError, match="is no secret key"):
        read_secret_key(tmp_path / "a.key")
    with pytest.raises(UsageError, match="cannot read the key"):
        read_secret_key(tmp_path / "none.key")


def test_what_is_no_public_key_is_a_slip(tmp_path: Path) -> None:
    """A file with something else, and neither a file nor a key."""
    (tmp_path / "a.pub").write_text(f"untrusted comment: x\n{SECRET}\n")
    with pytest.raises(UsageError, match="is no public key"):
        read_public_key(str(tmp_path / "a.pub"))
    with pytest.raises(UsageError, match="cannot read the public key"):
        read_public_key("RWQ")


def test_require_signature_needs_a_key(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that lost its key does not unpack unchecked."""
    assert main(["unpack", str(signed / "a.tar.zst"), "-o", str(tmp_path / "out"), "--require-signature"]) == 2
    assert "expected --verify-key PUBKEY" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_made_keys_are_new_and_private(tmp_path: Path) -> None:
    """The secret key is for its owner alone, comes back from its file, and is never written over."""
    made = make_keys(tmp_path / "a.key")
    assert made != make_keys(tmp_path / "b.key")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert read_secret_key(tmp_path / "a.key") == made
    assert read_public_key(str(tmp_path / "a.key.pub")) == made.public()
    with pytest.raises(UsageError, match=r"cannot make a key at .*; found File exists"):
        make_keys(tmp_path / "a.key")
    assert read_secret_key(tmp_path / "a.key") == made


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=40))
def test_any_comment_is_signed(tmp_path_factory: pytest.TempPathFactory, comment: str) -> None:
    """Whatever it holds, it stays one line and is what the check returns."""
    path, digest = _hello(tmp_path_factory.mktemp("comment"), "")
    comment = comment.encode(errors="replace").decode()
    sign(path, KEY, digest, comment)
    assert check_signature(path, [KEY.public()], digest) == (KEY.public(), " ".join(comment.split()))


def test_missing_library_names_the_extra(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4, before anything is written."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(MissingRuntimeError, match=r"Run: pip install 'clipq\[sign\]'"):
        unpack_bundle(signed / "a.tar.zst", tmp_path / "out", [KEY])  # type: ignore[list-item]
    with pytest.raises(MissingRuntimeError, match=r"Run: pip install 'clipq\[sign\]'"):
        read_secret_key(signed / "release.key")
    assert not list(tmp_path.iterdir())
