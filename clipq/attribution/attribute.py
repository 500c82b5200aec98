"""Where was it lost: the stages of one engine, measured on the same images, written as JSON, Markdown and one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipq.artifact import Bundle
from clipq.attribution.embed import Embeddings, Inputs, embed_stages
from clipq.attribution.measure import Conditions, Seen, difference, levels, see, shares
from clipq.attribution.page import page
from clipq.attribution.stages import Plan, plan_stages
from clipq.attribution.tell import markdown
from clipq.attribution.towers import TORCH
from clipq.calib_data.preprocess import Preprocess
from clipq.engines.onnxruntime.providers import CPU, require_provider
from clipq.errors import MissingRuntimeError, UsageError
from clipq.evaluate.datasets import EvalSet, load_sets
from clipq.evaluate.embed import plan_work
from clipq.evaluate.embeddings import tokenise
from clipq.evaluate.provenance import describe_engine, describe_run
from clipq.evaluate.selection import usable_engines
from clipq.evaluate.zeroshot import prompts
from clipq.files import write_json, write_text
from clipq.machine import usable_cores
from clipq.progress import bar, note

SCHEMA = "clipq.attribution/1"


@dataclass(frozen=True, slots=True)
class AttributeOptions:
    """One attribution.

    Attributes:
        data: The data set, labelled.
        engine: Engine id.
        limit: At most this many images.
        seed: Of the choice of images and of the resamples.
        resume: Go on with the embeddings of an interrupted run.
        batch_size: Images of one inference; dynamic quantization makes an embedding depend on its batch.
        threads: CPU threads; None means one per usable core.
        fp16: Measure FP16 too where the engine does not compute in it.
        resamples: Bootstrap resamples.
    """

    data: str
    engine: str = "ort-int8-static"
    limit: int | None = None
    seed: int = 0
    resume: bool = False
    batch_size: int = 32
    threads: int | None = None
    fp16: bool = True
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name, value in (("--batch-size", self.batch_size), ("--threads", self.threads), ("--limit", self.limit)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is wrong", found=value, expected="a number of at least 1")
        if self.seed < 0:
            raise UsageError("--seed is negative", found=self.seed, expected="0 or more")


def attribute_engine(bundle: Bundle, options: AttributeOptions, folder: Path) -> dict[str, Any]:
    """Measure every stage of an engine, write the record into ``folder`` and return it.

    Raises:
        UsageError: The engine or the data set is unknown, or the engine is the reference itself.
        MissingRuntimeError: A runtime, device or library is not here.
        DataError: The data is unusable, or was used for calibration.
        ExportError: A stage's graph cannot be made.
        EngineError: A stage gives NaN or infinity.
        RefusedError: A file is not what the manifest says.
    """
    require_provider(CPU)
    no_torch = _why_no_torch(bundle)
    plan_stages(bundle, options.engine, no_torch=no_torch)
    usable_engines(bundle, (options.engine,))
    (images,) = load_sets(bundle, (options.data,), (), limit=options.limit, seed=options.seed)[0].values()
    altered = getattr(images.source, "change", None) is not None
    plan = plan_stages(bundle, options.engine, no_torch=no_torch, altered=altered, fp16=options.fp16)
    for key, why in plan.left_out.items():
        note(f"leaving out the stage {key}: {why}")
    work = plan_work(options.threads or usable_cores(), options.batch_size)
    texts = prompts(images.source.classnames, images.source.templates)
    tokens = tokenise(bundle, {images.source.id: texts})[images.source.id]
    preprocess = Preprocess.from_file(bundle.file("preprocess.json"))
    inputs = Inputs(images, tokens, preprocess, bundle.manifest.model.embed_dim)
    embeddings = embed_stages(bundle, plan, inputs, work, folder, resume=options.resume)
    found = _record(bundle, plan, options, images, embeddings)
    write_json(folder / "attribution.json", found)
    write_text(folder / "attribution.md", markdown(found))
    write_text(folder / "attribution.html", page(found))
    return found


def _why_no_torch(bundle: Bundle) -> str:
    if TORCH not in bundle.manifest.engines:
        return f"the bundle has no {TORCH}"
    try:
        usable_engines(bundle, (TORCH,))
    except MissingRuntimeError as error:
        return str(error)
    return ""


def _record(bundle: Bundle, plan: Plan, options: AttributeOptions, images: EvalSet, embeddings: Embeddings) -> dict[str, Any]:
    readable = embeddings.readable
    conditions = Conditions(bundle.manifest.model, images.index.labels[readable], options.resamples, options.seed)
    stages = _measure(plan, embeddings, conditions)
    errors = {stage["key"]: stage["to_first"]["squared_error"]["both"] if stage["to_first"] else 0.0 for stage in stages}
    return {
        "schema": SCHEMA,
        "engine": plan.engine_id,
        "provenance": {
            **describe_run(bundle),
            "seed": options.seed,
            "resamples": options.resamples,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "left_out": dict(plan.left_out),
        },
        "description": describe_engine(bundle, plan.engine_id),
        "graphs": {name: bundle.manifest.files[name].sha256 for name in plan.graphs.values()},
        "dataset": _dataset(images, embeddings),
        "pixels": _pixels(embeddings),
        "stages": stages,
        "loss": shares({stage.key: stage for stage in plan.stages}, errors),
    }


def _measure(plan: Plan, embeddings: Embeddings, conditions: Conditions) -> list[dict[str, Any]]:
    """Return each stage as JSON."""
    found: list[dict[str, Any]] = []
    seen: dict[str, Seen] = {}
    with bar("Comparing stages", len(plan.stages)) as advance:
        for stage in plan.stages:
            own = seen[stage.key] = see(stage, embeddings, conditions)
            step = difference(seen[stage.before], own, embeddings, conditions.labels) if stage.before else None
            whole = difference(seen[plan.stages[0].key], own, embeddings, conditions.labels) if stage.before else None
            said = {"key": stage.key, "title": stage.title, "changes": stage.changes, "before": stage.before or None}
            found.append({**said, "part": bool(stage.part and stage.before), **levels(own), "to_before": step, "to_first": whole})
            advance(1)
    return found


def _dataset(images: EvalSet, embeddings: Embeddings) -> dict[str, Any]:
    readable = embeddings.readable
    return {
        "id": images.source.id,
        "n": int(readable.sum()),
        "classes": len(images.source.classnames),
        "sha256": images.index.digest,
        "skipped": [images.index.ids[row] for row in np.flatnonzero(~readable)],
        "templates": list(images.source.templates),
    }


def _pixels(embeddings: Embeddings) -> dict[str, float] | None:
    rows = embeddings.pixel_rows()
    if rows is None:
        return None
    return {
        "max_abs": float(rows[:, 0].max()),
        "share_differing": float(rows[:, 1].mean(dtype=np.float64)),
        "images_differing": float((rows[:, 1] > 0).mean()),
    }
