"""``counteranimal:PATH[:common|counter|all]``: CounterAnimal, animals before their usual background and before unusual ones.

Published (Wang et al. 2024, arXiv 2403.11497) as one folder per class, ``INDEX NAME`` with the class's index in ImageNet, and in it one
folder ``common-BACKGROUND`` and one ``counter-BACKGROUND``; PATH is the folder of these, or the one with ``LAION-final`` in it.
Images are classified over all 1,000 ImageNet classes (the paper's "1 vs. 1000"), though they show only about 45 of them: metrics per
class average over those that occur. Names and templates are those of ``imagenet:``.
"""

from __future__ import annotations

import re
from pathlib import Path

from clipq.calib_data.class_folders import folders_of
from clipq.calib_data.groups import ALL, COMMON, COUNTER, path_and_group, with_group
from clipq.calib_data.imagefiles import FileSource
from clipq.calib_data.imagefolder import images_below
from clipq.calib_data.imagenet import imagenet_classes, imagenet_templates
from clipq.calib_data.layout import existing_folder, read_templates
from clipq.calib_data.source import Source
from clipq.errors import DataError, UsageError

_CLASS = re.compile(r"(\d{1,3}) \S.*")
_PACKED = "LAION-final"


def open_counteranimal(rest: str, _split: str | None) -> Source:
    """Return the images of a group.

    Raises:
        MissingDataError: The folder does not exist.
        UsageError: There is no class folder in it, or no such group.
        DataError: A class lacks one of its two groups, or two folders are of one class.
    """
    path, group = path_and_group(rest, "CounterAnimal")
    root = existing_folder(path)
    root = root / _PACKED if (root / _PACKED).is_dir() else root
    wanted = (COMMON, COUNTER) if group == ALL else (group,)
    names: list[str] = []
    labels: list[int] = []
    for label, folder in _class_folders(root).items():
        groups = _group_folders(root, folder)
        found = [name for kind in wanted for name in images_below(root, f"{folder}/{groups[kind]}")]
        if not found:
            raise DataError(f"no images of {folder!r} in {root}", expected="at least one in each group", fix="Unpack the data set again.")
        names += found
        labels += [label] * len(found)
    data_id = with_group(f"counteranimal:{root}", group)
    classnames = tuple(known.name for known in imagenet_classes())
    templates = read_templates(root, default=imagenet_templates())
    return FileSource(data_id, root, names, labels, classnames=classnames, templates=templates, every_class=False)


def _class_folders(root: Path) -> dict[int, str]:
    """Return the folder of each class by its index in ImageNet, ascending."""
    found: dict[int, str] = {}
    for name in folders_of(root):
        match = _CLASS.fullmatch(name)
        if match is None:
            continue
        if int(match[1]) in found:
            raise DataError(f"two folders of {root} are of class {match[1]}", found=f"{found[int(match[1])]!r} and {name!r}")
        found[int(match[1])] = name
    if not found:
        raise UsageError(
            f"no class folders of CounterAnimal in {root}",
            found=", ".join(folders_of(root)[:3]) or "no folder",
            expected="folders such as '296 ice bear', each with common-BACKGROUND and counter-BACKGROUND",
        )
    return dict(sorted(found.items()))


def _group_folders(root: Path, folder: str) -> dict[str, str]:
    below = folders_of(root / folder)
    found = {kind: [name for name in below if name.startswith(kind)] for kind in (COMMON, COUNTER)}
    if any(len(names) != 1 for names in found.values()):
        raise DataError(
            f"{root / folder} is not a class of CounterAnimal",
            found=", ".join(below) or "no folder",
            expected="one folder common-BACKGROUND and one counter-BACKGROUND",
            fix="Unpack the data set again.",
        )
    return {kind: names[0] for kind, names in found.items()}
