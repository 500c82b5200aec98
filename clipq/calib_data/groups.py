"""The two groups of a spurious correlation: ``common`` keeps what usually goes together, ``counter`` breaks it."""

from __future__ import annotations

from clipq.calib_data.layout import path_and_split
from clipq.errors import unknown_name

COMMON, COUNTER, ALL = "common", "counter", "all"


def path_and_group(rest: str, kind: str) -> tuple[str, str]:
    """Return path and group of ``PATH[:common|counter|all]``; without a group it is ``all``.

    Raises:
        UsageError: There is no such group.
    """
    path, group = path_and_split(rest, None)
    if group is None:
        return path, ALL
    if group not in {COMMON, COUNTER, ALL}:
        raise unknown_name(f"group of {kind}", group, (COMMON, COUNTER, ALL))
    return path, group


def with_group(data_id: str, group: str) -> str:
    """Return the canonical data id: ``all`` is not written.

    >>> with_group("waterbirds:/data", "counter"), with_group("waterbirds:/data", "all")
    ('waterbirds:/data:counter', 'waterbirds:/data')
    """
    return data_id if group == ALL else f"{data_id}:{group}"
