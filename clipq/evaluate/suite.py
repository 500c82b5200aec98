"""The suite: every engine embeds every image once, then all figures are computed from the stored embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipq.artifact import Bundle
from clipq.calib_data.corruptions.table import VERSION
from clipq.errors import UsageError
from clipq.evaluate.answers import probability_rule
from clipq.evaluate.arms import describe_arms, fit_scales, load_tuning_set, require_softmax
from clipq.evaluate.classifiers import Classifier, read_classifier, read_vectors
from clipq.evaluate.data_means import data_means, sets_to_average
from clipq.evaluate.datasets import EvalSet, load_sets
from clipq.evaluate.embed import plan_work
from clipq.evaluate.embeddings import Embedded, embed_everything
from clipq.evaluate.gates.presets import check_baseline, describe_gates, read_gates
from clipq.evaluate.latency import bench
from clipq.evaluate.neglabel import NegLabelOptions, NegLabelPlan
from clipq.evaluate.proof import prove
from clipq.evaluate.provenance import describe_engine, describe_run
from clipq.evaluate.report.write import SCHEMA, tell_missing_libraries, write_report
from clipq.evaluate.retrieval import evaluate_retrieval, load_caption_sets
from clipq.evaluate.robustness.block import Evaluated, robustness_parts
from clipq.evaluate.robustness.noise_options import NoiseOptions
from clipq.evaluate.robustness.noise_run import NoiseRun, measure_noise
from clipq.evaluate.robustness.pairs import Pairs, axis_of, canonical, check_groups, find_pairs
from clipq.evaluate.scoring import Scores, score
from clipq.evaluate.selection import choose_engines, left_out
from clipq.evaluate.spectral import diagnose
from clipq.evaluate.verdict import judge
from clipq.machine import usable_cores


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """One evaluation.

    Attributes:
        data: ID data sets by data id.
        ood: OOD data sets by data id.
        ood_near: OOD data sets that are near the ID data.
        ood_far: OOD data sets that are far from it.
        retrieval: Data sets of images with captions.
        engines: Engine ids; empty means every engine of the bundle whose runtime is installed.
        baseline: The engine every delta is taken against.
        limit: At most this many images of each data set.
        seed: Of the choice of images and of the resamples.
        resume: Go on with the embeddings of an interrupted run.
        batch_size: Images of one inference; dynamic quantization makes an embedding depend on its batch.
        threads: CPU threads; None means one per usable core.
        bench_seconds: Time per engine and latency scenario; 0 measures no latency.
        resamples: Bootstrap resamples.
        rules: Gates, one by one.
        presets: Gates by the name of several; without rules and presets the default ones.
        allow_fallback: Evaluate an engine that does not run in its precision too, and mark it.
        suite: What the provenance says of the suite that these options come from.
        neglabel: Also score by NegLabel, in this way.
        shift: Pairs of a known and a shifted data set, which join ``data``, beside those that the ids tell.
        spurious: Pairs of a common and a counter group, likewise.
        tune_scale: A labelled data set, apart from the others, on which a logit scale is fitted for an arm of every engine.
        noise: Also measure the errors on corrupted copies of the ID data sets, in this way.
        classifier: Classify the images of every ID data set by this classifier of the bundle; empty embeds the texts of each set.
    """

    data: tuple[str, ...]
    ood: tuple[str, ...] = ()
    ood_near: tuple[str, ...] = ()
    ood_far: tuple[str, ...] = ()
    retrieval: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    baseline: str = "torch-fp32"
    limit: int | None = None
    seed: int = 0
    resume: bool = False
    batch_size: int = 32
    threads: int | None = None
    bench_seconds: float = 2.0
    resamples: int = 2000
    rules: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    allow_fallback: bool = False
    suite: Mapping[str, Any] | None = None
    neglabel: NegLabelOptions | None = None
    shift: tuple[tuple[str, str], ...] = ()
    spurious: tuple[tuple[str, str], ...] = ()
    tune_scale: str | None = None
    noise: NoiseOptions | None = None
    classifier: str = ""

    def __post_init__(self) -> None:
        least: dict[str, tuple[float | None, float]] = {
            "--batch-size": (self.batch_size, 1),
            "--threads": (self.threads, 1),
            "--bench-seconds": (self.bench_seconds, 0),
            "--limit": (self.limit, 1),
            "--resamples": (self.resamples, 1),
        }
        for name, (value, smallest) in least.items():
            if value is not None and not smallest <= value < math.inf:
                raise UsageError(f"{name} is wrong", found=value, expected=f"a number of at least {smallest}")
        if self.neglabel and not (self.ood or self.ood_near or self.ood_far):
            raise UsageError("--neglabel scores OOD data, and there is none", fix="Name some with --ood.")
        if self.neglabel and self.classifier:
            raise UsageError("--neglabel embeds words, and --classifier embeds no texts", fix="Drop one of them.")


def evaluate_bundle(bundle: Bundle, options: EvalOptions, folder: Path) -> dict[str, Any]:
    """Evaluate the engines of a bundle, write the report into ``folder`` and return it.

    Raises:
        UsageError: An engine, data set, rule or preset is unknown, or a preset is not about this baseline.
        MissingRuntimeError: A runtime that was asked for is not installed.
        DataError: The data is unusable, or was used for calibration.
        EngineError: An engine failed, or does not run in the precision it is named after.
        RefusedError: A file is not what the manifest says.
    """
    tell_missing_libraries()
    gates = read_gates(options.rules, options.presets)
    neglabel = NegLabelPlan.of(options.neglabel) if options.neglabel else None
    engine_ids = choose_engines(bundle, options.engines, options.baseline)
    check_baseline(options.presets, {options.baseline: bundle.manifest.engines[options.baseline].precision})
    threads = options.threads or usable_cores()
    chosen = read_classifier(bundle, options.classifier) if options.classifier else None
    given = {name: read_vectors(bundle, chosen, name) for name in engine_ids} if chosen else None
    inside, outside, pairs = _load(bundle, options, chosen)
    tuning_set = _tuning_set(bundle, options, [*inside.values(), *outside.values()])
    captioned = load_caption_sets(bundle, options.retrieval, limit=options.limit, seed=options.seed)
    layers = prove(bundle, engine_ids, threads=threads, allow_fallback=options.allow_fallback)
    work = plan_work(threads, options.batch_size)
    root = folder / "embeddings"
    embedded = embed_everything(bundle, engine_ids, (inside, outside), work, root, resume=options.resume, neglabel=neglabel, given=given)
    resampling: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    found = evaluate_retrieval(bundle, engine_ids, captioned, work, root, resume=options.resume, **resampling)
    tuning = embed_everything(bundle, engine_ids, (tuning_set, {}), work, root, resume=options.resume) if tuning_set else None
    scales = fit_scales(tuning, bundle.manifest.model) if tuning else {}
    scores = score(embedded, bundle.manifest.model, scales=scales, **resampling)
    engines = {engine_id: _engine(bundle, engine_id, layers) for engine_id in engine_ids}
    run = NoiseRun(bundle, options.noise, work, root, options.resume, **resampling) if options.noise else None
    noise = measure_noise(run, embedded, {second for _, second in (*pairs.noise, *pairs.shift, *pairs.spurious)}) if run else {}
    measured = bench(bundle, engine_ids, threads=threads, seconds=options.bench_seconds) if options.bench_seconds else {}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "baseline": options.baseline,
        "provenance": {
            **describe_run(bundle),
            **_conditions(bundle, options, threads),
            "gates": describe_gates(gates),
            **({"classifier": chosen.describe()} if chosen else {}),
            **_scored_with(embedded),
        },
        "engines": engines | (describe_arms(engines, scales, tuning) if tuning else {}),
        "datasets": embedded.describe_sets() | found.datasets,
        "results": scores.results,
        "ood": scores.ood,
        "ood_means": scores.ood_means,
        "thresholds": scores.thresholds,
        "paired": scores.paired,
        **({"retrieval": found.results} if captioned else {}),
        **_means(scores, inside, pairs, options.seed),
        "robustness": robustness_parts(Evaluated(scores, inside, options.baseline, options.seed), pairs, noise),
        "spectral": diagnose(embedded),
        "bench": measured,
    }
    report["gates"], report["verdict"] = judge(report, options.rules, options.presets)
    write_report(report, scores.samples, folder)
    return report


def _load(bundle: Bundle, options: EvalOptions, chosen: Classifier | None) -> tuple[dict[str, EvalSet], dict[str, EvalSet], Pairs]:
    """Return the ID and the OOD data sets, and which of the former belong together."""
    images: dict[str, Any] = {"limit": options.limit, "seed": options.seed, "near": options.ood_near, "far": options.ood_far}
    asked = {"shift": canonical(options.shift), "spurious": canonical(options.spurious)}
    named = [data_id for pairs in asked.values() for pair in pairs for data_id in pair]
    classes = chosen.classes if chosen else None
    inside, outside = load_sets(bundle, [*options.data, *named], options.ood, **images, classes=classes)
    pairs = find_pairs(inside, **asked)
    check_groups({data: images.source.classnames for data, images in inside.items()}, pairs.spurious)
    return inside, outside, pairs


def _means(scores: Scores, inside: Mapping[str, EvalSet], pairs: Pairs, seed: int) -> dict[str, Any]:
    """Return the means over the plain data sets, where there are several."""
    altered = {second for axis in (pairs.noise, pairs.shift, pairs.spurious) for _, second in axis}
    plain = sets_to_average(list(inside), altered | {data for data in inside if axis_of(data)})
    return {"means": data_means(scores.resampled, plain, seed=seed)} if plain else {}


def _tuning_set(bundle: Bundle, options: EvalOptions, judged: list[EvalSet]) -> dict[str, EvalSet]:
    if options.tune_scale is None:
        return {}
    require_softmax(bundle.manifest.model)
    return load_tuning_set(bundle, options.tune_scale, judged, limit=options.limit, seed=options.seed)


def _engine(bundle: Bundle, engine_id: str, layers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {**describe_engine(bundle, engine_id), **({"layers": layers[engine_id]} if engine_id in layers else {})}


def _scored_with(embedded: Embedded) -> dict[str, Any]:
    """Return what the provenance says of scores that need more than image and class embeddings."""
    return {
        **({"neglabel": embedded.negatives.describe()} if embedded.negatives else {}),
        **({"patch_tokens": embedded.patches.describe()} if embedded.patches else {}),
    }


def _conditions(bundle: Bundle, options: EvalOptions, threads: int) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "resamples": options.resamples,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "threads": threads,
        "left_out": left_out(bundle, options.engines),
        "probabilities": probability_rule(bundle.manifest.model),
        **({"suite": dict(options.suite)} if options.suite else {}),
        **({"corruptions": {"version": VERSION, **asdict(options.noise)}} if options.noise else {}),
    }
