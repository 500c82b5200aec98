"""One tower trained with quantization and written as a QDQ graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from clipq.engines.base import Tower
from clipq.engines.golden import Golden
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.errors import ExportError, MissingRuntimeError
from clipq.export.onnx import export_tower
from clipq.export.qat.lesson import Lesson
from clipq.export.qat.pairs import FOLDER, TrainingData
from clipq.export.qat.plan import PLANS
from clipq.export.qat.taught import Taught, compare, taught
from clipq.export.qat.train import Run, Trained
from clipq.export.qat.wrap import Wrapped, begin, unwrap, wrap
from clipq.export.quantize.graph import open_on_cpu, scratch_folder
from clipq.export.quantize.observe import prepare
from clipq.export.quantize.scheme import Scheme
from clipq.export.quantize.static import write_scheme
from clipq.export.transform.capture import padding_of_model
from clipq.export.transform.tower import copy_for
from clipq.files import sha256_json, write_text
from clipq.methods import Bits, Method
from clipq.recipe import Recipe

_FIRST = 1024  # pairs that the first ranges are taken from: the more, the fewer images have values beyond them
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Task:
    """One tower to train.

    Attributes:
        recipe: How.
        checkpoint: The model, or a form of it that is easier to quantize.
        original: The model as it was loaded, which teaches.
        tower: The tower.
        method: The method.
        bits: Of weights and activations.
        data: What it is trained on.
        digest: Which pairs these are.
        golden: Inputs on which PyTorch and the graph are compared too.
        keep: Nodes that stay FP32, each with its reason.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    original: Checkpoint
    tower: Tower
    method: Method
    bits: Bits
    data: TrainingData
    digest: str
    golden: Golden
    keep: Mapping[str, str]

    @property
    def name(self) -> str:
        """What tells it from the other tasks of an export."""
        return f"{self.tower}.{str(self.bits).lower()}-{self.method.name}"


def table_name(graph: str) -> str:
    """Return the name of the training table beside a graph.

    >>> table_name("towers/image.w8a8-lsq.onnx")
    'towers/image.w8a8-lsq.training.csv'
    """
    return graph.removesuffix(".onnx") + ".training.csv"


def write_trained(task: Task, folder: Path, target: Path) -> dict[str, Any]:
    """Train a tower and write its QDQ graph and, beside it, its training table; return facts.

    A run that was killed goes on from its last saved state and ends in the same bytes on the same machine.

    Args:
        task: What to train, and how.
        folder: The bundle to be; ``training`` in it holds the state.
        target: Where the graph goes.

    Raises:
        DataError: The pairs are unusable.
        ExportError: The tower has no blocks of CLIP's own, the loss is NaN before anything good, or the graph computes something else.
        MissingRuntimeError: CUDA is asked for and not here.
    """
    device = device_of(task.recipe.qat_device)
    plan = PLANS[task.method.name]
    wrapped = _wrapped(task, device)
    pairs = task.data.pairs(task.original, task.digest)
    prepare_inputs = task.data.normalised if task.tower == "image" else np.asarray
    lesson = Lesson(task.tower, pairs, prepare_inputs, task.original.logit_scale, device)
    path = folder / FOLDER / f"{task.name}.safetensors"
    run = Run(wrapped, lesson, plan, task.recipe, path, _key(task, device))
    padding = padding_of_model(task.original.model, task.tower)
    trained = run.train(lambda: begin(wrapped, _first_inputs(lesson), padding))
    wrapped.train(mode=False)
    golden = _outputs(wrapped, torch.from_numpy(task.golden.inputs(task.tower)).to(device))
    answers, known = np.concatenate([lesson.answers(wrapped.embed), golden]), taught(wrapped)
    offsets = unwrap(wrapped)
    said = _write_graph(task, wrapped, known, target)
    parity = _parity(lesson, task, target, answers)
    write_text(target.parent / Path(table_name(target.name)).name, trained.csv(plan.losses))
    return {**said, "parity_torch": parity, "offsets": offsets, "training": _facts(task, trained, device, len(known.weights))}


def device_of(name: str) -> torch.device:
    """Return the device to train on.

    Raises:
        MissingRuntimeError: ``cuda`` is asked for and PyTorch has none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise MissingRuntimeError("PyTorch has no CUDA device here", fix="Use --qat-device cpu, or install PyTorch with CUDA.")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _wrapped(task: Task, device: torch.device) -> Wrapped:
    model = task.checkpoint.model
    # On another device nothing may be shared: moving the copy would move the original's other tower.
    model = copy_for(model, task.tower) if device.type == "cpu" else copy.deepcopy(model)
    makers = PLANS[task.method.name].makers(task.bits, task.recipe.mha)
    wrapped = wrap(model, task.tower, task.checkpoint.model_id, makers, task.keep)
    if device.type != "cpu":
        model.to(device)
    return wrapped


def _key(task: Task, device: torch.device) -> str:
    """Return a hash over what the run depends on, beside the recipe and the model that the export's own record holds."""
    return sha256_json({"name": task.name, "pairs": task.digest, "device": str(device), "keep": sorted(task.keep)})


def _first_inputs(lesson: Lesson) -> Iterator[Tensor]:
    count = min(_FIRST, lesson.pairs.trained)
    return (lesson.inputs(lesson.stored[start : min(start + _BATCH, count)]) for start in range(0, count, _BATCH))


def _write_graph(task: Task, wrapped: Wrapped, known: Taught, target: Path) -> dict[str, Any]:
    """Export the tower as it is without quantizers and put Q/DQ with what they learned into the graph."""
    model = wrapped.model.to("cpu").requires_grad_(requires_grad=False)
    attention = task.recipe.mha == "int8"
    with scratch_folder(target) as scratch:
        export_tower(replace(task.checkpoint, model=model), task.tower, scratch / "trained.onnx")
        observed = prepare(scratch / "trained.onnx", attention=attention)
        learned, untrained = known.learned(observed)
        keep = {**untrained, **task.keep}
        scheme = Scheme("minmax", task.bits, learned=learned)
        said = write_scheme(observed, target, scheme, mha=task.recipe.mha, keep=keep)
    # Nobody observed largest values, and no image was calibrated with: what is known is what was learned.
    return {**{name: value for name, value in said.items() if name != "images"}, "ranges": _clips(said["ranges"])}


def _clips(ranges: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {"clip": known["clip"]} for name, known in ranges.items()}


def _outputs(wrapped: Wrapped, inputs: Tensor) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        found: npt.NDArray[np.float32] = functional.normalize(wrapped.embed(inputs), dim=1).cpu().numpy()
    return found


def _parity(lesson: Lesson, task: Task, graph: Path, expected: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Hold the graph against what PyTorch gave for the questions and the golden inputs; delete it if it is too far away."""
    session = open_on_cpu(graph)
    name = session.get_inputs()[0].name

    def embed(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: inputs.cpu().numpy()})[0])

    answers, golden = lesson.answers(embed), embed(torch.from_numpy(task.golden.inputs(task.tower))).numpy()
    exact = np.concatenate([lesson.reference(), task.golden.outputs(task.tower)])
    try:
        choices = lesson.chosen(answers), lesson.chosen(expected[: len(answers)]), lesson.chosen(lesson.reference())
        return compare(np.concatenate([answers, golden]), expected, exact, choices)
    except ExportError:
        for file in (graph, graph.with_name(f"{graph.name}.data")):
            file.unlink(missing_ok=True)
        raise


def _facts(task: Task, trained: Trained, device: torch.device, layers: int) -> dict[str, Any]:
    return {
        "method": task.method.name,
        "losses": list(PLANS[task.method.name].losses),
        "layers": layers,
        "asked": task.recipe.training,
        "steps": trained.steps,
        "stopped": trained.stopped,
        "device": str(device),
        "seconds_per_step": trained.seconds_per_step,
        "last": dict(trained.rows[-1]),
    }
