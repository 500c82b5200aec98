"""The residual blocks of open_clip's transformers, and the linear layers in them by what they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clipq.engines.base import Tower
from clipq.errors import ExportError

Part = Literal["qkv", "out_proj", "fc1", "fc2"]
PARTS: tuple[Part, ...] = ("qkv", "out_proj", "fc1", "fc2")
NORMED: tuple[Part, ...] = ("qkv", "fc1")  # what they read, a LayerNorm makes
_ACTIVATIONS = {"GELU", "QuickGELU"}
_HAVE_THEM = "CLIP's own transformers: ln_1, attention, ln_2, MLP"


@dataclass(frozen=True, slots=True)
class Block:
    """One residual block, ``x + ls_1(attn(ln_1(x)))`` and ``x + ls_2(c_proj(gelu(c_fc(ln_2(x)))))``.

    Its parts are the linear layers as graphs name them: ``qkv`` reads ln_1, ``out_proj`` the attended values, ``fc1`` ln_2,
    ``fc2`` the activation function.

    Attributes:
        name: Where it stands in the model, e.g. ``visual.transformer.resblocks.3``.
        module: open_clip's ``ResidualAttentionBlock``.
    """

    name: str
    module: Any

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return int(self.module.attn.embed_dim)

    def weight(self, part: Part) -> Tensor:
        """The weight of a part, float32 ``(out, in)``, not a copy."""
        weight: Tensor = self.module.attn.in_proj_weight if part == "qkv" else self._linear(part).weight
        return weight

    def bias(self, part: Part) -> Tensor:
        """The bias of a part, float32 ``(out,)``, not a copy."""
        bias: Tensor = self.module.attn.in_proj_bias if part == "qkv" else self._linear(part).bias
        return bias

    def norm(self, part: Part) -> Any:
        """The LayerNorm that ``qkv`` or ``fc1`` reads."""
        return self.module.ln_1 if part == "qkv" else self.module.ln_2

    def _linear(self, part: Part) -> Any:
        block = self.module
        return {"out_proj": block.attn.out_proj, "fc1": block.mlp.c_fc, "fc2": block.mlp.c_proj}[part]


def tower_of(model: Any, tower: Tower) -> Any:
    """Return the module that has a tower's blocks; the text tower of a plain CLIP is the model itself."""
    return model.visual if tower == "image" else getattr(model, "text", model)


def residual_blocks(model: Any, tower: Tower, model_id: str, transform: str) -> tuple[Block, ...]:
    """Return the blocks of a tower, first to last.

    Args:
        model: An open_clip model.
        tower: Which of its towers.
        model_id: Its id, for the error.
        transform: What asks for them, for the error.

    Raises:
        ExportError: The tower has none, or others than CLIP's own.
    """
    own = tower_of(model, tower)
    root = "visual" if tower == "image" else ("text" if own is not model else "")
    found = getattr(getattr(own, "transformer", None), "resblocks", ())
    why = "" if len(found) else f"a tower of class {type(own).__name__}"
    why = why or next((reason for reason in map(_why_not, found) if reason), "")
    if why:
        raise cannot(model_id, tower, transform, why)
    prefix = ".".join(filter(None, (root, "transformer.resblocks")))
    return tuple(Block(f"{prefix}.{index}", module) for index, module in enumerate(found))


def cannot(model_id: str, tower: Tower, transform: str, why: str) -> ExportError:
    """Return the error for a tower that a transform does not know."""
    return ExportError(
        f"{transform} has no blocks to work on in the {tower} tower of {model_id}",
        found=why,
        expected=_HAVE_THEM,
        fix="Use percentile, mse, gptq or bias-correction for it, or name the other tower with --towers.",
    )


def _why_not(block: Any) -> str:
    kind = type(block).__name__
    if kind != "ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
        return f"blocks of class {kind}"
    attention = block.attn
    plain = isinstance(attention, torch.nn.MultiheadAttention) and attention.in_proj_weight is not None
    if not plain or attention.in_proj_bias is None or attention.bias_k is not None or attention.add_zero_attn:
        return "attention of another form"
    function = getattr(block.mlp.gelu, "function", block.mlp.gelu)  # of a block that was shifted before
    return "" if type(function).__name__ in _ACTIVATIONS else f"an activation function of class {type(function).__name__}"


def write(parameter: Tensor, values: Tensor) -> None:
    """Overwrite a parameter in place, whatever precision the values were computed in."""
    with torch.no_grad():
        parameter.copy_(values)


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return detached copies in float64, in which everything is folded: one rounding at the end."""
    return tuple(tensor.detach().to(torch.float64) for tensor in tensors)


def fold_norm(norm: Any, weight: Tensor, bias: Tensor) -> None:
    """Move the scale and offset of a LayerNorm into the linear layer that alone reads it; the norm keeps scale 1 and offset 0.

    ``W (g * n + b) + c = (W diag(g)) n + (W b + c)``.
    """
    scale, offset, matrix, constant = double(norm.weight, norm.bias, weight, bias)
    write(weight, matrix * scale)
    write(bias, constant + matrix @ offset)
    write(norm.weight, torch.ones_like(scale))
    write(norm.bias, torch.zeros_like(offset))
