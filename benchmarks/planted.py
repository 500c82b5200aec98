"""A CLIP with planted outliers: a few channels of what the blocks read are 50 times as large as the rest, and the function is the same.

The scale and offset of LayerNorm grow on some channels and the columns of the weights that read them shrink by as much, so FP32 computes
what it did, and a symmetric range for all channels has 50 times as coarse a step for the others. Large language models and large
ViTs grow such channels by themselves (Dettmers et al. 2022, arXiv 2208.07339); small models have to be given some.

    python benchmarks/planted.py MODEL FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from clipq.engines.base import Tower
from clipq.engines.torch import checkpoint as checkpoints
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.export.transform.blocks import NORMED, residual_blocks
from clipq.export.transform.smooth import scale_input

CHANNELS, FACTOR = 4, 50.0
TOWERS: tuple[Tower, ...] = ("image", "text")


def plant(model: Any, tower: Tower, channels: int = CHANNELS, factor: float = FACTOR, seed: int = 0) -> list[int]:
    """Make some channels of what ``qkv`` and ``fc1`` of every block read much larger than the others, in place; return the channels.

    Args:
        model: An open_clip model with CLIP's own blocks in the tower; what it computes stays the same.
        tower: Which of its towers.
        channels: How many, the same in every block, as in models that grew them.
        factor: How much larger they become than the largest of the others.
        seed: Which ones.
    """
    blocks = residual_blocks(model, tower, "the model", "planting")
    chosen = np.random.default_rng(seed).choice(blocks[0].width, channels, replace=False)
    for block in blocks:
        for part in NORMED:
            norm = block.norm(part)
            size = 3 * norm.weight.abs() + norm.bias.abs()  # a normed value rarely exceeds 3
            scale = torch.ones_like(size)
            scale[chosen] = size[chosen] / (factor * size.max())
            scale_input(block, part, scale)
    return sorted(int(channel) for channel in chosen)


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
