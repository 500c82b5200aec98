"""``wds:PATH[:SPLIT]``: CLIP_benchmark's webdataset layout, read straight from the tar files."""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clipq.calib_data.layout import (
    DEFAULT_SPLIT,
    check_labels,
    existing_folder,
    leaves_folder,
    path_and_split,
    read_classnames,
    read_templates,
)
from clipq.calib_data.source import MAX_ENCODED_BYTES, Sample
from clipq.errors import DataError, unknown_name

Int64 = npt.NDArray[np.int64]
_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})


@dataclass(frozen=True, slots=True, eq=False)
class _Shard:
    """Where the images of one tar file stand: names, offsets and sizes in bytes, labels (-1 where it has none)."""

    path: Path
    names: tuple[str, ...]
    offsets: Int64
    sizes: Int64
    labels: Int64


class WdsSource:
    """Images of webdataset shards; see ``clipq.calib_data.source.Source``."""

    def __init__(self, data_id: str, shards: list[_Shard], classnames: tuple[str, ...], templates: tuple[str, ...]) -> None:
        self.id = data_id
        self.classnames = classnames
        self.templates = templates
        self.labels = np.concatenate([shard.labels for shard in shards])
        self._shards = shards
        self._starts = [0, *accumulate(len(shard.names) for shard in shards)][:-1]

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each image, in order."""
        return tuple(f"{shard.path.name}/{name}" for shard in self._shards for name in shard.names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The tar files, in order."""
        return tuple(shard.path for shard in self._shards)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, positions: Sequence[int] | None = None) -> Iterator[Sample]:
        """Yield samples in order: all, or those at the given ascending positions."""
        wanted = range(len(self)) if positions is None else positions
        for number, group in groupby(wanted, lambda position: bisect_right(self._starts, position) - 1):
            shard, start = self._shards[number], self._starts[number]
            with shard.path.open("rb") as stream:
                for position in group:
                    row = position - start
                    stream.seek(shard.offsets[row])
                    data = stream.read(min(int(shard.sizes[row]), MAX_ENCODED_BYTES + 1))
                    yield Sample(f"{shard.path.name}/{shard.names[row]}", int(shard.labels[row]), data)


def open_wds(rest: str, split: str | None) -> WdsSource:
    """Return the data set at ``PATH[:SPLIT]``; the default split is ``test``.

    Raises:
        UsageError: The folder or the split does not exist.
        DataError: A shard is missing or broken, or labels and class names do not fit each other.
    """
    path, named = path_and_split(rest, split)
    folder, chosen = existing_folder(path), named or DEFAULT_SPLIT
    data_id = f"wds:{folder}:{chosen}"
    if not (folder / chosen).is_dir():
        splits = [entry.name for entry in folder.iterdir() if (entry / "nshards.txt").exists()]
        if not splits:
            raise DataError(f"no webdataset in {folder}", expected=f"{chosen}/nshards.txt, {chosen}/0.tar, ...", fix="Check the path.")
        raise unknown_name(f"split of wds:{folder}", chosen, splits)
    shards = [_scan(folder / chosen / f"{number}.tar") for number in range(_shard_count(folder / chosen))]
    labels, classnames = np.concatenate([shard.labels for shard in shards]), read_classnames(folder)
    check_labels(data_id, labels, ())
    if (labels >= 0).any() and not classnames:
        raise DataError(f"{folder} has labels but no class names", expected="classnames.txt, one name per line in the order of the labels")
    classnames = classnames if (labels >= 0).any() else ()
    check_labels(data_id, labels, classnames)
    return WdsSource(data_id, shards, classnames, read_templates(folder))


def _shard_count(folder: Path) -> int:
    path = folder / "nshards.txt"
    try:
        count = int(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", found=error, expected="the number of tar files") from error
    if count < 1:
        raise DataError(f"{path} names no tar file", found=count, expected="at least 1")
    return count


def _scan(path: Path) -> _Shard:
    """Read the headers and the labels of a tar file; the images are only located."""
    images: list[tuple[str, int, int]] = []
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined, unused-ignore]  # tarfile keeps every header otherwise
                _note(path, tar, member, images, labels)
            _check_end(path, tar.offset)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {path}", found=error, expected="a whole tar file", fix="Copy it again.") from error
    names = tuple(name for name, _, _ in images)
    places = np.asarray([place for _, *place in images], np.int64).reshape(-1, 2)
    return _Shard(path, names, places[:, 0], places[:, 1], _labels_of(path, names, labels))


def _note(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, images: list[tuple[str, int, int]], labels: dict[str, int]) -> None:
    key, _, suffix = member.name.rpartition(".")
    if suffix.lower() not in _SUFFIXES | {"cls"}:
        return
    if leaves_folder(member.name):
        raise DataError(f"{path} holds a path that leaves the archive", found=repr(member.name), fix="Do not use this data set.")
    if not member.isreg() or member.issparse():
        raise DataError(f"{path} holds a link where an image belongs", found=member.name, fix="Pack the data set without links.")
    if suffix != "cls":
        images.append((member.name, member.offset_data, member.size))
        return
    stream = tar.extractfile(member)
    text = stream.read(32) if stream else b""
    try:
        labels[key] = int(text)
    except ValueError as error:
        raise DataError(f"{path} has a label that is no number", found=f"{text!r} in {member.name}") from error


def _check_end(path: Path, offset: int) -> None:
    """Refuse a tar file without its end mark: tarfile would take a cut one for a short one."""
    with path.open("rb") as stream:
        stream.seek(offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end of the archive is missing")


def _labels_of(path: Path, names: tuple[str, ...], labels: dict[str, int]) -> Int64:
    keys = [name.rpartition(".")[0] for name in names]
    lonely = labels.keys() - set(keys)
    if lonely:
        raise DataError(f"{path} has labels without an image", found=min(lonely), expected="KEY.jpg, .png or .webp beside KEY.cls")
    bare = [key for key in keys if key not in labels]
    if bare and labels:
        raise DataError(f"{path} has images without a label", found=bare[0], expected="KEY.cls beside each image, or none at all")
    return np.asarray([labels.get(key, -1) for key in keys], np.int64)
