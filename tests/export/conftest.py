"""Exported towers that several tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def towers(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function from family and tower to its FP32 graph."""
    from clipq.engines.torch.checkpoint import load_checkpoint
    from clipq.export.onnx import export_tower

    made: dict[tuple[str, str], Path] = {}

    def make(family: str, tower: str) -> Path:
        if (family, tower) not in made:
            made[family, tower] = tmp_path_factory.mktemp("towers") / f"{family}.{tower}.onnx"
            export_tower(load_checkpoint(tiny_checkpoint(family)), tower, made[family, tower])
        return made[family, tower]

    return make
