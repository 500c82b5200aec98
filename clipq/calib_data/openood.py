"""``openood:ROOT:BENCHMARK/LIST``: a set of OpenOOD v1.5 in the folder that its download script fills."""

from __future__ import annotations

import difflib
from pathlib import Path

from clipq.calib_data.cifar_names import CIFAR10, CIFAR100
from clipq.calib_data.cifar_names import TEMPLATES as CIFAR_TEMPLATES
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.imagenet import imagenet_classes, imagenet_templates
from clipq.calib_data.imglist import read_imglist
from clipq.calib_data.layout import existing_folder, leaves_folder
from clipq.calib_data.source import DEFAULT_TEMPLATES, Source
from clipq.errors import DataError, MissingDataError, UsageError

# OpenOOD, openood/evaluation_api/datasets.py (v1.5): the lists are sorted by benchmark, the images by size.
LISTS = "benchmark_imglist"
IMAGES = ("images_largescale", "images_classic")


def open_openood(rest: str, _split: str | None) -> Source:
    """Return the images of a list such as ``imagenet/ninco`` (also written ``imagenet/test_ninco``).

    ID lists of ``cifar10``, ``cifar100`` and ``imagenet`` have class names, so that they can be classified; those of the other
    benchmarks serve as OOD data.

    Raises:
        UsageError: The id has no list.
        MissingDataError: The folder, the list or its images are not there.
        DataError: Some of its images are missing, or a line cannot be read.
    """
    root_text, _, name = rest.rpartition(":")
    benchmark, _, short = name.partition("/")
    if not root_text or not benchmark or not short or leaves_folder(name):
        raise UsageError(f"cannot read openood:{rest}", expected="openood:ROOT:BENCHMARK/LIST, e.g. openood:/data/openood:imagenet/ninco")
    root = existing_folder(root_text)
    file = _list_file(root, benchmark, short)
    names, labels = read_imglist(file)
    images = _image_folder(root, file, names)
    data_id = f"openood:{root}:{benchmark}/{file.stem}"
    classnames, templates = _names(benchmark)
    if not classnames or min(labels) < 0 or not file.stem.endswith(f"_{benchmark}"):
        classnames, templates, labels = (), DEFAULT_TEMPLATES, [-1] * len(names)
    return FileSource(data_id, images, names, labels, classnames=classnames, templates=templates)


def _names(benchmark: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return class names and prompts of a benchmark's ID data; no names where it has its own choice of classes."""
    if benchmark == "imagenet":
        return tuple(known.name for known in imagenet_classes()), imagenet_templates()
    names = {"cifar10": CIFAR10, "cifar100": CIFAR100}.get(benchmark, ())
    return names, CIFAR_TEMPLATES if names else DEFAULT_TEMPLATES


def _list_file(root: Path, benchmark: str, name: str) -> Path:
    folder = root / LISTS / benchmark
    for stem in (name.removesuffix(".txt"), f"test_{name}"):
        if (folder / f"{stem}.txt").is_file():
            return folder / f"{stem}.txt"
    near = difflib.get_close_matches(f"test_{name}", [file.stem for file in folder.glob("*.txt")], n=1, cutoff=0.4)
    raise MissingDataError(
        f"no list {benchmark}/{name} in {root}",
        expected=f"{LISTS}/{benchmark}/test_{name}.txt",
        fix=f"Did you mean {benchmark}/{near[0]}?" if near else "Name the folder that OpenOOD's download script filled.",
    )


def _image_folder(root: Path, file: Path, names: list[str]) -> Path:
    """Return the folder that the paths of a list are relative to: the one in which its images are."""
    for folder in IMAGES:
        missing = [name for name in names if not (root / folder / name).is_file()]
        if not missing:
            return root / folder
        if len(missing) < len(names):
            raise DataError(
                f"{len(missing)} of {len(names)} images of {file} are not in {root / folder}",
                found=f"no {missing[0]}",
                fix="Run OpenOOD's download script again.",
            )
    raise MissingDataError(
        f"no image of {file} is there",
        expected=f"{names[0]} in {root / IMAGES[0]} or {IMAGES[1]}",
        fix="Run OpenOOD's download script for this set.",
    )
