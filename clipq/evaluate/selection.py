"""Which engines of a bundle take part: those that were asked for, or all that can run here."""

from __future__ import annotations

from clipq.artifact import Bundle
from clipq.engines.table import checked_entry, open_engine
from clipq.errors import MissingRuntimeError, UsageError
from clipq.evaluate.provenance import runtime_version
from clipq.progress import note


def usable_engines(bundle: Bundle, asked: tuple[str, ...]) -> list[str]:
    """Return the engines that were asked for, or all whose runtime, device and plans are here (a line tells which are left out).

    Raises:
        UsageError: The bundle has no such engine, or none at all can run here.
        MissingRuntimeError: What an engine that was asked for needs is not here.
        RefusedError: A file of an engine is not what the manifest says; that is never just left out.
    """
    chosen = [name for name in dict.fromkeys(asked or bundle.manifest.engines) if _usable(bundle, name, must=bool(asked))]
    if not chosen:
        raise UsageError(f"no engine of {bundle.folder} can run here", found=sorted(bundle.manifest.engines), fix="See clipq doctor.")
    return chosen


def choose_engines(bundle: Bundle, asked: tuple[str, ...], baseline: str) -> list[str]:
    """Return the engines to evaluate, the baseline first.

    Raises:
        UsageError: The bundle has no such engine.
        MissingRuntimeError: What the baseline, or an engine that was asked for, needs is not here.
        RefusedError: A file of an engine is not what the manifest says.
    """
    try:
        _require(bundle, baseline)
    except MissingRuntimeError as error:
        why = str(error).rstrip(".")
        other = "Or use --baseline ort-fp32." if baseline != "ort-fp32" else "Or choose another --baseline."
        raise MissingRuntimeError(f"the baseline {baseline} cannot run: {why}", fix=other) from error
    return list(dict.fromkeys([baseline, *usable_engines(bundle, asked)]))


def left_out(bundle: Bundle, asked: tuple[str, ...]) -> dict[str, str]:
    """Return why each engine of the bundle that nobody named cannot run here; empty when engines were named."""
    return {} if asked else {name: why for name in bundle.manifest.engines if (why := _why_not(bundle, name))}


def _why_not(bundle: Bundle, engine_id: str) -> str:
    try:
        _require(bundle, engine_id)
    except MissingRuntimeError as error:
        return str(error)
    return ""


def _usable(bundle: Bundle, engine_id: str, *, must: bool) -> bool:
    try:
        _require(bundle, engine_id)
    except MissingRuntimeError as error:
        if must:
            raise MissingRuntimeError(f"{engine_id} cannot run: {error}") from error
        note(f"leaving out {engine_id}: {error}")
        return False
    return True


def _require(bundle: Bundle, engine_id: str) -> None:
    """Check runtime, device and files of an engine; it is made, not entered, so nothing is loaded onto a device."""
    runtime_version(checked_entry(bundle, engine_id).runtime)
    open_engine(bundle, engine_id)
