"""The reliability suite on one bundle, with FP32 PyTorch's embeddings from another Python where this one has no torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opened import open_each

from clipq.artifact import Bundle
from clipq.calib_data.pipeline import batches
from clipq.calib_data.preprocess import Preprocess
from clipq.errors import DataError
from clipq.evaluate.datasets import load_sets
from clipq.evaluate.suite import EvalOptions, evaluate_bundle
from clipq.files import write_text
from clipq.machine import usable_cores

METRICS = ("acc1", "ece15", "signed_gap", "nll")
PAIRED = ("disagreement", "flips", "cosine_mean", "cosine_centred_mean")
SCORES = ("mcm", "maxlogit", "energy_logit")
PIXELS = 256  # images of each data set whose pixels are compared between two Pythons


def judge(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the engines of a bundle that run here and return the figures of the report that the page shows.

    ``after`` names the result of the part that already stored FP32 PyTorch's embeddings in the same folder, with another Python;
    they are used only when both Pythons decode images to the very same pixels.
    """
    bundle = Bundle.open(Path(arguments["bundle"]))
    pixels = _pixels_sha256(bundle, tuple(arguments["data"]), tuple(arguments["ood"]))
    if "after" in arguments:
        _borrow(json.loads(Path(arguments["after"]).read_text()), pixels, Path(arguments["output"]))
    with open_each([(bundle, arguments["engines"])]) as (engines, failed):
        usable = tuple(engines)
    options = EvalOptions(
        data=tuple(arguments["data"]),
        ood=tuple(arguments["ood"]),
        engines=("torch-fp32", *usable),
        limit=arguments.get("limit"),
        resamples=arguments.get("resamples", 2000),
        bench_seconds=0,
        resume=True,
        allow_fallback=True,  # it is marked in the report, and the page shows what ran
    )
    report = evaluate_bundle(bundle, options, Path(arguments["output"]))
    return {**_compact(report), "pixels_sha256": pixels, "failed": failed, "versions": report["provenance"]["versions"]}


def _compact(report: Mapping[str, Any]) -> dict[str, Any]:
    results = {e: {d: {m: found[m] for m in METRICS} for d, found in sets.items()} for e, sets in report["results"].items()}
    paired = {e: {d: {m: found[m] for m in PAIRED if m in found} for d, found in sets.items()} for e, sets in report["paired"].items()}
    ood = {e: {p: {s: found[s]["auroc"] for s in SCORES} for p, found in pairs.items()} for e, pairs in report["ood"].items()}
    sizes = {data: {"n": entry["n"], "classes": entry["classes"]} for data, entry in report["datasets"].items()}
    return {
        "model": report["provenance"]["model"]["id"],
        "datasets": sizes,
        "results": results,
        "paired": paired,
        "ood": ood,
        "engines": {name: _without_layers(entry) for name, entry in report["engines"].items()},
        "verdict": report["verdict"],
    }


def _without_layers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's entry without the list of its layers, which the bundle's report has."""
    layers = {key: value for key, value in entry.get("layers", {}).items() if key != "each"}
    return {**entry, **({"layers": layers} if layers else {})}


def _pixels_sha256(bundle: Bundle, data: tuple[str, ...], ood: tuple[str, ...]) -> str:
    """Return the hash of the first pixels of every data set, as this Python decodes them."""
    preprocess, digest = Preprocess.from_file(bundle.file("preprocess.json")), hashlib.sha256()
    inside, outside = load_sets(bundle, data, ood, limit=PIXELS, seed=0)
    for images in (*inside.values(), *outside.values()):
        found = batches(images.source, images.index, preprocess, batch_size=32, workers=usable_cores(), start=0, skipped_before=0)
        for batch in found:
            digest.update(batch.pixels.tobytes())
    return digest.hexdigest()


def _borrow(earlier: Mapping[str, Any], pixels_sha256: str, folder: Path) -> None:
    """Let this Python name the version of torch that made the stored embeddings, which are part of their name.

    Raises:
        DataError: The two Pythons see different pixels.
    """
    if earlier["pixels_sha256"] != pixels_sha256:
        raise DataError(
            "the two Pythons decode images to different pixels", found="other hashes", fix="Install the same Pillow and numpy in both."
        )
    version = earlier["versions"]["torch"]
    site = folder / "versions"
    write_text(site / f"torch-{version}.dist-info" / "METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    sys.path.append(str(site))
