"""Signatures in minisign's format: Ed25519 over BLAKE2b-512, so that ``minisign -V`` checks ours and we check minisign's.

The format: https://jedisct1.github.io/minisign/ . Only prehashed signatures (algorithm ``ED``) and keys without a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.errors import RefusedError, UsageError, missing_extra
from clipq.files import write_text

_KEY_TAG, _PREHASHED, _PLAIN = b"Ed", b"ED", b"Ed"  # a public key; a signature of a hash, of a whole file
_SECRET_HEAD = b"Ed" + bytes(2) + b"B2"  # no key derivation: no password
_KDF_BYTES = 48  # salt and limits of a password; zeros without one
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_LIMIT = 1 << 14  # bytes of a key or signature file


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What checks signatures: a number that tells keys apart, and an Ed25519 public key of 32 bytes."""

    number: bytes
    key: bytes

    @property
    def id(self) -> str:
        """The number as minisign prints it."""
        return f"{int.from_bytes(self.number, 'little'):X}"


@dataclass(frozen=True, slots=True)
class SecretKey:
    """What makes signatures: the number of its public key, and an Ed25519 seed of 32 bytes."""

    number: bytes
    seed: bytes

    def public(self) -> PublicKey:
        """Return the key that checks its signatures."""
        key = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return PublicKey(self.number, key.public_bytes_raw())


def signature_path(path: Path) -> Path:
    """Return where a file's signature lies: beside it, as ``FILE.minisig``."""
    return path.with_name(f"{path.name}.minisig")


def make_keys(path: Path) -> SecretKey:
    """Write a new secret key to ``path``, for its owner alone, and its public key to ``path.pub``.

    Raises:
        UsageError: One of them is there already, or cannot be written.
        MissingRuntimeError: cryptography is not installed.
    """
    key = SecretKey(secrets.token_bytes(8), secrets.token_bytes(32))
    public = key.public()
    body = key.number + key.seed + public.key
    checksum = hashlib.blake2b(_KEY_TAG + body, digest_size=32).digest()
    secret = _text(f"minisign secret key {public.id}", _SECRET_HEAD + bytes(_KDF_BYTES) + body + checksum)
    _write_new(path.with_name(f"{path.name}.pub"), 0o644, _text(f"minisign public key {public.id}", _KEY_TAG + public.number + public.key))
    _write_new(path, 0o600, secret)
    return key


def _write_new(path: Path, mode: int, text: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise UsageError(f"cannot make a key at {path}", found=error.strerror, fix="Choose another name.") from error
    with os.fdopen(handle, "w") as stream:
        stream.write(text)


def read_secret_key(path: Path) -> SecretKey:
    """Read a secret key that ``make_keys`` or ``minisign -G -W`` wrote.

    Raises:
        UsageError: There is none, or it is protected by a password.
        MissingRuntimeError: cryptography is not installed.
    """
    _ed25519()
    data = _decode(_lines(path, "key")[1])
    whole = len(data) == 158 and data[:2] == _KEY_TAG
    if whole and data[2:6] != _SECRET_HEAD[2:6]:
        raise UsageError(f"{path} is protected by a password", fix="Sign with minisign -S, or take a key of minisign -G -W.")
    key = SecretKey(data[54:62], data[62:94])
    if not whole or data[94:126] != key.public().key:  # the checksum is about passwords; minisign leaves it out without one
        raise UsageError(f"{path} is no secret key", expected="one of minisign -G -W", fix="Make one with clipq pack --make-key FILE.")
    return key


def read_public_key(text: str) -> PublicKey:
    """Return a public key from a file, or from the base64 text that minisign prints.

    Raises:
        UsageError: It is neither.
    """
    data = _decode(text)
    if len(data) != 42:
        data = _decode(_lines(Path(text), "public key")[1])
    if len(data) != 42 or data[:2] != _KEY_TAG:
        raise UsageError(f"{text} is no public key", expected="a file of minisign, or its line of 56 characters")
    return PublicKey(data[2:10], data[10:])


def sign(path: Path, key: SecretKey, digest: bytes, comment: str) -> Path:
    """Write the signature of a file beside it; the same key, file and comment give the same signature.

    Args:
        path: The file.
        key: Of the signer.
        digest: BLAKE2b-512 of the file, 64 bytes.
        comment: One line that is signed too.

    Returns:
        The signature's path.
    """
    private = _ed25519().Ed25519PrivateKey.from_private_bytes(key.seed)
    signature: bytes = private.sign(digest)
    comment = " ".join(comment.split())
    whole: bytes = private.sign(signature + comment.encode())
    first = _text(f"signature of clipq, key {key.public().id}", _PREHASHED + key.number + signature)
    target = signature_path(path)
    write_text(target, f"{first}{_TRUSTED}{comment}\n{base64.b64encode(whole).decode()}\n")
    return target


def check_signature(path: Path, keys: Sequence[PublicKey], digest: bytes) -> tuple[PublicKey, str]:
    """Return who signed a file, and the comment that is signed with it.

    Args:
        path: The file; its signature lies beside it.
        keys: Whose signatures count.
        digest: BLAKE2b-512 of the file, 64 bytes.

    Raises:
        RefusedError: There is no signature, it is of another key, of another file, or no prehashed one of minisign.
        MissingRuntimeError: cryptography is not installed.
    """
    target = signature_path(path)
    ed25519 = _ed25519()
    first, second, third, fourth = _signature_lines(target)
    data, whole, comment = _decode(second), _decode(fourth), third.removeprefix(_TRUSTED)
    if data[:2] == _PLAIN and len(data) == 74:
        raise RefusedError(f"{target} is of the old kind", found="no prehash", expected="minisign -S -H", fix="Sign the pack again.")
    if not (first.startswith(_UNTRUSTED) and third.startswith(_TRUSTED) and data[:2] == _PREHASHED and len(data) == 74):
        raise RefusedError(f"{target} is no signature", expected="one of minisign", fix="Sign the pack again.")
    number, signature = data[2:10], data[10:]
    key = next((key for key in keys if key.number == number), None)
    if key is None:
        known = ", ".join(key.id for key in keys)
        raise RefusedError(f"{path} is signed by an unknown key", found=PublicKey(number, b"").id, expected=known, fix="Do not use it.")
    public = ed25519.Ed25519PublicKey.from_public_bytes(key.key)
    for what, signed, content in (("file", signature, digest), ("comment", whole, signature + comment.encode())):
        if not _verifies(public, signed, content):
            raise RefusedError(f"{target} does not sign this {what}", expected=f"a signature by key {key.id}", fix="Do not use this pack.")
    return key, comment


def _verifies(public: Any, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _ed25519() -> Any:
    try:
        return importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError:
        raise missing_extra("cryptography", "sign") from None


def _text(comment: str, data: bytes) -> str:
    return f"{_UNTRUSTED}{comment}\n{base64.b64encode(data).decode()}\n"


def _decode(text: str) -> bytes:
    """Return the bytes of base64; none where it is something else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _lines(path: Path, what: str) -> list[str]:
    """Return the lines of a key file, at least two."""
    try:
        return [*_read(path), "", ""]
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}", found=error.strerror, fix="Give a file that minisign -G -W wrote.") from error


def _signature_lines(path: Path) -> list[str]:
    """Return the four lines of a signature."""
    try:
        return [*_read(path), "", "", "", ""][:4]
    except OSError as error:
        raise RefusedError(f"{path} cannot be read", found=error.strerror, expected="a signature", fix="Sign the pack.") from error


def _read(path: Path) -> list[str]:
    with path.open("rb") as stream:
        text = stream.read(_LIMIT).decode(errors="replace")
    return [line.rstrip("\r") for line in text.split("\n")]
