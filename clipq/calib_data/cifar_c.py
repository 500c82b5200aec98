"""``cifar10-c:PATH:NAME/SEVERITY`` (and ``cifar100-c``): the published arrays of Hendrycks and Dietterich (2019), read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipq.calib_data.cifar import SIDE
from clipq.calib_data.cifar_names import CIFAR10, CIFAR100, TEMPLATES
from clipq.calib_data.layout import existing_folder
from clipq.calib_data.pixels import PixelSource, Uint8
from clipq.calib_data.source import Source
from clipq.errors import DataError, MissingDataError, RefusedError, UsageError, unknown_name

SEVERITIES = 5
_LABELS = "labels"


def open_cifar10_c(rest: str, _split: str | None) -> Source:
    """Return one corruption of CIFAR-10-C at one severity: ``PATH`` holds ``labels.npy`` and ``NAME.npy``.

    A file holds the test images five times, severity 1 first.

    Raises:
        MissingDataError: The folder is not there, or holds no such arrays.
        UsageError: The corruption or the severity is unknown.
        DataError: An array has another form.
        RefusedError: An array is pickled.
    """
    return _open("cifar10-c", rest, CIFAR10)


def open_cifar100_c(rest: str, _split: str | None) -> Source:
    """Return one corruption of CIFAR-100-C at one severity; as ``open_cifar10_c``."""
    return _open("cifar100-c", rest, CIFAR100)


def _open(scheme: str, rest: str, classnames: tuple[str, ...]) -> Source:
    path, _, named = rest.rpartition(":")
    name, _, level = named.rpartition("/")
    if not path or not name or level not in set(map(str, range(1, SEVERITIES + 1))):
        raise UsageError(f"cannot read {scheme}:{rest}", expected=f"{scheme}:PATH:NAME/SEVERITY with a severity of 1 to {SEVERITIES}")
    folder = existing_folder(path)
    known = [file.stem for file in folder.glob("*.npy") if file.stem != _LABELS]
    if not known or not (folder / f"{_LABELS}.npy").is_file():
        raise MissingDataError(f"no {scheme} in {folder}", expected="labels.npy and an array for each corruption, e.g. fog.npy")
    if name not in known:
        raise unknown_name(f"corruption in {folder}", name, known)
    images, labels = _load(folder / f"{name}.npy"), _load(folder / f"{_LABELS}.npy")
    _check(folder, name, images, labels)
    count = len(images) // SEVERITIES
    start = (int(level) - 1) * count

    def pixels(position: int) -> Uint8:
        return np.asarray(images[start + position])

    own = np.asarray(labels[start : start + count]).astype(np.int64)
    return PixelSource(f"{scheme}:{folder}:{name}/{level}", pixels, own, f"{name}/{level}", classnames=classnames, templates=TEMPLATES)


def _load(path: Path) -> npt.NDArray[Any]:
    """Return an array, left on disk."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        if any(word in str(error) for word in ("pickle", "Python objects")):
            raise RefusedError(f"{path} is pickled: reading it would run what it says", fix="Download the published array.") from error
        raise DataError(f"cannot read {path}", found=error, expected="an array of numpy", fix="Download it again.") from error
    return array


def _check(folder: Path, name: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    n = len(labels) if labels.ndim == 1 else 0
    right = images.shape == (n, SIDE, SIDE, 3) and images.dtype == np.uint8 and np.issubdtype(labels.dtype, np.integer)
    if not right or n == 0 or n % SEVERITIES:
        raise DataError(
            f"{name}.npy and labels.npy of {folder} do not fit",
            found=f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}",
            expected=f"uint8 (n, {SIDE}, {SIDE}, 3) and n whole labels, n a multiple of {SEVERITIES}",
        )
