"""One tower of a model written anew by a named transform; the model that was given stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from clipq.engines.base import Tower
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.errors import unknown_name
from clipq.export.transform.blocks import Block, residual_blocks, tower_of
from clipq.export.transform.capture import Key, Seen, capture
from clipq.export.transform.rotate import rotate
from clipq.export.transform.shift import equalize, shift
from clipq.export.transform.smooth import smooth
from clipq.methods import METHODS, W8A8, Bits

_MAKERS: Mapping[str, Callable[[Iterable[Block], Mapping[Key, Seen], Bits], dict[str, Any]]] = {
    "shift": shift,
    "smoothquant": smooth,
    "equalize": equalize,
}
_FOR_BITS: Mapping[str, Bits] = {
    "shift": W8A8,  # one graph for all bits
    **{f"{name.lower()}-{kind}": bits for kind in ("smoothquant", "equalize") for name, bits in METHODS[kind].bits.items()},
}
Inputs = Callable[[], Iterator[npt.NDArray[Any]]]


def transform_tower(checkpoint: Checkpoint, tower: Tower, name: str, inputs: Inputs) -> tuple[Checkpoint, dict[str, Any]]:
    """Return a copy of a checkpoint whose tower computes the same in other numbers, and facts about how.

    Args:
        checkpoint: The model; the copy shares the tensors of its other tower.
        tower: Which of its towers.
        name: ``rotation``, ``shift``, ``<bits>-smoothquant`` or ``<bits>-equalize``.
        inputs: Gives the calibration inputs of the tower, in batches, anew at every call; rotation needs none.

    Raises:
        ExportError: The tower has no layers that the transform knows, or gives NaN or infinity on a calibration input.
        DataError: There are no calibration inputs.
        UsageError: There is no such transform.
    """
    if name not in _FOR_BITS and name != "rotation":
        raise unknown_name("transform", name, ["rotation", *_FOR_BITS])
    model, kind = copy_for(checkpoint.model, tower), name.rpartition("-")[2]
    blocks = residual_blocks(model, tower, checkpoint.model_id, kind)
    if name == "rotation":
        said = rotate(model, tower, checkpoint.model_id)
    else:
        seen = capture(model, tower, blocks, inputs())
        said = _MAKERS[kind](blocks, seen, _FOR_BITS[name])
    return replace(checkpoint, model=model), {"transform": kind, **said}


def copy_for(model: Any, tower: Tower) -> Any:
    """Return a copy of an open_clip model that shares the tensors of the other tower, without hooks that were put on the original."""
    own = tower_of(model, tower)
    others = [child for name, child in model.named_children() if child is not own and (own is not model or name == "visual")]
    copied = copy.deepcopy(model, {id(other): other for other in others})
    shared = {id(module) for other in others for module in other.modules()}
    for module in tower_of(copied, tower).modules():
        if id(module) not in shared:
            module._forward_hooks.clear()  # noqa: SLF001 - PyTorch has no public way
            module._forward_pre_hooks.clear()  # noqa: SLF001
    return copied
