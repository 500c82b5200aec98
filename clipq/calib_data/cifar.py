"""``cifar10:PATH[:SPLIT]`` and ``cifar100:PATH[:SPLIT]``: the official binary version, read without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipq.calib_data.cifar_names import CIFAR10, CIFAR100, TEMPLATES
from clipq.calib_data.layout import DEFAULT_SPLIT, existing_folder, path_and_split
from clipq.calib_data.pixels import PixelSource, Uint8
from clipq.calib_data.source import Source
from clipq.errors import DataError, MissingDataError, RefusedError, unknown_name

SIDE = 32
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True, slots=True)
class _Layout:
    """How one of the sets is packed: a record is the label bytes, the last of which counts, then the three colour planes."""

    scheme: str
    folder: str
    pickled: str
    archive: str
    label_bytes: int
    files: Mapping[str, tuple[str, ...]]
    classnames: tuple[str, ...]


_TEN = _Layout(
    scheme="cifar10",
    folder="cifar-10-batches-bin",
    pickled="cifar-10-batches-py",
    archive="cifar-10-binary.tar.gz",
    label_bytes=1,
    files={"test": ("test_batch.bin",), "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6))},
    classnames=CIFAR10,
)
_HUNDRED = _Layout(
    scheme="cifar100",
    folder="cifar-100-binary",
    pickled="cifar-100-python",
    archive="cifar-100-binary.tar.gz",
    label_bytes=2,  # coarse, fine
    files={"test": ("test.bin",), "train": ("train.bin",)},
    classnames=CIFAR100,
)


def open_cifar10(rest: str, split: str | None) -> Source:
    """Return CIFAR-10: ``PATH`` is ``cifar-10-batches-bin`` or the folder that holds it; splits ``test`` (the default) and ``train``.

    Raises:
        MissingDataError: The folder or a file of the split does not exist.
        RefusedError: Only the Python version is there: reading a pickle runs what it says.
        DataError: A file is cut short or has a label out of range.
        UsageError: The split is unknown.
    """
    return _open(_TEN, rest, split)


def open_cifar100(rest: str, split: str | None) -> Source:
    """Return CIFAR-100 with its fine labels: ``PATH`` is ``cifar-100-binary`` or the folder that holds it; errors as ``open_cifar10``."""
    return _open(_HUNDRED, rest, split)


def _open(layout: _Layout, rest: str, split: str | None) -> Source:
    path, named = path_and_split(rest, split)
    chosen = named or DEFAULT_SPLIT
    if chosen not in layout.files:
        raise unknown_name(f"split of {layout.scheme}:", chosen, layout.files)
    folder = _binary_folder(layout, existing_folder(path))
    records = [_records(layout, folder / name) for name in layout.files[chosen]]
    starts = np.cumsum([0, *map(len, records)])
    labels = np.concatenate([part[:, layout.label_bytes - 1] for part in records]).astype(np.int64)

    def pixels(position: int) -> Uint8:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        planes: Uint8 = records[part][position - starts[part], layout.label_bytes :].reshape(3, SIDE, SIDE)
        return planes.transpose(1, 2, 0)

    data_id = f"{layout.scheme}:{folder}:{chosen}"
    return PixelSource(data_id, pixels, labels, chosen, classnames=layout.classnames, templates=TEMPLATES)


def _binary_folder(layout: _Layout, folder: Path) -> Path:
    first = layout.files["test"][0]
    for place in (folder, folder / layout.folder):
        if (place / first).is_file():
            return place
    for place in (folder, folder / layout.pickled):
        if (place / Path(first).stem).is_file():
            raise RefusedError(
                f"{place} is the Python version of {layout.scheme}, which is pickled: reading it would run what it says",
                expected=f"the binary version, {layout.folder}/{first}",
                fix=f"Download https://www.cs.toronto.edu/~kriz/{layout.archive} and unpack it in {folder}.",
            )
    raise MissingDataError(
        f"no {layout.scheme} in {folder}",
        expected=f"{layout.folder}/{first}",
        fix=f"Download https://www.cs.toronto.edu/~kriz/{layout.archive} and unpack it there.",
    )


def _records(layout: _Layout, path: Path) -> Uint8:
    """Return the records of a file, uint8 ``(n, label bytes + 3072)``, left on disk."""
    if not path.is_file():
        raise MissingDataError(f"no {path.name} in {path.parent}", fix="Unpack the whole archive.")
    size, length = path.stat().st_size, layout.label_bytes + _PIXELS
    if size == 0 or size % length:
        raise DataError(f"{path} is not whole", found=f"{size} bytes", expected=f"a multiple of {length}", fix="Unpack the archive again.")
    return np.memmap(path, np.uint8, "r", shape=(size // length, length))
