"""A CLIP with planted outliers: a few channels of what the blocks read are 50 times as large, and the function is the same.

The scale and offset of LayerNorm grow on a few channels, and so do a few of the values, while the columns of the weights that read them
shrink by as much: FP32 computes what it did, and a symmetric range for all channels has 50 times as coarse a step for the others.
Large language models grow such channels by themselves (Dettmers et al. 2022, arXiv 2208.07339); small models have to be given some.

    python benchmarks/planted.py MODEL FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clipq.engines.base import Tower
from clipq.engines.torch import checkpoint as checkpoints
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.transform.blocks import NORMED, residual_blocks
from clipq.export.transform.smooth import scale_input

CHANNELS, FACTOR = 4, 50.0
TOWERS: tuple[Tower, ...] = ("image", "text")


def plant(model: Any, tower: Tower, channels: int = CHANNELS, factor: float = FACTOR) -> None:
    """Make the largest channels of what the blocks of a tower read larger by a factor, in place; what it computes stays the same.

    Args:
        model: An open_clip model with CLIP's own blocks in the tower.
        tower: Which of its towers.
        channels: How many of what ``qkv`` and ``fc1`` read; ``out_proj`` gets one per head.
        factor: How much larger.
    """
    for block in residual_blocks(model, tower, "the model", "planting"):
        for part in NORMED:
            norm = block.norm(part)
            scale_input(
                block, part, _outliers(3 * norm.weight.abs() + norm.bias.abs(), channels, factor)
            )  # a normed value rarely exceeds 3
        values = block.weight("qkv")[2 * block.width :].norm(dim=1).reshape(block.module.attn.num_heads, -1)
        scale_input(block, "out_proj", torch.cat([_outliers(head, 1, factor) for head in values]))


def _outliers(sizes: torch.Tensor, count: int, factor: float) -> torch.Tensor:
    scale = torch.ones_like(sizes)
    scale[sizes.topk(count).indices] = 1 / factor
    return scale


def write_planted(model_id: str, folder: Path, channels: int = CHANNELS, factor: float = FACTOR) -> str:
    """Write a model with planted outliers in both towers into a folder and return its model id.

    Args:
        model_id: ``demo:NAME`` or ``local-dir:FOLDER``.
        folder: Where it goes.
        channels: Per tower.
        factor: How much larger.
    """
    source = _folder_of(model_id)
    model = load_checkpoint(model_id).model
    for tower in TOWERS:
        plant(model, tower, channels, factor)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "open_clip_config.json", folder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder.resolve()}"


def _folder_of(model_id: str) -> Path:
    kind, _, rest = model_id.partition(":")
    return Path(checkpoints.__file__).with_name("demo") / rest if kind == "demo" else Path(rest)


def main() -> None:
    """Write one and print its id."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(json.dumps({"model": write_planted(arguments.model, arguments.folder)}))


if __name__ == "__main__":
    main()
