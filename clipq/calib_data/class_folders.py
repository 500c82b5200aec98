"""Folders that a published data set has one of per class: all of them, none that is unknown, on the right level."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from clipq.calib_data.imagefolder import images_below
from clipq.errors import DataError, UsageError


def folders_of(root: Path) -> list[str]:
    """Return the names of the folders directly below a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def check_class_folders(root: Path, kind: str, wanted: Sequence[str], ignored: Collection[str] | None, fix: str) -> None:
    """Check that the folders of a data set are those it was published with.

    Args:
        root: Where they should lie.
        kind: What the data set is called.
        wanted: The folder of each class.
        ignored: Folders that may stand beside them; None for any.
        fix: What to do about missing classes.

    Raises:
        UsageError: There is no class folder at all; the line names the level on which they are.
        DataError: Some are missing, or one is neither wanted nor ignored.
    """
    found, classes = set(folders_of(root)), set(wanted)
    if not found & classes:
        raise _wrong_level(root, kind, wanted)
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(
            f"{root} is only a part of {kind}",
            found=f"{len(wanted) - len(missing)} of {len(wanted)} class folders, no {missing[0]}{more}",
            expected="all of them: with fewer classes every figure is another one",
            fix=fix,
        )
    unknown = sorted(found - classes - set(ignored or ()))
    if ignored is not None and unknown:
        raise DataError(
            f"{root} has a folder that is no class of {kind}",
            found=f"{unknown[0]}" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""),
            expected=f"{len(wanted)} folders such as {wanted[0]}",
            fix="Check the kind of data id, or move the folder away.",
        )


def images_by_class(root: Path, folders: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the images of the folders, as paths from the root, and for each the place of its folder."""
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        own = images_below(root, folder)
        names += own
        labels += [label] * len(own)
    return names, labels


def _wrong_level(root: Path, kind: str, wanted: Sequence[str]) -> UsageError:
    classes = set(wanted)
    below = [name for name in folders_of(root) if classes & set(folders_of(root / name))]
    if root.name in classes:
        found, fix = "one class of it", f"Give {root.parent}."
    elif below:
        found, fix = f"class folders one level deeper, in {below[0]}", f"Give {root / below[0]}."
    else:
        found, fix = "none of them", "Sort the images into one folder per class, as the data set is published."
    return UsageError(f"no class folders of {kind} in {root}", found=found, expected=f"{len(wanted)} folders such as {wanted[0]}", fix=fix)
