"""One export from start to end: a checkpoint becomes a bundle, stage by stage, the manifest last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipq.artifact import MANIFEST, Bundle, EngineEntry, Manifest, ModelEntry, write_manifest
from clipq.calib_data.sampling import TRAINING_LIST
from clipq.calib_data.table import open_source
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.base import Tower
from clipq.engines.golden import PICTURE_TENSORS, PICTURES, TENSORS, Golden, read_golden
from clipq.engines.table import ENGINES
from clipq.engines.tensorrt.build import BuildOptions
from clipq.engines.torch.checkpoint import RANDOM, Checkpoint, load_checkpoint
from clipq.engines.torch.model_id import DEMO_MODELS, canonical_model_id
from clipq.engines.torch.origin import model_origin
from clipq.engines.torch.patches import PatchTower, require_patches
from clipq.errors import UsageError, unknown_name
from clipq.export.calibration import Calibration
from clipq.export.engines import TOWERS, EngineBuilder
from clipq.export.golden import make_golden, write_golden
from clipq.export.graphs import GraphMaker, graph_name, needs_images
from clipq.export.keep import ChooseKept, KeepRequest, check_asked, run_search
from clipq.export.onnx import export_tower
from clipq.export.parity import check_parity
from clipq.export.pictures import PICTURE_NAMES, write_pictures
from clipq.export.plans import PlanMaker, require_builder, target_device
from clipq.export.qat.asked import check_training, is_trained, trained_methods
from clipq.export.qat.pairs import TrainingData
from clipq.export.stages import Facts, Stages, refuse_foreign
from clipq.export.tokenizer import export_tokenizer
from clipq.files import locked, sha256_json, write_json
from clipq.machine import describe_code, describe_machine, library_versions
from clipq.progress import note
from clipq.recipe import Recipe

BASELINE = "torch-fp32"
DEMO_CALIBRATION = "synthetic:scenes:calibration"


def export_bundle(recipe: Recipe, folder: Path, *, resume: bool = False, choose_kept: ChooseKept | None = None) -> Bundle:
    """Export a model into a folder and return the finished bundle.

    Args:
        recipe: What to make; ``complete`` fills in what it leaves open.
        folder: A new or empty folder.
        resume: Continue what a killed run with the same recipe left; of a finished bundle only the hashes are checked.
        choose_kept: The search for sensitive blocks, for a recipe that asks for one.

    Raises:
        UsageError: A name is unknown, calibration data is missing or cannot answer, the folder holds something else, or the model has no
            patch tokens.
        MissingRuntimeError: Plans are asked for and cannot be built here.
        DataError: The calibration data is unusable.
        ExportError: A tower does not match PyTorch, or the model cannot be exported.
        BusyError: Another run holds the folder.
        RefusedError: A finished bundle's file has another hash.
        ClipqError: The disk is full.
    """
    recipe = complete(recipe)
    _refuse_folder(folder, recipe, resume=resume)
    _require_builders(recipe)
    source = open_source(recipe.calib) if recipe.calib else None
    check_asked(recipe, source)
    if choose_kept is None and (recipe.sensitivity or recipe.max_drop):
        raise UsageError("the recipe asks for a search that was not handed in", fix="Pass clipq.sensitivity.search.choose_kept.")
    checkpoint = load_checkpoint(recipe.model)
    if recipe.patch_tokens:
        require_patches(checkpoint.model, recipe.model)
    with locked(folder):
        _refuse_folder(folder, recipe, resume=resume)
        if (folder / MANIFEST).exists():
            return _verified(folder, checkpoint)
        device = None if recipe.graphs_only else target_device(recipe.engines)
        key = {"recipe": recipe.sha256(), "model": checkpoint.state_sha256, "versions": library_versions(), "device": device}
        stages = Stages.open(folder, key, resume=resume)
        calibration = Calibration(source, recipe, folder, checkpoint.preprocess) if source else None
        write_manifest(folder, _make_all(recipe, checkpoint, stages, calibration, choose_kept))
        stages.close()
        return Bundle.open(folder)


def complete(recipe: Recipe) -> Recipe:
    """Return the recipe with a canonical model id, FP32 PyTorch among its engines, and calibration data exactly where it is needed.

    Raises:
        UsageError: A name is unknown, or static quantization has no calibration data or nothing to do.
    """
    for engine_id in recipe.engines:
        if engine_id not in ENGINES:
            raise unknown_name("engine", engine_id, ENGINES)
    engines = (BASELINE, *(engine_id for engine_id in dict.fromkeys(recipe.engines) if engine_id != BASELINE))
    model = canonical_model_id(recipe.model)
    check_training(recipe)
    return replace(recipe, model=model, engines=engines, calib=_calibration_id(recipe, model, engines))


def _calibration_id(recipe: Recipe, model: str, engines: tuple[str, ...]) -> str:
    """Return the data id of the calibration images, empty where no engine needs any."""
    static = [engine_id for engine_id in engines if needs_images(ENGINES[engine_id].graph)]
    if not static:
        if recipe.sensitivity or recipe.max_drop:
            raise UsageError("--sensitivity and --max-drop are about static quantization", fix="Add ort-int8-static to --engines.")
        return ""
    if recipe.qat_data and all(is_trained(ENGINES[engine_id].graph.removesuffix("-fp16")) for engine_id in static):
        return recipe.calib
    if recipe.calib or model not in DEMO_MODELS:
        if not recipe.calib:
            raise UsageError(f"{static[0]} needs calibration images", fix="Give some with --calib, e.g. --calib imagefolder:PATH.")
        return recipe.calib
    return DEMO_CALIBRATION


def _require_builders(recipe: Recipe) -> None:
    """Before hours of work: can the plans be built here?"""
    if recipe.graphs_only:
        return
    for engine_id in recipe.engines:
        if ENGINES[engine_id].planned:
            require_builder(
                engine_id, build_options(recipe), fix="Or add --graphs-only here, and build on the target with clipq-export --rebuild."
            )


def _refuse_folder(folder: Path, recipe: Recipe, *, resume: bool) -> None:
    """Refuse a folder that holds anything but nothing, our own unfinished export, or our own finished bundle."""
    if not (folder / MANIFEST).exists():
        refuse_foreign(folder, resume=resume)
        return
    found = {**Recipe(model="").to_json(), **Bundle.open(folder).manifest.recipe}  # what an older clipq did not know is as it was
    asked = recipe.to_json()
    different = [name for name, value in asked.items() if _plain(found[name]) != _plain(value)]
    if different:
        raise UsageError(
            f"{folder} holds a finished bundle of another recipe",
            found=", ".join(f"{name} {found[name]}" for name in different),
            expected=", ".join(f"{name} {asked[name]}" for name in different),
            fix="Choose another folder with -o.",
        )
    if not resume:
        raise UsageError(f"{folder} already holds this bundle", fix="Check it with --resume, or choose another folder with -o.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _verified(folder: Path, checkpoint: Checkpoint) -> Bundle:
    bundle = Bundle.open(folder)
    if bundle.manifest.model.state_sha256 != checkpoint.state_sha256:
        raise UsageError(
            f"{folder} was made from other weights of {checkpoint.model_id}", fix="Export the new weights into another folder with -o."
        )
    bundle.verify()
    note(f"{folder} is already finished and whole")
    return bundle


def _make_all(
    recipe: Recipe, checkpoint: Checkpoint, stages: Stages, calibration: Calibration | None, choose_kept: ChooseKept | None
) -> Manifest:
    folder = stages.folder
    training = TrainingData(recipe, folder, checkpoint.preprocess) if trained_methods(recipe.engines) else None
    _make_description(folder, checkpoint, stages, calibration)
    patches = PatchTower(checkpoint.model, recipe.model) if recipe.patch_tokens else None
    golden = _make_golden(folder, checkpoint, stages, patches)
    parity: dict[str, Facts] = {tower: _make_tower(checkpoint, stages, golden, tower, patches) for tower in TOWERS}
    images = _make_calibration_list(calibration, stages)
    graphs = GraphMaker(recipe, checkpoint, folder, stages, golden, calibration, str(images.get("digest", "")))
    graphs.training, graphs.training_digest = training, _make_training_list(training, stages)
    if choose_kept is not None and calibration is not None:
        graphs.keep = _choose(choose_kept, graphs, calibration, checkpoint)
    plans = None if recipe.graphs_only else PlanMaker(folder, stages, build_options(recipe))
    builder = EngineBuilder(recipe, folder, stages, graphs, plans)
    engines = {engine_id: builder.build(engine_id) for engine_id in recipe.engines}
    if training:
        training.clear()
    said = {"parity": parity, **({"patch_grid": list(patches.grid)} if patches else {})}
    return replace(_manifest(recipe, checkpoint, stages, engines, said), provenance=_provenance(checkpoint, images))


def _choose(choose_kept: ChooseKept, graphs: GraphMaker, calibration: Calibration, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return tower -> the nodes that the search keeps unquantized."""
    request = KeepRequest(
        recipe=graphs.recipe,
        folder=graphs.folder,
        graphs={tower: graphs.folder / graph_name(tower, "fp32") for tower in TOWERS},
        observed=graphs.observed,
        calibration=calibration,
        preprocess=checkpoint.preprocess,
        model=_model(checkpoint),
        tokenizer=Tokenizer.from_files(graphs.folder / "tokenizer"),
    )
    towers = {tower: graphs.stages.files[graph_name(tower, "fp32")].sha256 for tower in TOWERS}
    return run_search(graphs.stages, sha256_json({**towers, "images": graphs.calibration_digest}), request, choose_kept).nodes


def _make_description(folder: Path, checkpoint: Checkpoint, stages: Stages, calibration: Calibration | None) -> None:
    def preprocess() -> Facts:
        write_json(folder / "preprocess.json", checkpoint.preprocess.to_json())
        return {}

    classnames = calibration.source.classnames if calibration else ()
    names = ["tokenizer/tokenizer.json", "tokenizer/config.json"]
    stages.run("preprocessing", ["preprocess.json"], checkpoint.state_sha256, preprocess)
    stages.run("tokenizer", names, checkpoint.state_sha256, lambda: export_tokenizer(checkpoint, folder / "tokenizer", classnames))


def _make_golden(folder: Path, checkpoint: Checkpoint, stages: Stages, patches: PatchTower | None) -> Golden:
    def make() -> Facts:
        write_golden(folder / TENSORS, make_golden(checkpoint, patches))
        return {}

    def make_pictures() -> Facts:
        write_pictures(folder, checkpoint)
        return {}

    stages.run("golden tensors", [TENSORS], checkpoint.state_sha256, make)
    stages.run("golden pictures", [*PICTURE_NAMES, PICTURES, PICTURE_TENSORS], checkpoint.state_sha256, make_pictures)
    return read_golden(folder / TENSORS)


def _make_tower(checkpoint: Checkpoint, stages: Stages, golden: Golden, tower: Tower, patches: PatchTower | None) -> Facts:
    name = graph_name(tower, "fp32")
    path = stages.folder / name

    def make() -> Facts:
        export_tower(checkpoint, tower, path, patches if tower == "image" else None)
        return check_parity(path, golden.inputs(tower), golden.outputs(tower), golden.patch_tokens(tower))

    return stages.run(name, [name], checkpoint.state_sha256, make)


def build_options(recipe: Recipe) -> BuildOptions:
    """Return how the recipe wants its plans built."""
    return BuildOptions(batch=recipe.batch, compatibility=recipe.compatibility, compute_capabilities=recipe.compute_capabilities)


def _make_calibration_list(calibration: Calibration | None, stages: Stages) -> Facts:
    if calibration is None:
        return {}
    return stages.run("calibration list", ["calibration.csv"], "", calibration.write_list)


def _provenance(checkpoint: Checkpoint, images: Facts) -> dict[str, Any]:
    """Return where model, data and code came from; no time, so that the same export has the same manifest."""
    return {
        "model": model_origin(checkpoint.model_id),
        "data": {"calibration": dict(images)} if images else {},
        "code": describe_code(),
    }


def _make_training_list(training: TrainingData | None, stages: Stages) -> str:
    if training is None:
        return ""
    facts = stages.run("training list", [TRAINING_LIST], "", training.write_list)
    return str(facts["digest"])


def _manifest(
    recipe: Recipe, checkpoint: Checkpoint, stages: Stages, engines: Mapping[str, EngineEntry], found: Mapping[str, Any]
) -> Manifest:
    said: dict[str, Any] = {**recipe.to_json(), **found}
    if checkpoint.model_id.endswith(f":{RANDOM}"):
        said["warning"] = "RANDOM WEIGHTS: this model was never trained; only its speed and size mean anything"
    return Manifest(_model(checkpoint), stages.files, engines, said, recipe.sha256(), library_versions(), describe_machine())


def _model(checkpoint: Checkpoint) -> ModelEntry:
    return ModelEntry(
        id=checkpoint.model_id,
        state_sha256=checkpoint.state_sha256,
        embed_dim=checkpoint.embed_dim,
        logit_scale=checkpoint.logit_scale,
        logit_bias=checkpoint.logit_bias,
        context_length=checkpoint.context_length,
    )
