"""Captions in CLIP_benchmark's webdataset layout: ``KEY.txt`` beside each image, one caption per line."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from clipq.calib_data.captions import Captioned
from clipq.calib_data.layout import existing_folder, path_and_split
from clipq.calib_data.wds import open_wds
from clipq.errors import DataError, UsageError

_TYPE = "dataset_type.txt"
_MAX_BYTES = 1 << 20  # of the captions of one image


def open_wds_captions(rest: str, split: str | None) -> Captioned:
    """Return the data set at ``PATH[:SPLIT]``, whose ``dataset_type.txt``, where there is one, says ``retrieval``.

    Raises:
        UsageError: The folder or the split does not exist, or the data set is one of classification.
        DataError: A shard is broken, or an image has no caption.
    """
    folder = existing_folder(path_and_split(rest, split)[0])
    path = folder / _TYPE
    kind = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else "retrieval"
    if kind != "retrieval":
        raise UsageError(f"{folder} is not for retrieval", found=f"{kind!r} in {_TYPE}", expected="retrieval", fix="Use it with --data.")
    source = open_wds(rest, split)
    found = {key: captions for shard in source.paths for key, captions in _captions(shard)}
    return Captioned(source, [found.get(image_id.rpartition(".")[0], ()) for image_id in source.ids])


def _captions(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (image id without its suffix, captions) of a tar file."""
    with tarfile.open(path, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined, unused-ignore]  # tarfile keeps every header otherwise
            key, _, suffix = member.name.rpartition(".")
            if suffix.lower() == "txt":
                yield f"{path.name}/{key}", _lines(path, tar, member)


def _lines(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, ...]:
    if not member.isreg() or member.size > _MAX_BYTES:
        raise DataError(f"{path} holds captions that are no plain text", found=member.name, expected="a file of one caption per line")
    stream = tar.extractfile(member)
    data = stream.read() if stream else b""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"captions in {path} are not UTF-8", found=f"{member.name}: {error}") from error
    return tuple(line.strip() for line in text.split("\n") if line.strip())
