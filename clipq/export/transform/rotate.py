"""Rotation: the residual stream in a basis where no channel stands out (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456).

QuaRot replaces LayerNorm by RMSNorm. Here LayerNorm stays, one operator that every runtime fuses: whatever is written into the stream
is centred, which no LayerNorm behind it can tell, and the rotation keeps the mean of the channels. Then ``LN(Q x) = Q LN(x)``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipq.engines.base import Tower
from clipq.export.quantize.layers import STREAM_ROTATION
from clipq.export.transform.blocks import NORMED, Block, Part, cannot, double, fold_norm, residual_blocks, tower_of, write
from clipq.export.transform.hadamard import head_rotation, mean_keeping_rotation

_SCALES: Mapping[Part, str] = {"out_proj": "ls_1", "fc2": "ls_2"}


def rotate(model: Any, tower: Tower, model_id: str) -> dict[str, Any]:
    """Write a tower's residual stream in a rotated basis, in place; its embeddings stay what they are.

    Folded into existing weights: the centring and the rotation into everything that writes into the stream (embeddings, ``out_proj``,
    ``c_proj``, with their LayerScale), the opposite rotation into everything that reads it (``in_proj``, ``c_fc``, the final
    projection, with the scale and offset of the LayerNorm before it). Within each head the values are rotated and ``out_proj`` turned
    back, which is exact because attention mixes tokens, not channels. What is left is one product where a tower normalises its
    embeddings (``ln_pre``): scale, centring and rotation in one matrix, named so that it stays FP32.

    Args:
        model: An open_clip model.
        tower: Which of its towers.
        model_id: Its id, for errors.

    Returns:
        What was done: the matrix, and which product is left.

    Raises:
        ExportError: The tower has other blocks or another end than CLIP's own.
    """
    blocks = residual_blocks(model, tower, model_id, "rotation")
    own = tower_of(model, tower)
    if getattr(own, "attn_pool", None) is not None:
        raise cannot(model_id, tower, "rotation", "pooling by attention, which reads the stream in its own way")
    rotation = mean_keeping_rotation(blocks[0].width)
    turn = torch.from_numpy(rotation.matrix)
    into = turn - turn.mean(dim=1, keepdim=True)  # Q (I - 1 1^T / d): centre, then rotate
    products = _rotate_embeddings(own, tower, into)
    for block in blocks:
        _rotate_block(block, turn, into)
    _rotate_end(own, tower, turn)
    return {"rotation": rotation.to_json(), "fp32_products": products}


def _rotate_embeddings(own: Any, tower: Tower, into: Tensor) -> list[str]:
    """Rotate what goes into the first block; return the modules that had to be added for it."""
    if tower == "text":
        for name in ("token_embedding", "positional_embedding", "cls_emb"):
            found = getattr(own, name, None)
            if found is not None:
                rows = found.weight if name == "token_embedding" else found
                write(rows, double(rows)[0] @ into.T)
        return []
    if isinstance(own.ln_pre, torch.nn.Identity):
        (pixels,) = double(own.conv1.weight)
        write(own.conv1.weight, torch.tensordot(into, pixels, dims=1))
        for rows in (own.class_embedding, own.positional_embedding):
            write(rows, double(rows)[0] @ into.T)
        return []
    own.ln_pre = _norm_and_rotation(own.ln_pre, into)
    return [f"visual.ln_pre.{STREAM_ROTATION}"]


def _norm_and_rotation(norm: Any, into: Tensor) -> Any:
    linear = torch.nn.Linear(len(into), len(into)).eval().requires_grad_(requires_grad=False)
    write(linear.weight, into)
    write(linear.bias, torch.zeros(len(into)))
    fold_norm(norm, linear.weight, linear.bias)
    return torch.nn.Sequential(OrderedDict([("norm", norm), (STREAM_ROTATION, linear)])).eval()


def _rotate_block(block: Block, turn: Tensor, into: Tensor) -> None:
    for part in NORMED:
        weight = block.weight(part)
        fold_norm(block.norm(part), weight, block.bias(part))
        write(weight, double(weight)[0] @ turn.T)
    for part, scale in _SCALES.items():
        _fold_layer_scale(block, part, scale)
        weight, bias = block.weight(part), block.bias(part)
        write(weight, into @ double(weight)[0])
        write(bias, into @ double(bias)[0])
    _rotate_heads(block)


def _fold_layer_scale(block: Block, part: Part, name: str) -> None:
    scale = getattr(block.module, name)
    if isinstance(scale, torch.nn.Identity):
        return
    (factor,), weight, bias = double(scale.gamma), block.weight(part), block.bias(part)
    write(weight, double(weight)[0] * factor[:, None])
    write(bias, double(bias)[0] * factor)
    setattr(block.module, name, torch.nn.Identity())


def _rotate_heads(block: Block) -> None:
    """Rotate the channels of every head's values, and ``out_proj`` back."""
    heads, width = block.module.attn.num_heads, block.width
    turn = torch.from_numpy(head_rotation(width // heads))
    values, offsets = block.weight("qkv")[2 * width :], block.bias("qkv")[2 * width :]
    write(values, (turn @ double(values)[0].reshape(heads, -1, width)).reshape(width, width))
    write(offsets, (double(offsets)[0].reshape(heads, -1) @ turn.T).reshape(width))
    back = block.weight("out_proj")
    write(back, (double(back)[0].reshape(width, heads, -1) @ turn.T).reshape(width, width))


def _rotate_end(own: Any, tower: Tower, turn: Tensor) -> None:
    """Let the final norm and projection read the rotated stream, with no operator more.

    The norm's result has mean zero, so with an offset of 1 on every channel a row that is added to all rows of the projection
    becomes a constant: ``(n + 1) (P + 1 v^T) = n P + 1 P + d v``. v is chosen so that the constant is the norm's old offset, projected.
    """
    norm, name = (own.ln_post, "proj") if tower == "image" else (own.ln_final, "text_projection")
    projection = getattr(own, name)
    if projection is None:
        projection = torch.nn.Parameter(torch.eye(len(turn)), requires_grad=False)
        setattr(own, name, projection)
    if isinstance(projection, torch.nn.Linear):
        fold_norm(norm, projection.weight, projection.bias)
        write(projection.weight, double(projection.weight)[0] @ turn.T)
        return
    scale, offset, matrix = double(norm.weight, norm.bias, projection)
    turned = turn @ (scale[:, None] * matrix)
    constant = (offset @ matrix - turned.sum(dim=0)) / len(turn)
    write(projection, turned + constant)
    write(norm.weight, torch.ones_like(scale))
    write(norm.bias, torch.ones_like(offset))
