"""Self-attention in the plainest operators: fewer, cheaper nodes for ONNX Runtime, and the shape that TensorRT fuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class SelfAttention(torch.nn.Module):
    """What ``torch.nn.MultiheadAttention`` computes for one input, written for export.

    PyTorch's own form becomes eight transposes and four multiplications a layer. Here one product gives Q, K and V, one transpose
    sorts them by head, the scale is part of the weights of Q, and the sequence length is a constant: only the batch is dynamic.
    """

    def __init__(self, attention: torch.nn.MultiheadAttention) -> None:
        super().__init__()
        self.original = attention
        self.heads = attention.num_heads
        self.width = attention.embed_dim
        assert attention.in_proj_weight is not None
        scale = torch.ones(3 * self.width)
        scale[: self.width] = (self.width // self.heads) ** -0.5
        self.project = torch.nn.Linear(self.width, 3 * self.width, bias=attention.in_proj_bias is not None)
        self.project.weight = torch.nn.Parameter(attention.in_proj_weight * scale[:, None], requires_grad=False)
        if attention.in_proj_bias is not None:
            self.project.bias = torch.nn.Parameter(attention.in_proj_bias * scale, requires_grad=False)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,  # noqa: ARG002 - the signature of the module it stands for
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return the attended values in the layout of the input, and no weights; anything but self-attention goes to the original."""
        if query is not key or key is not value:
            result: tuple[torch.Tensor, None] = self.original(query, key, value, need_weights=False, attn_mask=attn_mask)
            return result
        tokens = query if self.original.batch_first else query.transpose(0, 1)
        length = int(tokens.shape[1])
        by_head = self.project(tokens).reshape(-1, length, 3 * self.heads, self.width // self.heads).transpose(1, 2)
        q, k, v = torch.split(by_head, [self.heads] * 3, dim=1)  # a list of sizes becomes one Split, a number several Slices
        scores = q @ k.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + self._additive(attn_mask, length)
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, length, self.width)
        output = self.original.out_proj(attended)
        return (output if self.original.batch_first else output.transpose(0, 1)), None

    def _additive(self, mask: torch.Tensor, length: int) -> torch.Tensor:
        """Return the mask as something to add; three dimensions mean one mask per image and head."""
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape).masked_fill(mask, float("-inf"))
        return mask if mask.dim() == 2 else mask.reshape(-1, self.heads, length, length)


@contextlib.contextmanager
def plain_attention(model: torch.nn.Module) -> Iterator[None]:
    """Let every self-attention of ``model`` compute in its plain form while the block runs."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.MultiheadAttention) and child.in_proj_weight is not None and child.bias_k is None
    ]
    try:
        for parent, name, child in found:
            setattr(parent, name, SelfAttention(child))
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)
