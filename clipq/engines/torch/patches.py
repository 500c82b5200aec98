"""Local features of an image, one per patch, as GL-MCM takes them from CLIP's own image towers: a second output of the tower.

What would the last layer's attention hand on if every token attended to itself alone? Its value projection and its output projection,
without the softmax (Miyai et al. 2023, arXiv 2304.04521; ``clip/model.py`` of AtsuMiyai/GL-MCM). Behind that a ViT's tokens take the road
of the class token: residual sum, MLP, the last norm, the projection. A ResNet's take none of its positions, and not their mean.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy.typing as npt
import torch

from clipq.engines.base import Float32
from clipq.errors import UsageError

_HAVE_THEM = "CLIP's own ViTs with a class token, and its ResNets (RN50 and its kind)"


class PatchTower(torch.nn.Module):
    """An image tower with two outputs: pixels ``(n, 3, h, w)`` to embeddings ``(n, dim)`` and patches ``(n, patches, dim)``, both raw.

    The embedding is that of the tower alone, to the bit. May be used from several threads at once.

    Attributes:
        grid: Rows and columns of patches; they stand row by row in the output.
    """

    def __init__(self, model: Any, model_id: str) -> None:
        """Wrap a model; its tensors are shared, and its modules get hooks.

        Raises:
            UsageError: Its image tower has no patch tokens of this kind.
        """
        super().__init__()
        require_patches(model, model_id)
        visual = model.visual
        self.model = model
        self.patches: _ViTPatches | _ResNetPatches
        self.patches = _ResNetPatches(visual) if hasattr(visual, "attnpool") else _ViTPatches(visual)
        self.grid = self.patches.grid

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings and patches."""
        embedding: torch.Tensor = self.model.encode_image(pixels, normalize=False)
        patches: torch.Tensor = self.patches(*self.patches.seen())
        return embedding, patches

    def compute(self, pixels: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """Return embeddings and patches of pixels as float32 arrays, computed with autocast off."""
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            embedding, patches = self(torch.from_numpy(pixels))
        return embedding.numpy(), patches.numpy()


def require_patches(model: Any, model_id: str) -> None:
    """Check that an open_clip model's image tower has patch tokens that GL-MCM could take.

    Raises:
        UsageError: It has none; the line says why, and which models have them.
    """
    why = _why_not(model.visual)
    if why:
        raise UsageError(f"{model_id} has no patch tokens", found=why, expected=_HAVE_THEM, fix="Export it without --patch-tokens.")


def _why_not(visual: Any) -> str:
    kind = type(visual).__name__
    if kind == "ModifiedResNet":
        return ""
    if kind != "VisionTransformer":
        return f"an image tower of class {kind}"
    if visual.attn_pool is not None:
        return "an image tower that pools by attention"
    if visual.pool_type != "tok":
        return f"an image tower that pools by {visual.pool_type!r}, not by a class token"
    block = visual.transformer.resblocks[-1]
    plain = isinstance(block.attn, torch.nn.MultiheadAttention) and block.attn.in_proj_weight is not None
    if type(block).__name__ != "ResidualAttentionBlock" or not plain or not visual.transformer.batch_first:
        return "blocks that are not CLIP's own"
    return ""


class _Seen:
    """Remembers, per thread, what went into or came out of modules."""

    def __init__(self) -> None:
        self._kept = threading.local()

    def keep_input(self, module: torch.nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda _module, inputs: setattr(self._kept, name, inputs[0]))

    def keep_output(self, module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: setattr(self._kept, name, output))

    def take(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self._kept, name)
        delattr(self._kept, name)  # or it would stay until the next batch
        return tensor


class _ViTPatches(torch.nn.Module):
    """The patch tokens of a ViT through its last block, each attending to itself alone."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        block = visual.transformer.resblocks[-1]
        attention, width = block.attn, block.attn.embed_dim
        self.value = torch.nn.Linear(width, width, bias=attention.in_proj_bias is not None)
        self.value.weight = torch.nn.Parameter(attention.in_proj_weight[2 * width :], requires_grad=False)
        if attention.in_proj_bias is not None:
            self.value.bias = torch.nn.Parameter(attention.in_proj_bias[2 * width :], requires_grad=False)
        self.out_proj, self.ls_1 = attention.out_proj, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2
        self.ln_post = visual.ln_post
        self.proj = visual.proj
        self._seen = _Seen()
        self._seen.keep_input(block, "tokens")
        self._seen.keep_output(block.ln_1, "normed")

    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that went into the last block, and behind its first norm, ``(n, 1 + patches, width)``."""
        return self._seen.take("tokens"), self._seen.take("normed")

    def forward(self, tokens: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        """Return the patches ``(n, patches, dim)``; the class token stays out."""
        local = tokens[:, 1:] + self.ls_1(self.out_proj(self.value(normed[:, 1:])))
        local = local + self.ls_2(self.mlp(self.ln_2(local)))
        patches: torch.Tensor = self.ln_post(local) @ self.proj
        return patches


class _ResNetPatches(torch.nn.Module):
    """The last feature map of a ResNet through the value and the output projection of its attention pooling."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        side = math.isqrt(len(visual.attnpool.positional_embedding) - 1)
        self.grid = (side, side)
        self.v_proj, self.c_proj = visual.attnpool.v_proj, visual.attnpool.c_proj
        self._seen = _Seen()
        self._seen.keep_input(visual.attnpool, "features")

    def seen(self) -> tuple[torch.Tensor]:
        """Return the feature map that is pooled, ``(n, width, rows, columns)``."""
        return (self._seen.take("features"),)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the patches ``(n, patches, dim)``."""
        patches: torch.Tensor = self.c_proj(self.v_proj(features.flatten(2).transpose(1, 2)))
        return patches
