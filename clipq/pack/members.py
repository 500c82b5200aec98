"""What stands between the files of a pack: tar headers of regular files with nothing in them but a name and a size."""

from __future__ import annotations

import tarfile
from pathlib import PurePosixPath

from clipq.artifact import MANIFEST, Manifest
from clipq.errors import RefusedError

HEADER = tarfile.BLOCKSIZE
END = bytes(2 * HEADER)
_OCTAL_LIMIT = 8**11  # bytes; larger sizes are written in base 256, as GNU tar does
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


def header(name: str, size: int) -> bytes:
    """Return the tar header, 512 bytes, of a file: mode 644, owner 0, time 0.

    Raises:
        RefusedError: tar has no room for the name.

    >>> header("a", 3) == header("a", 3), len(header("a", 8**11)), header("a", 3)[124:135]
    (True, 512, b'00000000003')
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        block = info.tobuf(tarfile.USTAR_FORMAT if size < _OCTAL_LIMIT else tarfile.GNU_FORMAT, "utf-8", "strict")
    except ValueError as error:
        raise RefusedError(f"{name!r} cannot be packed", found=error, expected="at most 100 bytes", fix="Use a shorter name.") from error
    if len(block) != HEADER:
        raise RefusedError(f"{name!r} cannot be packed", found="a long name", expected="at most 100 bytes", fix="Use a shorter name.")
    return block


def padding(size: int) -> int:
    """Return how many zero bytes follow a file's content.

    >>> padding(0), padding(1), padding(512)
    (0, 511, 0)
    """
    return -size % HEADER


def packed_bytes(sizes: list[int]) -> int:
    """Return the length of a tar of files of these sizes."""
    return sum(HEADER + size + padding(size) for size in sizes) + len(END)


def read_header(block: bytes, source: str) -> tuple[str, int]:
    """Return name and size of the regular file that a header announces.

    Raises:
        RefusedError: It is damaged, or announces anything else.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        found = "the end of the files" if block == bytes(HEADER) else error
        raise RefusedError(f"{source} is damaged", found=found, expected="a file's header", fix="Copy or pack it again.") from error
    if info.type != tarfile.REGTYPE:
        kind = _KINDS.get(info.type, f"an entry of type {info.type!r}")
        raise RefusedError(f"{source} holds {info.name!r}", found=kind, expected="regular files alone", fix="Do not use this pack.")
    if why := unsafe(info.name):
        raise RefusedError(f"{source} holds {info.name!r}", found=why, expected="a path inside the bundle", fix="Do not use this pack.")
    return info.name, info.size


def check_names(manifest: Manifest, source: str) -> None:
    """Check that the manifest's names can be files of one folder.

    Raises:
        RefusedError: One leads out of it, is not written in the one way, is the manifest itself, or is a folder of another.
    """
    for name in manifest.files:
        why = "the manifest itself" if name == MANIFEST else unsafe(name)
        folders = [str(folder) for folder in PurePosixPath(name).parents]
        if not why and (taken := [folder for folder in folders if folder in manifest.files or folder == MANIFEST]):
            why = f"{taken[0]!r} is a file already"
        if why:
            raise RefusedError(f"the manifest of {source} names {name!r}", found=why, expected="a file inside", fix="Do not use it.")


def unsafe(name: str) -> str:
    """Return why a name may not become a file inside a folder; empty where it may.

    >>> unsafe("towers/image.onnx"), unsafe("/etc/passwd"), unsafe("a/../../b"), unsafe("a//b")
    ('', 'an absolute path', "'..'", 'a path that is not written in the shortest way')
    """
    path = PurePosixPath(name)
    if path.is_absolute():
        return "an absolute path"
    if ".." in path.parts:
        return "'..'"
    if not name.isprintable():
        return "characters that cannot be printed"
    if not path.parts or str(path) != name:
        return "a path that is not written in the shortest way"
    return ""
