"""Which data sets belong together: the known and the shifted one, the common and the counter group, the clean and the altered one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from clipq.calib_data.groups import COMMON, COUNTER
from clipq.calib_data.table import open_source
from clipq.errors import UsageError

Axis = Literal["noise", "shift", "spurious"]
AXES: Mapping[Axis, str] = {"noise": "Noise corruption", "shift": "Covariate shift", "spurious": "Spurious correlation"}
SHIFTED_IMAGENET = ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet")
_GROUPED = ("waterbirds", "counteranimal")


@dataclass(frozen=True, slots=True)
class Pairs:
    """(first, second) data ids by axis: known and shifted, common and counter, clean and altered; each pair once."""

    noise: tuple[tuple[str, str], ...] = field(default=())
    shift: tuple[tuple[str, str], ...] = field(default=())
    spurious: tuple[tuple[str, str], ...] = field(default=())


def find_pairs(data_ids: Collection[str], shift: Iterable[tuple[str, str]] = (), spurious: Iterable[tuple[str, str]] = ()) -> Pairs:
    """Return the pairs among data sets: those that were asked for, then those that their ids tell.

    ``imagenet:PATH`` goes with each of its shifted relatives, ``imagenet:PATH:r`` and ``:a`` with the one set that has these classes;
    ``:common`` goes with ``:counter`` of the same folder; drawn data goes with what is drawn of it (``synthetic:scenes-shift``).

    Args:
        data_ids: Canonical ids of the labelled data sets.
        shift: (known, shifted) that were asked for.
        spurious: (common, counter) that were asked for.

    >>> find_pairs(["imagenet:/i", "imagenet-r:/r"]).shift
    (('imagenet:/i', 'imagenet-r:/r'),)
    """
    return Pairs(
        noise=tuple(_drawn(data_ids, "noise")),
        shift=tuple(dict.fromkeys([*shift, *_natural(data_ids), *_drawn(data_ids, "shift")])),
        spurious=tuple(dict.fromkeys([*spurious, *_grouped(data_ids), *_drawn(data_ids, "spurious")])),
    )


def canonical(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return pairs of data ids as their sources call themselves.

    Raises:
        UsageError: A kind, folder or split is unknown, or both are the same data set.
        DataError: A data set is broken.
    """
    found = tuple((open_source(first).id, open_source(second).id) for first, second in pairs)
    for first, second in found:
        if first == second:
            raise UsageError(f"{first} is compared with itself", expected="two data sets")
    return found


def check_groups(classnames: Mapping[str, tuple[str, ...]], pairs: Iterable[tuple[str, str]]) -> None:
    """Check that both groups of a spurious correlation are told apart by the same names.

    Raises:
        UsageError: They are not.
    """
    for common, counter in pairs:
        if classnames[common] != classnames[counter]:
            raise UsageError(
                f"{common} and {counter} are no two groups of one data set",
                found=f"{len(classnames[common])} and {len(classnames[counter])} class names that differ",
                expected="the same names in the same order",
            )


def scheme_of(data_id: str) -> str:
    """Return the kind of a data id, its first word."""
    return data_id.partition(":")[0]


def axis_of(data_id: str) -> Axis | None:
    """Return the axis along which a data set was altered or differs, as its id tells, or None for plain images.

    >>> axis_of("synthetic:scenes-noise"), axis_of("objectnet:/data"), axis_of("wds:/data/cifar10:test")
    ('noise', 'shift', None)
    """
    scheme = scheme_of(data_id)
    if scheme.startswith("corrupt-") or scheme in {"cifar10-c", "cifar100-c"}:
        return "noise"
    if scheme in SHIFTED_IMAGENET:
        return "shift"
    if scheme in _GROUPED:
        return None if data_id.endswith(f":{COMMON}") else "spurious"
    return next((axis for axis in AXES if scheme == "synthetic" and data_id.endswith(f"-{axis}")), None)


def _drawn(data_ids: Collection[str], axis: Axis) -> Iterator[tuple[str, str]]:
    for altered in data_ids:
        plain = altered.removesuffix(f"-{axis}")
        if scheme_of(altered) == "synthetic" and plain != altered and plain in data_ids:
            yield plain, altered


def _natural(data_ids: Collection[str]) -> Iterator[tuple[str, str]]:
    shifted = [data_id for data_id in data_ids if scheme_of(data_id) in SHIFTED_IMAGENET]
    for known in data_ids:
        if scheme_of(known) == "imagenet":
            subset = next((name for name in ("r", "a") if known.endswith(f":{name}")), "")
            yield from ((known, other) for other in shifted if not subset or scheme_of(other) == f"imagenet-{subset}")


def _grouped(data_ids: Collection[str]) -> Iterator[tuple[str, str]]:
    for common in data_ids:
        counter = common.removesuffix(COMMON) + COUNTER
        if scheme_of(common) in _GROUPED and common.endswith(f":{COMMON}") and counter in data_ids:
            yield common, counter
