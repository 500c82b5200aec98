"""Verify a bundle on the device that it is for: files, golden tensors, preprocessing, thresholds and latency, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipq.artifact import MANIFEST, Bundle
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.golden import Golden, golden_of, pictures_of
from clipq.engines.table import ENGINES, checked_entry, open_engine
from clipq.errors import EngineError, ExportError, MissingRuntimeError, RefusedError, UsageError
from clipq.evaluate.classifiers import classifier_names, read_classifier, read_vectors, text_tower
from clipq.evaluate.latency import bench
from clipq.evaluate.provenance import describe_engine, describe_run
from clipq.evaluate.selection import left_out, usable_engines
from clipq.evaluate.verify.pictures import PicturesHere, check_pictures, describe_pixels, look_at
from clipq.evaluate.verify.schema import SCHEMA
from clipq.evaluate.verify.thresholds import replay_thresholds
from clipq.evaluate.verify.towers import check_towers
from clipq.files import sha256_file
from clipq.machine import usable_cores
from clipq.progress import bar, note

NO_PICTURES = "the bundle was exported without golden pictures, so the preprocessing was not compared; export it again to have them"


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """One verification.

    Attributes:
        engines: Engine ids; empty means all that can run here.
        threads: CPU threads of one inference; None means one per usable core.
        bench_seconds: Time per engine and latency scenario; 0 measures no latency.
        batch_sizes: Images of one call, for the latency.
    """

    engines: tuple[str, ...] = ()
    threads: int | None = None
    bench_seconds: float = 1.0
    batch_sizes: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not 0 <= self.bench_seconds < float("inf"):
            raise UsageError("--bench-seconds is wrong", found=self.bench_seconds, expected="a time of at least 0, e.g. 1")
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads is too small", found=self.threads, expected="at least 1")


def verify_bundle(bundle: Bundle, options: VerifyOptions) -> dict[str, Any]:
    """Return the record of ``verify.schema.json``: what was checked, what was measured, and in ``problems`` what is beyond its limits.

    Raises:
        RefusedError: A file is not what the manifest says, or does not fit the model.
        UsageError: An engine is unknown.
        MissingRuntimeError: Nothing can run here, or not what was asked for.
    """
    files = check_files(bundle)
    golden, pictures = golden_of(bundle), pictures_of(bundle)
    here = look_at(bundle, pictures, _preprocess(bundle)) if pictures else None
    if here is None:
        note(NO_PICTURES)
    threads = options.threads or usable_cores()
    engine_ids, missing = _who_runs(bundle, options.engines)
    engines, unloaded = _check_engines(bundle, engine_ids, (golden, here), threads, must=bool(options.engines))
    missing |= unloaded
    if not engines:
        raise _nothing_runs(bundle, missing)
    working = [name for name, entry in engines.items() if "error" not in entry]
    timed = bool(options.bench_seconds and working)
    measured: dict[str, Any] = {"threads": threads, "seconds": options.bench_seconds, "batch_sizes": options.batch_sizes}
    record = {
        "schema": SCHEMA,
        "provenance": {**describe_run(bundle), "threads": threads},
        "bundle": files,
        "preprocessing": describe_pixels(here) if here else None,
        "engines": engines,
        "left_out": missing,
        "bench": bench(bundle, working, **measured) if timed else {},
    }
    return {**record, "problems": problems(record)}


def check_files(bundle: Bundle) -> dict[str, Any]:
    """Check every file by hash and every entry against what its name means; return ``record["bundle"]``.

    Raises:
        RefusedError: A file or an entry is not what it should be.
    """
    bundle.verify()
    _preprocess(bundle)
    for engine_id in bundle.manifest.engines:
        if engine_id not in ENGINES:
            raise RefusedError(f"{bundle.folder} has an engine that this clipq does not know", found=engine_id, fix="Use a newer clipq.")
        checked_entry(bundle, engine_id)
    classifiers, unnamed = _check_classifiers(bundle), _unnamed(bundle)
    if unnamed:
        note(f"not named by the manifest, and never read: {', '.join(unnamed[:3])}{' ...' if len(unnamed) > 3 else ''}")
    return {
        "manifest_sha256": sha256_file(bundle.folder / MANIFEST),
        "parent_sha256": bundle.manifest.parent_sha256,
        "files": len(bundle.manifest.files),
        "size_bytes": sum(entry.size_bytes for entry in bundle.manifest.files.values()),
        "classifiers": classifiers,
        "unnamed": unnamed,
    }


def problems(record: Mapping[str, Any]) -> list[str]:
    """Return a line for everything in a record that is beyond its limits: what makes a verification fail."""
    found = [f"{engine}: {entry['error']}" for engine, entry in record["engines"].items() if "error" in entry]
    for engine, entry in record["engines"].items():
        for tower, figures in entry.get("golden", {}).get("towers", {}).items():
            found += [f"{engine}, {tower}: {name} {figures[name]:.6g}, limit {figures['limits'][name]:.6g}" for name in figures["beyond"]]
    unreadable = (record["preprocessing"] or {}).get("unreadable", {})
    return found + [f"{name} cannot be decoded here: {why}" for name, why in unreadable.items()]


def _preprocess(bundle: Bundle) -> Preprocess:
    try:
        return Preprocess.from_file(bundle.file("preprocess.json"))
    except UsageError as error:
        raise RefusedError(str(error)) from error


def _check_classifiers(bundle: Bundle) -> list[str]:
    """Read every classifier for every engine that it has class embeddings of; return their names."""
    names = classifier_names(bundle)
    for found in (read_classifier(bundle, name) for name in names):
        for engine_id in bundle.manifest.engines:
            if text_tower(bundle, engine_id) in found.vectors:
                read_vectors(bundle, found, engine_id)
    return names


def _unnamed(bundle: Bundle) -> list[str]:
    places = ((os.path.relpath(place, bundle.folder), names) for place, _, names in os.walk(bundle.folder))
    present = {os.path.normpath(os.path.join(place, name)) for place, names in places for name in names}  # noqa: PTH118 - relative text
    return sorted(present - set(bundle.manifest.files) - {MANIFEST, ".lock"})


def _who_runs(bundle: Bundle, asked: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the engines to check, and why each other one cannot run here."""
    if asked:
        return usable_engines(bundle, asked), {}
    missing = left_out(bundle, ())
    for engine_id, why in missing.items():
        note(f"leaving out {engine_id}: {why}")
    return [name for name in bundle.manifest.engines if name not in missing], missing


def _nothing_runs(bundle: Bundle, missing: Mapping[str, str]) -> MissingRuntimeError:
    why = "; ".join(f"{name}: {line.rstrip('.')}" for name, line in missing.items())
    return MissingRuntimeError(f"no engine of {bundle.folder} can run here", found=why or "no engine", fix="See clipq doctor.")


def _check_engines(
    bundle: Bundle, engine_ids: list[str], inputs: tuple[Golden, PicturesHere | None], threads: int, *, must: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    engines: dict[str, Any] = {}
    missing: dict[str, str] = {}
    with bar("Checking engines", len(engine_ids)) as advance:
        for engine_id in engine_ids:
            described = describe_engine(bundle, engine_id)
            try:
                engines[engine_id] = {**described, **_check_engine(bundle, engine_id, inputs, threads)}
            except EngineError as error:
                engines[engine_id] = {**described, "error": str(error)}
            except (UsageError, ExportError, MissingRuntimeError) as error:  # the checkpoint of torch-fp32 is not here, or a device is not
                if must:
                    raise
                missing[engine_id] = str(error)
                note(f"leaving out {engine_id}: {error}")
            advance(1)
    return engines, missing


def _check_engine(bundle: Bundle, engine_id: str, inputs: tuple[Golden, PicturesHere | None], threads: int) -> dict[str, Any]:
    golden, here = inputs
    with open_engine(bundle, engine_id, threads) as engine:
        found = {"golden": check_towers(bundle, engine, golden), "pictures": check_pictures(engine, here) if here else None}
        thresholds = replay_thresholds(bundle, engine, here.pixels if here else None)
    return found if thresholds is None else {**found, "thresholds": thresholds}
