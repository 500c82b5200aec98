"""Puts quantizers around the linear layers of a tower's residual blocks, and takes them off again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from clipq.engines.base import Tower
from clipq.errors import ExportError
from clipq.export.qat.sites import Makers, QuantizedAttention, QuantizedLinear, Site


def blocks_in(model: Any, tower: Tower) -> dict[str, torch.nn.Module]:
    """Return the residual blocks of an open_clip tower by their path: self-attention ``attn``, and ``c_fc`` and ``c_proj`` in ``mlp``.

    Raises:
        ExportError: The tower has none.
    """
    found = {
        name: module for name, module in model.named_modules() if name.startswith("visual.") == (tower == "image") and _is_block(module)
    }
    if not found:
        kind = type(model.visual if tower == "image" else getattr(model, "text", model)).__name__
        raise ExportError(
            f"the {tower} tower has no blocks to train quantized", found=kind, expected="open_clip's residual attention blocks (ViT, text)"
        )
    return found


def _is_block(module: torch.nn.Module) -> bool:
    attention, mlp = getattr(module, "attn", None), getattr(module, "mlp", None)
    plain = isinstance(attention, torch.nn.MultiheadAttention) and attention.in_proj_weight is not None and attention.bias_k is None
    return plain and not hasattr(module, "ln_1_kv") and all(isinstance(getattr(mlp, part, None), torch.nn.Linear) for part in ("c_fc", "c_proj"))


def wrap(model: Any, tower: Tower, makers: Makers, kept: frozenset[str] = frozenset()) -> dict[str, Site]:
    """Put quantizers into a model, in place; return its quantized layers by path, in the order of the graph."""
    for name, block in blocks_in(model, tower).items():
        block.attn = QuantizedAttention(block.attn, f"{name}.attn", makers, kept)  # type: ignore[arg-type]
        for part in ("c_fc", "c_proj"):
            path, linear = f"{name}.mlp.{part}", getattr(block.mlp, part)
            if path not in kept:
                setattr(block.mlp, part, QuantizedLinear(linear, Site(path, makers.activation(), makers.weight(linear.out_features))))
    return {site.name: site for site in sites_in(model)}


def sites_in(model: torch.nn.Module) -> Iterator[Site]:
    """Yield the sites of a wrapped model."""
    return (module for module in model.modules() if isinstance(module, Site))
