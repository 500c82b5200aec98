"""The index of a data set: which images are used, their labels and hashes, and one digest over all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from clipq.calib_data.source import Source
from clipq.errors import DataError, UsageError, unknown_name
from clipq.files import sha256_bytes
from clipq.progress import bar

Int64 = npt.NDArray[np.int64]
SAMPLINGS = ("random", "balanced")


@dataclass(frozen=True, slots=True, eq=False)
class DataIndex:
    """The images that are used of a source, in its order; row ``i`` of every field speaks of the same image.

    Attributes:
        data_id: Canonical id of the source.
        ids: Image ids, unique.
        labels: int64 ``(n,)``, -1 where there is no label.
        sha256: Hash of each image's encoded bytes.
        positions: int64 ``(n,)``, ascending: where the images stand in the source.
        digest: SHA-256 over the lines ``id, sha256, label`` (tabs between them), and ``border`` where there is one; of images that are
            changed, over that digest and the change's name. Equal digests mean equal data.
    """

    data_id: str
    ids: tuple[str, ...]
    labels: Int64
    sha256: tuple[str, ...]
    positions: Int64
    digest: str

    def __len__(self) -> int:
        return len(self.ids)


def build_index(
    source: Source, *, limit: int | None = None, seed: int = 0, sampling: Literal["random", "balanced"] = "random"
) -> DataIndex:
    """Choose images of a source and hash them in one streaming pass.

    Args:
        source: Where the images are.
        limit: How many to choose; None, or more than there are, takes all.
        seed: Seed of the choice.
        sampling: ``random``, or ``balanced`` for the same number of each class, as even as the classes allow.

    Raises:
        UsageError: The limit is below 1, or the sampling is unknown.
        DataError: Two images share an id, or balanced sampling is asked of images without labels.
    """
    return index_positions(source, choose_positions(source.labels, limit=limit, seed=seed, sampling=sampling))


def index_positions(source: Source, positions: Int64) -> DataIndex:
    """Hash the images of a source at the given ascending positions in one streaming pass.

    Raises:
        DataError: Two images share an id.
    """
    rows: dict[str, tuple[int, str, int]] = {}
    changes: set[str] = set()
    with bar(f"Hashing {source.id}", len(positions)) as advance:
        for sample in source.read(positions.tolist()):
            if sample.id in rows:
                raise DataError(f"two images of {source.id} share the id {sample.id!r}", expected="unique ids", fix="Rename one of them.")
            rows[sample.id] = (sample.label, sha256_bytes(sample.data), sample.border)
            changes |= {sample.change.name} if sample.change else set()
            advance(1)
    ids, labels, hashes = tuple(rows), [label for label, _, _ in rows.values()], tuple(sha256 for _, sha256, _ in rows.values())
    digest = _digest((image_id, sha256, label, border) for image_id, (label, sha256, border) in rows.items())
    index = DataIndex(source.id, ids, np.asarray(labels, np.int64), hashes, positions, digest)
    return changed_index(index, source.id, " ".join(sorted(changes))) if changes else index


def changed_index(index: DataIndex, data_id: str, change: str) -> DataIndex:
    """Return the index of the same images with a change of this name: as ``build_index`` of that source would, without reading it."""
    return replace(index, data_id=data_id, digest=sha256_bytes(f"{index.digest}\t{change}\n".encode()))


def choose_positions(labels: Int64, *, limit: int | None, seed: int, sampling: str) -> Int64:
    """Return ascending positions, int64 ``(min(limit, n),)``; arguments and errors as in ``build_index``."""
    if sampling not in SAMPLINGS:
        raise unknown_name("sampling", sampling, SAMPLINGS)
    if limit is not None and limit < 1:
        raise UsageError("the number of images is too small", found=limit, expected="at least 1")
    if limit is None or limit >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    if sampling == "balanced":
        if (labels < 0).any():
            raise DataError("balanced sampling needs labels", found="images without a label", fix="Use --calib-sampling random.")
        order = order[np.argsort(_turns(labels[order]), kind="stable")]
    return np.sort(order[:limit]).astype(np.int64)


def _turns(labels: Int64) -> Int64:
    """Return for each element how many earlier ones share its label: taking the lowest first draws class by class in turns."""
    turns = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turns[members] = np.arange(len(members))
    return turns


def _digest(lines: Iterable[tuple[str, str, int, int]]) -> str:
    digest = hashlib.sha256()
    for image_id, sha256, label, border in lines:
        cut = f"\t{border}" if border else ""
        digest.update(f"{image_id}\t{sha256}\t{label}{cut}\n".encode())
    return digest.hexdigest()
