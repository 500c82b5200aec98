"""The parts of a run, the most important first, with what each needs and about how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Interpreter = Literal["torch", "tensorrt"]
Kind = Literal["export", "build", "suite", "measure"]

SPEED_MODELS = ("ViT-B-32:random", "ViT-L-14:random")
PHOTO_MODELS = ("photo-base", "photo-over", "photo-under")
ID_SETS = ("tiny_imagenet", "cifar10", "imagenette")
OOD_SETS = ("dtd10", "pneumoniamnist")
BATCH_SIZES = (1, 8, 32, 128)
TORCH_ENGINES = ("torch-cuda-fp32", "torch-cuda-bf16-compiled")  # of this benchmark: the yardstick, not part of a bundle
ORT_ENGINES = ("ort-cuda-fp32", "ort-cuda-fp16")
PLANS = ("trt-fp32", "trt-fp16", "trt-int8")
FP8 = "trt-fp8"
REHEARSED_PLANS = ("trtrtx-fp32", "trtrtx-fp16", "trtrtx-int8")  # TensorRT-RTX builds without a GPU

# About how many seconds a part takes beside a server GPU with 16 cores; a guess until a run has been recorded.
_SCALE = {"ViT-B-32:random": 1.0, "ViT-L-14:random": 3.0}


@dataclass(frozen=True, slots=True)
class Part:
    """One step in a process of its own.

    Attributes:
        name: Unique; the key in the record.
        worker: ``module:function`` in this folder; it takes ``arguments`` and returns a JSON object.
        interpreter: Which Python runs it.
        estimate_s: About how long it takes.
        arguments: JSON values.
        kind: ``measure`` takes times, so nothing else runs; a ``build`` times kernels, so nothing else uses the GPU; exports and
            suites run beside their likes.
        needs: Parts that must have succeeded.
    """

    name: str
    worker: str
    interpreter: Interpreter
    estimate_s: float
    arguments: Mapping[str, Any]
    kind: Kind
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What a plan is made for.

    Attributes:
        work: Folder for bundles, plans and reports.
        split: Whether TensorRT lives in a Python of its own.
        fp8: Whether GPU and TensorRT know FP8.
        shared: Folder with ``models/`` and ``data/`` of the photographs; None where it is missing.
        seconds: Of one engine in one latency scenario.
        left_out: Engine to the reason why it cannot run here.
    """

    work: Path
    split: bool
    fp8: bool
    shared: Path | None
    seconds: float = 0.5
    left_out: Mapping[str, str] = field(default_factory=dict)

    def usable(self, engines: Sequence[str]) -> list[str]:
        """Return those engines of which no reason against them is known."""
        return [name for name in engines if name not in self.left_out]

    def plans(self) -> list[str]:
        """Return the TensorRT engines to build."""
        return self.usable([*PLANS, *([FP8] if self.fp8 else [])])


def whole_plan(setting: Setting) -> list[Part]:
    """Return every part of a run on a GPU, the most important first."""
    base, large = SPEED_MODELS
    photos = PHOTO_MODELS if setting.shared else ()
    exports = [_exported(setting, model) for model in (base, *photos, large)]
    parts = [*exports, *_built(setting, base), *_latency(setting, base), *_facts_of_plans(setting, base)]
    parts += [part for model in photos for part in _built(setting, model)] + [part for model in photos for part in _suite(setting, model)]
    parts += [*_built(setting, large), *_latency(setting, large), *_facts_of_plans(setting, large)]
    parts += [_throughput(setting, model) for model in SPEED_MODELS if setting.shared]
    return [*parts, *_other_attention(setting, base), *_latency(setting, base, again=True)]


def rehearsal(setting: Setting) -> list[Part]:
    """Return the parts that need no GPU, on the embedded model: graphs, plans of TensorRT-RTX, the suite with ONNX Runtime on the CPU."""
    model, engines = "demo:under", ["torch-fp32", "ort-fp32", *REHEARSED_PLANS]
    calib = "synthetic:scenes:calibration"
    suite = {"engines": ["ort-fp32"], "data": ["synthetic:scenes"], "ood": ["synthetic:scenes-far"], "limit": 64, "resamples": 100}
    export = _export(setting, model, engines, calib, 16)
    build = _build(setting, model, REHEARSED_PLANS, interpreter="torch")
    suite_part = Part(
        f"suite {model}",
        "suite:judge",
        "torch",
        20,
        {"bundle": str(_folder(setting, model) / "graphs"), "output": str(_folder(setting, model) / "report"), **suite},
        "suite",
        (export.name,),
    )
    return [export, build, suite_part]


def _folder(setting: Setting, model: str) -> Path:
    return setting.work / "bundles" / model.replace(":", "-").replace(" ", "-")


def _exported(setting: Setting, model: str) -> Part:
    name, calib, n = model, "synthetic:scenes:calibration", 16
    if model in PHOTO_MODELS:
        name, calib, n = f"local-dir:{setting.shared}/models/{model}", f"wds:{setting.shared}/data/imagenette:train", 512
    engines = ["torch-fp32", "ort-fp32", *setting.usable(ORT_ENGINES), *setting.plans()]
    return _export(setting, model, engines, calib, n, name=name)


def _built(setting: Setting, model: str) -> list[Part]:
    return [_build(setting, model, setting.plans())] if setting.plans() else []


def _export(  # noqa: PLR0913 - each is one choice of the caller
    setting: Setting, model: str, engines: list[str], calib: str, n: int, *, name: str = "", mha: str = "fp16"
) -> Part:
    arguments = {
        "model": name or model,
        "engines": engines,
        "calib": calib,
        "calib_n": n,
        "mha": mha,
        "output": str(_folder(setting, model) / "graphs"),
    }
    return Part(f"export {model}", "bundles:export", "torch", 40 * _SCALE.get(model, 0.6), arguments, "export")


def _build(setting: Setting, model: str, engines: Sequence[str], *, interpreter: Interpreter = "tensorrt") -> Part:
    folder = _folder(setting, model)
    arguments = {"bundle": str(folder / "graphs"), "output": str(folder / "built"), "engines": list(engines)}
    return Part(f"build {model}", "bundles:build", interpreter, 60 * _SCALE.get(model, 0.5), arguments, "build", (f"export {model}",))


def _latency(setting: Setting, model: str, *, again: bool = False) -> list[Part]:
    folder = _folder(setting, model)
    compiled = [str(folder / "graphs"), [*TORCH_ENGINES, *setting.usable(ORT_ENGINES)]]
    planned = [str(folder / "built"), setting.plans()]
    groups: dict[Interpreter, list[Any]] = {"torch": [compiled], "tensorrt": [planned]} if setting.split else {"torch": [compiled, planned]}
    parts = []
    for interpreter, group in groups.items():
        if not any(engines for _, engines in group):
            continue
        name = f"latency {model}" + (f" ({interpreter})" if setting.split else "") + (" again" if again else "")
        count = sum(len(engines) for _, engines in group)
        estimate = 15 + 2 * setting.seconds * count * len(BATCH_SIZES) + (45 * _SCALE[model] if interpreter == "torch" else 0)
        arguments = {**_common_latency(setting, name), "groups": group, "batch_sizes": list(BATCH_SIZES)}
        needs = (f"build {model}",) if interpreter == "tensorrt" else (f"export {model}",)
        parts.append(Part(name, "speed:latency", interpreter, estimate, arguments, "measure", needs))
    return parts


def _common_latency(setting: Setting, name: str) -> dict[str, Any]:
    samples = setting.work / "samples" / f"{name}.json"
    return {"seconds": setting.seconds, "samples": str(samples), "compiled": str(setting.work / "compiled")}


def _facts_of_plans(setting: Setting, model: str) -> list[Part]:
    if not setting.plans():
        return []
    common = {"bundle": str(_folder(setting, model) / "built"), "engines": setting.plans()}
    needs = (f"build {model}",)
    return [
        Part(f"layers {model}", "bundles:layers", "tensorrt", 10, common, "measure", needs),
        Part(f"bare loop {model}", "speed:bare_loop", "tensorrt", 25, {**common, "batch_sizes": [1, 32], "seconds": 1.0}, "measure", needs),
    ]


def _other_attention(setting: Setting, model: str) -> list[Part]:
    """Return the parts that measure INT8 with attention's products quantized too, beside the default that leaves them in FP16."""
    engines = [name for name in ("trt-fp16", "trt-int8") if name in setting.plans()]
    if len(engines) < 2:
        return []
    variant = f"{model} mha-int8"
    export = _export(setting, variant, ["torch-fp32", *engines], "synthetic:scenes:calibration", 16, name=model, mha="int8")
    parts = [export, _build(setting, variant, engines)]
    arguments = {
        **_common_latency(setting, variant),
        "groups": [[str(_folder(setting, variant) / "built"), engines]],
        "batch_sizes": [1, 32],
    }
    return [*parts, Part(f"latency {variant}", "speed:latency", "tensorrt", 20, arguments, "measure", (parts[1].name,))]


def _throughput(setting: Setting, model: str) -> Part:
    engines = [name for name in ("trt-int8", "trt-fp16") if name in setting.plans()] or ["ort-cuda-fp16"]
    planned = engines[0].startswith("trt-")
    arguments = {
        "bundle": str(_folder(setting, model) / ("built" if planned else "graphs")),
        "engines": engines,
        "data": _data(setting, ID_SETS),
        "batch_size": 32,
    }
    needs = (f"build {model}",) if planned else (f"export {model}",)
    return Part(f"throughput {model}", "speed:throughput", "tensorrt" if planned else "torch", 30, arguments, "measure", needs)


def _suite(setting: Setting, model: str) -> list[Part]:
    folder = _folder(setting, model)
    common = {"data": _data(setting, ID_SETS), "ood": _data(setting, OOD_SETS), "output": str(folder / "report")}
    compiled = {**common, "bundle": str(folder / "graphs"), "engines": setting.usable(ORT_ENGINES)}
    planned = {**common, "bundle": str(folder / "built"), "engines": setting.plans()}
    if not setting.plans():
        return [Part(f"suite {model}", "suite:judge", "torch", 60, compiled, "suite", (f"export {model}",))]
    if not setting.split:
        both = {**planned, "engines": [*compiled["engines"], *planned["engines"]]}
        return [Part(f"suite {model}", "suite:judge", "torch", 60, both, "suite", (f"build {model}",))]
    first = Part(f"suite {model} (torch)", "suite:judge", "torch", 60, compiled, "suite", (f"export {model}",))
    planned["after"] = str(setting.work / "results" / f"{first.name}.json")
    return [first, Part(f"suite {model} (tensorrt)", "suite:judge", "tensorrt", 45, planned, "suite", (f"build {model}", first.name))]


def _data(setting: Setting, names: Sequence[str]) -> list[str]:
    return [f"wds:{setting.shared}/data/{name}" for name in names]
