"""The stages between FP32 PyTorch and a deployed engine: which of them an engine has, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipq.artifact import Bundle
from clipq.engines.base import Tower
from clipq.engines.onnxruntime.providers import CPU
from clipq.engines.table import ENGINES, checked_entry
from clipq.errors import RefusedError, UsageError
from clipq.methods import method_of

# What computes a tower.
Form = Literal["reference", "torch", "fp32", "half", "weights", "activations", "quantized", "engine", "default"]
HalfName = Literal["fp16", "bf16"]
QUANTIZED = ("int8", "fp8")
TOWERS: tuple[Tower, ...] = ("image", "text")
PLAIN: Mapping[Tower, str] = {"image": "towers/image.fp32.onnx", "text": "towers/text.fp32.onnx"}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        key: Its name.
        title: The same for a reader.
        changes: What differs from the stage before.
        before: Key of that stage; empty for the first.
        image: What computes the image tower.
        text: What computes the text tower.
        part: Whether its step is one of the parts of the whole loss; the others are there to compare with.
    """

    key: str
    title: str
    changes: str
    before: str
    image: Form
    text: Form
    part: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages of one engine.

    Attributes:
        engine_id: The engine.
        graphs: Tower to the portable graph that runs, or that its plan is built from.
        unquantized: Tower to the FP32 graph whose weights were quantized: PyTorch's, or an equal one in other numbers.
        stages: In order; the first is what all are compared with, the last part is the engine as it runs.
        left_out: Key of a stage that other engines have -> why this one has not.
        half: The half type of the stage in half precision.
        rounds: Whether the engine computes in it where it is not quantized, so that the quantized graph is rounded too.
    """

    engine_id: str
    graphs: Mapping[Tower, str]
    unquantized: Mapping[Tower, str]
    stages: tuple[Stage, ...]
    left_out: Mapping[str, str]
    half: HalfName
    rounds: bool

    def forms(self, tower: Tower) -> list[Form]:
        """Return what computes this tower in any stage, each once."""
        return list(dict.fromkeys(stage.image if tower == "image" else stage.text for stage in self.stages))


def plan_stages(bundle: Bundle, engine_id: str, *, no_torch: str = "", altered: bool = False, fp16: bool = True) -> Plan:
    """Return the stages that apply to an engine.

    Args:
        bundle: Where it is.
        engine_id: The engine.
        no_torch: Why FP32 PyTorch cannot run here; empty where it can.
        altered: The data set alters our pixels, which open_clip's own preprocessing does not make.
        fp16: Measure FP16 too where the engine does not compute in it.

    Raises:
        UsageError: The id is unknown, or it is the reference itself.
        RefusedError: The bundle names no graph for a tower of the engine.
    """
    kind, graphs = ENGINES.get(engine_id), _graphs(bundle, engine_id)
    if kind is None or kind.runtime == "torch":
        raise UsageError(
            f"{engine_id} is what engines are compared with: there is nothing to attribute", fix="Name an exported engine with --engine."
        )
    changed = [tower for tower in TOWERS if graphs[tower] != PLAIN[tower]]
    whole = _why_whole(engine_id)
    quantized = changed if kind.precision in QUANTIZED and not whole else []
    on_path = kind.graph.endswith(("fp16", "bf16"))
    stages, left_out = _first(no_torch, altered=altered)
    stages.append(_stage(("export", "FP32 graph"), "PyTorch becomes ONNX Runtime on the exported graph", stages, "fp32", "fp32"))
    half: HalfName = "bf16" if kind.graph == "bf16" else "fp16"
    if changed and (on_path or fp16):
        stages.append(_half(half, changed, part=on_path))
    else:
        left_out["half"] = "not asked for" if changed else f"every tower of {engine_id} is FP32"
    if quantized:
        stages += _quantized(quantized)
    else:
        left_out["quantization"] = whole or f"nothing of {engine_id} is quantized"
    before = stages if quantized else [stage for stage in stages if stage.part]
    integers = bool(changed) and kind.precision in QUANTIZED and (kind.runtime, kind.provider) == ("onnxruntime", CPU)
    change = f"the deployed file on its runtime, {'integer kernels with exact products' if integers else 'as clipq opens it'}"
    stages.append(_stage(("engine", "as it runs"), change, before, "engine", "engine"))
    if integers:
        stages.append(_default(changed))
    sources = {tower: _unquantized(bundle, tower, name) for tower, name in graphs.items()}
    return Plan(engine_id, graphs, sources, tuple(stages), left_out, half, on_path)


def _why_whole(engine_id: str) -> str:
    """Return why the step from the FP32 graph to an engine is one, or nothing."""
    named = method_of(engine_id)
    if named and named[0].family == "qat":
        return f"{engine_id} was trained: the FP32 graph does not have its weights, so the step to the engine is one"
    if named and named[0].family == "weight-only":
        return f"only weights of {engine_id} are quantized, so the step to the engine is theirs"
    return ""


def _unquantized(bundle: Bundle, tower: Tower, name: str) -> str:
    """Return the FP32 graph that a tower's graph was made from, by the hashes of the manifest; PyTorch's where they name none."""
    files = bundle.manifest.files
    names = {entry.sha256: other for other, entry in files.items()}
    while name in files and ".fp32" not in name:
        name = names.get(files[name].parent, PLAIN[tower])
    return name or PLAIN[tower]


def _graphs(bundle: Bundle, engine_id: str) -> dict[Tower, str]:
    entry = checked_entry(bundle, engine_id)
    names = {**entry.towers, **entry.graphs}
    if entry.runtime != "torch" and (missing := [tower for tower in TOWERS if tower not in names]):
        raise RefusedError(f"{bundle.folder} names no graph for the {missing[0]} tower of {engine_id}", fix="Export the bundle again.")
    return {tower: names.get(tower, "") for tower in TOWERS}


def _first(no_torch: str, *, altered: bool) -> tuple[list[Stage], dict[str, str]]:
    if no_torch:
        return [], {"reference": no_torch, "preprocess": no_torch}
    if altered:
        own = Stage("preprocess", "FP32 PyTorch", "our preprocessing with the data set's alteration, FP32 PyTorch", "", "torch", "torch")
        return [own], {"reference": "the data set alters our pixels; open_clip's own are not altered"}
    first = Stage("reference", "FP32 PyTorch", "open_clip's own preprocessing and FP32 PyTorch", "", "reference", "torch")
    return [first, _stage(("preprocess", "preprocessing"), "pixels are ours instead of torchvision's", [first], "torch", "torch")], {}


def _stage(name: tuple[str, str], changes: str, before: list[Stage], image: Form, text: Form) -> Stage:
    return Stage(*name, changes, before[-1].key if before else "", image, text)


def _half(half: HalfName, changed: list[Tower], *, part: bool) -> Stage:
    name = half.upper()
    changes = f"every result is rounded to {name}, nothing is quantized"
    forms: list[Form] = ["half" if tower in changed else "fp32" for tower in TOWERS]
    return Stage("half", f"{name} graph", changes, "export", forms[0], forms[1], part)


def _default(quantized: list[Tower]) -> Stage:
    changes = "the same file opened without clipq, whose integer kernels saturate at 16 bits on x86 processors without VNNI"
    forms: list[Form] = ["default" if tower in quantized else "engine" for tower in TOWERS]
    return Stage("default", "ONNX Runtime's defaults", changes, "engine", forms[0], forms[1], part=False)


def _quantized(towers: list[Tower]) -> list[Stage]:
    stages = []
    if "image" in towers:
        stages += [
            Stage("weights", "weights alone", "weights are quantized, activations are not", "export", "weights", "fp32"),
            Stage("activations", "activations alone", "activations are quantized, weights are not", "export", "activations", "fp32"),
        ]
    if "text" in towers:
        stages.append(Stage("text", "text tower alone", "the text tower as it runs, the image tower in FP32", "export", "fp32", "engine"))
    image: Form = "quantized" if "image" in towers else "fp32"
    change = "all that is quantized together, products of the image tower simulated in FP32"
    return [*stages, Stage("quantized", "quantized graph", change, "export", image, "engine", part=False)]
