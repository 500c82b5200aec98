"""What an export asks of a search for sensitive blocks, and what it gets: the nodes that stay unquantized, each with its reason.

The search itself measures answers and so needs ``evaluate``, which ``export`` may not import: the command hands it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipq.artifact import ModelEntry
from clipq.calib_data.preprocess import Preprocess
from clipq.calib_data.sampling import OOD_LIST
from clipq.calib_data.source import Source
from clipq.calib_data.tokenizer import Tokenizer
from clipq.engines.base import Tower
from clipq.engines.table import ENGINES
from clipq.errors import UsageError, unknown_name
from clipq.export.calibration import Calibration
from clipq.export.quantize.observe import Observed
from clipq.export.stages import Stages
from clipq.files import write_json
from clipq.recipe import Recipe

SENSITIVITY = "sensitivity.json"
MEASURED = ("int8", "int8-fp16")  # the graphs that a search speaks of

# Metrics of --max-drop and what the calibration data must have: images, class names, a label for every image, OOD images beside it.
NEEDS = {
    "cosine": "images",
    "cosine_centred": "images",
    "disagreement": "classes",
    "flips": "labels",
    "acc1": "labels",
    "ece15": "labels",
    "fpr95": "ood",
}


@dataclass(frozen=True, slots=True)
class Bound:
    """``METRIC=VALUE``: by how much a metric may worsen, in its own unit (a fraction).

    Attributes:
        metric: A key of ``NEEDS``.
        value: At least 0; a worsening equal to it still holds.
    """

    metric: str
    value: float

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        return f"{self.metric}={self.value:g}"


@dataclass(frozen=True, slots=True)
class KeepRequest:
    """Everything a search may use.

    Attributes:
        recipe: What was asked: towers, method, attention, bounds, OOD images, seed.
        folder: The bundle in the making; lists and scratch files go there.
        graphs: Tower to its FP32 graph, both towers.
        observed: Tower to what was observed of its activations, for each quantized tower.
        calibration: The calibration images.
        preprocess: How images become pixels.
        model: Logit scale and bias.
        tokenizer: Texts to tokens.
    """

    recipe: Recipe
    folder: Path
    graphs: Mapping[Tower, Path]
    observed: Callable[[Tower], Observed]
    calibration: Calibration
    preprocess: Preprocess
    model: ModelEntry
    tokenizer: Tokenizer


@dataclass(frozen=True, slots=True)
class Kept:
    """The answer.

    Attributes:
        nodes: Tower to the nodes that stay unquantized, each with its reason.
        facts: JSON: what was measured, and why these nodes.
    """

    nodes: Mapping[str, Mapping[str, str]]
    facts: Mapping[str, Any]


ChooseKept = Callable[[KeepRequest], Kept]


def parse_bounds(texts: Iterable[str]) -> tuple[Bound, ...]:
    """Return the bounds of ``--max-drop``.

    Raises:
        UsageError: One is not ``METRIC=VALUE``, a metric is unknown or named twice, or a value is not a fraction.

    >>> parse_bounds(["acc1=0.01"])
    (Bound(metric='acc1', value=0.01),)
    """
    bounds = tuple(_parse_bound(text) for text in texts)
    names = [bound.metric for bound in bounds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--max-drop names {twice[0]} twice", fix="Name each metric once.")
    return bounds


def _parse_bound(text: str) -> Bound:
    metric, sign, number = (part.strip() for part in text.partition("="))
    if not sign:
        raise UsageError(f"cannot read --max-drop {text!r}", expected="METRIC=VALUE, e.g. acc1=0.01")
    if metric not in NEEDS:
        raise unknown_name("metric of --max-drop", metric, NEEDS)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UsageError(
            f"--max-drop {metric} has no usable value", found=repr(number), expected="a fraction from 0 to below 1, e.g. 0.01 for one point"
        )
    return Bound(metric, value)


def check_asked(recipe: Recipe, source: Source | None) -> None:
    """Check, before any work, that the calibration data can answer what ``--sensitivity`` and ``--max-drop`` ask.

    Args:
        recipe: A complete recipe.
        source: The calibration images; None when no engine needs any.

    Raises:
        UsageError: A bound cannot be read or measured, nothing is quantized with calibrated ranges, or the OOD images are the
            calibration images or used by nothing.
    """
    bounds = parse_bounds(recipe.max_drop)
    if not (recipe.sensitivity or bounds):
        if recipe.calib_ood:
            raise UsageError("nothing uses the images of --calib-ood", fix="Add --sensitivity or --max-drop fpr95=VALUE.")
        return
    if source is None or not any(ENGINES[name].graph in MEASURED for name in recipe.engines):
        raise UsageError("--sensitivity and --max-drop measure static INT8, which no engine here has", fix="Add one, e.g. ort-int8-static.")
    if recipe.calib_ood == recipe.calib:
        raise UsageError(f"{recipe.calib} is named by --calib and by --calib-ood", fix="OOD images are others.")
    for bound in bounds:
        _check_need(bound, recipe, source)


def _check_need(bound: Bound, recipe: Recipe, source: Source) -> None:
    need, what = NEEDS[bound.metric], f"--max-drop {bound} cannot be measured"
    if need == "ood" and not recipe.calib_ood:
        raise UsageError(what, found="no OOD images", fix="Name some with --calib-ood DATA; not of those you evaluate on.")
    if need != "images" and not source.classnames:
        raise UsageError(what, found=f"no class names in {source.id}", fix="Bound cosine or cosine_centred, or calibrate on classes.")
    if need == "labels" and not has_labels(source):
        raise UsageError(what, found=f"images without a label in {source.id}", fix="Bound cosine, cosine_centred or disagreement.")


def has_labels(source: Source) -> bool:
    """Tell whether every image has a label that names one of the classes."""
    labels = source.labels
    return bool(len(source.classnames)) and bool(((labels >= 0) & (labels < len(source.classnames))).all())


def run_search(stages: Stages, parent: str, request: KeepRequest, choose_kept: ChooseKept) -> Kept:
    """Return what a search keeps, as a stage of the export: ``sensitivity.json`` and the list of the OOD images stand in the bundle.

    Args:
        stages: The export's record.
        parent: Hash of the FP32 graphs and the calibration images.
        request: What the search may use.
        choose_kept: The search.
    """

    def make() -> Mapping[str, Any]:
        kept = choose_kept(request)
        write_json(request.folder / SENSITIVITY, kept.facts)
        return {"nodes": {tower: dict(nodes) for tower, nodes in kept.nodes.items()}, "facts": kept.facts}

    said = stages.run("sensitivity", [SENSITIVITY, OOD_LIST], parent, make)
    return Kept(said["nodes"], said["facts"])
