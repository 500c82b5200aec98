"""A suite as one frozen value: every key is an option of ``clipq eval`` by the same name, with underscores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from clipq.errors import UsageError, unknown_name
from clipq.files import sha256_json

SCHEMA = "clipq.suite/1"
ROOT = "{root}"  # in a data id: the folder of --root


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of a suite.

    Attributes:
        id: Its data id; ``{root}`` stands for the folder of ``--root``.
        required: Whether its absence is an error; else the set is left out.
    """

    id: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite; None and empty leave an option at its default.

    Attributes:
        name: How the report calls it.
        schema: Version of this record's meaning.
        about: What it is for, in one line.
        data: ID data sets.
        ood: OOD data sets.
        ood_near: OOD data sets near the ID data.
        ood_far: OOD data sets far from it.
        retrieval: Data sets of images with captions.
        shift: Pairs ``ID=SHIFTED`` of data sets, where their ids do not tell that they belong together.
        spurious: Pairs ``COMMON=COUNTER``, likewise.
        corruptions: Corruptions of copies of the ID data sets, by name or number.
        severities: Severities of the corruptions.
        neglabel: Whether OOD data is scored by NegLabel too.
        tune_scale: The data set that one logit scale per engine is fitted on; at most one.
        limit: At most this many images of each data set.
        resamples: Bootstrap resamples.
        bench_seconds: Time per engine and latency scenario.
        seed: Of sampling and resampling.
        gates: Presets of gates.
        fail_on: Gates, one by one.
    """

    name: str
    schema: str
    about: str
    data: tuple[Entry, ...]
    ood: tuple[Entry, ...] = ()
    ood_near: tuple[Entry, ...] = ()
    ood_far: tuple[Entry, ...] = ()
    retrieval: tuple[Entry, ...] = ()
    shift: tuple[Entry, ...] = ()
    spurious: tuple[Entry, ...] = ()
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()
    neglabel: bool | None = None
    tune_scale: tuple[Entry, ...] = ()
    limit: int | None = None
    resamples: int | None = None
    bench_seconds: float | None = None
    seed: int | None = None
    gates: tuple[str, ...] = ()
    fail_on: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the suite as a JSON value."""
        return asdict(self)

    def sha256(self) -> str:
        """Return the hash that reports carry: equal hashes ask for the same, whatever the file looks like."""
        return sha256_json(self.to_json())

    def options(self) -> dict[str, Any]:
        """Return option -> value of everything that it sets."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in {"name", "schema", "about"}}
        return {name: value for name, value in own.items() if value not in (None, ())}


def suite_from_json(name: str, found: object, where: str) -> Suite:
    """Return the suite that a mapping describes.

    Args:
        name: How it is called.
        found: What a file holds.
        where: Names the file in an error.

    Raises:
        UsageError: A key is unknown or missing, or a value is of the wrong kind.
    """
    if not isinstance(found, Mapping):
        raise UsageError(f"{where} is no suite", found=type(found).__name__, expected="keys such as data and ood, one per line")
    for key in found:
        if key not in KEYS:
            raise unknown_name(f"key in {where}", str(key), KEYS)
    for key in ("schema", "about", "data"):
        if not found.get(key):
            raise UsageError(f"{where} has no {key}", expected=f"schema: {SCHEMA}, about in one line, and data")
    if found["schema"] != SCHEMA:
        raise UsageError(f"{where} is written for another version", found=found["schema"], expected=SCHEMA)
    return Suite(name=name, **{key: KEYS[key](value, f"{key} in {where}") for key, value in found.items() if value is not None})


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value.strip():
        raise _wrong(where, value, "one line of text")
    return value.strip()


def _texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in _listed(value, where))


def _entries(value: object, where: str) -> tuple[Entry, ...]:
    return tuple(_entry(item, where) for item in _listed(value, where))


def _entry(value: object, where: str) -> Entry:
    if isinstance(value, str):
        return Entry(_text(value, where))
    known = [field.name for field in fields(Entry)]
    if not isinstance(value, Mapping) or "id" not in value:
        raise _wrong(where, value, "a data id, or id and required")
    for key in value:
        if key not in known:
            raise unknown_name(f"key in {where}", str(key), known)
    return Entry(_text(value["id"], where), _flag(value.get("required", False), f"required in {where}"))


def _pairs(value: object, where: str) -> tuple[Entry, ...]:
    entries = _entries(value, where)
    for entry in entries:
        if len([part for part in entry.id.split("=") if part.strip()]) != 2:
            raise _wrong(where, entry.id, "two data ids with = between them")
    return entries


def _single(value: object, where: str) -> tuple[Entry, ...]:
    entries = _entries(value, where)
    if len(entries) > 1:
        raise _wrong(where, [entry.id for entry in entries], "one data id")
    return entries


def _listed(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return value


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(where, value, "a whole number")
    return value


def _wholes(value: object, where: str) -> tuple[int, ...]:
    return tuple(_whole(item, where) for item in _listed(value, where))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _wrong(where, value, "a number that is not negative")
    return float(value)


def _wrong(where: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{where} is wrong", found=repr(value), expected=expected)


KEYS: Mapping[str, Callable[[object, str], Any]] = {
    "schema": _text,
    "about": _text,
    "data": _entries,
    "ood": _entries,
    "ood_near": _entries,
    "ood_far": _entries,
    "retrieval": _entries,
    "shift": _pairs,
    "spurious": _pairs,
    "corruptions": _texts,
    "severities": _wholes,
    "neglabel": _flag,
    "tune_scale": _single,
    "limit": _whole,
    "resamples": _whole,
    "bench_seconds": _number,
    "seed": _whole,
    "gates": _texts,
    "fail_on": _texts,
}
