"""A suite on one machine: its data ids below ``--root``, and which of them are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.calib_data.captions import open_captioned
from clipq.calib_data.table import open_source
from clipq.errors import MissingDataError, UsageError
from clipq.evaluate.suites.recipe import ROOT, Entry, Suite
from clipq.progress import note

_FOREIGN = ("ood", "ood_near", "ood_far")


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a suite asks for here.

    Attributes:
        options: Option of ``clipq eval`` -> value.
        record: ``provenance["suite"]``: its name, its hash, the root, and data id (or option) -> why it was left out.
    """

    options: Mapping[str, Any]
    record: Mapping[str, Any]


def resolve(suite: Suite, root: Path | None, replaced: Collection[str] = ()) -> Resolved:
    """Return the options of a suite, without the data sets that are not there; each of those is noted on stderr.

    A data set that is there but cannot be read is an error all the same: nobody meant it to be left out.

    Args:
        suite: The suite.
        root: What ``{root}`` stands for.
        replaced: Options that are given beside the suite, so that its own do not count.

    Raises:
        UsageError: The suite needs a root and has none, none of its ID data sets is there, or an id cannot be read.
        MissingDataError: A required data set is not there.
        DataError: A data set is broken.
    """
    asked = {name: value for name, value in suite.options().items() if name not in replaced}
    if root is None and needs_root(asked):
        raise UsageError(f"the suite {suite.name} needs the folder of its data sets", fix="Name it with --root.")
    left_out: dict[str, str] = {}
    options = {name: _there(name, value, root, left_out) for name, value in asked.items()}
    if options.get("neglabel") and not any(options.get(name) or name in replaced for name in _FOREIGN):
        left_out["neglabel"] = "no OOD data set is there"
        del options["neglabel"]
    for data_id, why in left_out.items():
        note(f"left out {data_id}: {why}")
    if "data" in asked and not options["data"]:
        raise UsageError(
            f"none of the data sets of the suite {suite.name} is there",
            found="; ".join(left_out.values()),
            expected=" or ".join(_placed(entry.id, root) for entry in suite.data),
            fix="Name the folder that holds them with --root.",
        )
    record = {"name": suite.name, "sha256": suite.sha256(), "root": str(root) if root else None, "left_out": left_out}
    return Resolved({name: value for name, value in options.items() if value != ()}, record)


def needs_root(options: Mapping[str, Any]) -> bool:
    """Tell whether a data id among the options stands below ``{root}``."""
    entries = [entry for value in options.values() if isinstance(value, tuple) for entry in value if isinstance(entry, Entry)]
    return any(ROOT in entry.id for entry in entries)


def _there(name: str, value: Any, root: Path | None, left_out: dict[str, str]) -> Any:
    """Return an option's value; of data sets the ids of those that are there."""
    if not isinstance(value, tuple) or not isinstance(value[0], Entry):
        return value
    openers: Mapping[str, Callable[[str], object]] = {"retrieval": open_captioned, "shift": _open_pair, "spurious": _open_pair}
    return tuple(here for entry in value if (here := _here(entry, openers.get(name, open_source), root, left_out)))


def _open_pair(data_ids: str) -> None:
    for data_id in data_ids.split("="):
        open_source(data_id.strip())


def _here(entry: Entry, opens: Callable[[str], object], root: Path | None, left_out: dict[str, str]) -> str | None:
    """Return the data id of an entry, or None, with the reason noted, where nothing is there."""
    data_id = _placed(entry.id, root)
    try:
        opens(data_id)
    except MissingDataError as error:
        if entry.required:
            raise
        left_out[data_id] = str(error)
        return None
    return data_id


def _placed(data_id: str, root: Path | None) -> str:
    return data_id.replace(ROOT, str(root)) if root else data_id
