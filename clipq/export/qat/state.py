"""A training run on disk: everything that the next step depends on, in safetensors, whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipq.files import atomic_path

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Finished steps.
        rows: Rows of ``training.csv``.
    """

    step: int
    rows: tuple[Mapping[str, float | None], ...]


def save_state(path: Path, key: str, progress: Progress, values: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Write a run's parameters, ranges and optimizer.

    Args:
        path: The file.
        key: What the run depends on; a run with another key does not go on from it.
        progress: How far it is.
        values: Parameters and buffers by name.
        optimizer: AdamW over some of the values.
    """
    from safetensors.torch import save_file

    moments = {
        f"{moment}:{name}": optimizer.state[value][moment]
        for name, value in values.items()
        for moment in _MOMENTS
        if value in optimizer.state
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in {**values, **moments}.items()}
    said = json.dumps({"key": key, "step": progress.step, "rows": list(progress.rows)})
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={"clipq": said})


def load_state(path: Path, key: str, values: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Progress | None:
    """Put a saved run back, in place, and return how far it was; None where there is none to go on from.

    Args:
        path: The file.
        key: What this run depends on.
        values: Parameters and buffers by name; they are overwritten.
        optimizer: AdamW over some of them; its state is overwritten.
    """
    from safetensors import safe_open

    if not path.exists():
        return None
    with safe_open(path, framework="pt") as stored:
        said: dict[str, Any] = json.loads(stored.metadata()["clipq"])
        if said["key"] != key:
            return None
        names = set(stored.keys())
        with torch.no_grad():
            for name, value in values.items():
                value.copy_(stored.get_tensor(name))
                if f"step:{name}" in names:
                    moments = {moment: stored.get_tensor(f"{moment}:{name}") for moment in _MOMENTS}
                    optimizer.state[value] = {
                        moment: saved if moment == "step" else saved.to(value.device) for moment, saved in moments.items()
                    }
    return Progress(said["step"], tuple(said["rows"]))
