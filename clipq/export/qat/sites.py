"""Linear layers with quantizers around them: what a QDQ graph will compute, in PyTorch, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from clipq.export.qat.quantizers import Activation, Weight
from clipq.export.qat.rounding import Grid

_SAMPLE = 1 << 15  # values kept of a tensor while its first range is looked for


@dataclass(frozen=True, slots=True)
class Makers:
    """How quantizers are made.

    Attributes:
        activation: A new quantizer of an activation.
        product: A new quantizer of queries, keys or values.
        weight: A new quantizer of a weight with so many output channels.
        probabilities: Grid of attention's probabilities; None leaves the products of attention in FP32.
    """

    activation: Callable[[], Activation]
    product: Callable[[], Activation]
    weight: Callable[[int], Weight]
    probabilities: Grid | None = None


class Observer(torch.nn.Module):
    """Rounds with a quantizer, or, while its first range is looked for, only keeps a sample of what passes."""

    def __init__(self, quantizer: Activation) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.seen: list[torch.Tensor] | None = None
        self._largest = 0.0

    def watch(self) -> None:
        """Keep a sample from now on, and round nothing."""
        self.seen, self._largest = [], 0.0

    def begin(self) -> None:
        """Take the first range from the sample, and round from now on."""
        assert self.seen, "nothing was seen"
        self.quantizer.begin(torch.cat(self.seen), self._largest)
        self.seen = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values, rounded."""
        if self.seen is None:
            rounded: torch.Tensor = self.quantizer(values)
            return rounded
        flat = values.detach().flatten()
        self._largest = max(self._largest, float(flat.abs().max()))
        ends = torch.stack([flat.min(), flat.max()])
        self.seen.append(torch.cat([ends, flat[:: max(len(flat) // _SAMPLE, 1) | 1]]))  # an odd stride: every channel comes up
        return values


class Site(torch.nn.Module):
    """A linear layer's quantizers.

    Attributes:
        name: Path of the layer in the model, as the graph names it.
        reads: Quantizer of what the layer reads.
        weight: Quantizer of its weight.
    """

    def __init__(self, name: str, reads: Activation, weight: Weight) -> None:
        super().__init__()
        self.name = name
        self.reads = Observer(reads)
        self.weight = weight

    def forward(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the layer's result from its FP32 weight ``(out, in)`` and bias, both of them what is trained.

        An offset of the activation goes into the bias: ``W x = W (x - offset) + offset * W 1``, with the rounded weight, so that the
        product has integers on both sides and zero point 0.
        """
        if self.reads.seen is not None:
            return functional.linear(self.reads(values), weight, bias)
        rounded = self.weight(weight)
        return functional.linear(self.reads(values), rounded, self.moved_bias(rounded, bias))

    def moved_bias(self, rounded: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias with the offset of the activation in it."""
        if not self.reads.quantizer.shifts:
            return bias
        moved = self.reads.quantizer.offset * rounded.sum(dim=1)
        return moved if bias is None else bias + moved


class QuantizedLinear(torch.nn.Module):
    """A linear layer with its site."""

    def __init__(self, linear: torch.nn.Linear, site: Site) -> None:
        super().__init__()
        self.linear = linear
        self.site = site

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the layer's result."""
        result: torch.Tensor = self.site(values, self.linear.weight, self.linear.bias)
        return result


class QuantizedAttention(torch.nn.Module):
    """Self-attention as ``clipq.export.attention`` writes it for export, with its two layers and, if asked, its products quantized."""

    def __init__(self, attention: torch.nn.MultiheadAttention, name: str, makers: Makers, kept: frozenset[str]) -> None:
        super().__init__()
        self.original = attention
        self.heads, self.width = attention.num_heads, attention.embed_dim
        scale = torch.ones(3 * self.width, device=attention.out_proj.weight.device)
        scale[: self.width] = (self.width // self.heads) ** -0.5
        self.register_buffer("scale", scale, persistent=False)
        self.project = None if f"{name}.project" in kept else Site(f"{name}.project", makers.activation(), makers.weight(3 * self.width))
        self.output = None if f"{name}.out_proj" in kept else Site(f"{name}.out_proj", makers.activation(), makers.weight(self.width))
        self.products = torch.nn.ModuleDict()
        if makers.probabilities is not None:
            self.products.update({part: Observer(makers.product()) for part in ("q", "k", "v")})
        self.probabilities = makers.probabilities
        self.name = name

    scale: torch.Tensor

    def projection(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of queries, keys and values, the scale of the queries in them."""
        weight, bias = self.original.in_proj_weight, self.original.in_proj_bias
        assert weight is not None
        return weight * self.scale[:, None], None if bias is None else bias * self.scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,  # noqa: ARG002 - the signature of the module it stands for, and self-attention alone
        value: torch.Tensor,  # noqa: ARG002
        need_weights: bool = False,  # noqa: ARG002
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return the attended values in the layout of the input, and no weights."""
        tokens = query if self.original.batch_first else query.transpose(0, 1)
        length = tokens.shape[1]
        projected = _linear(self.project, tokens, *self.projection())
        by_head = projected.reshape(-1, length, 3 * self.heads, self.width // self.heads).transpose(1, 2)
        q, k, v = torch.split(by_head, [self.heads] * 3, dim=1)
        scores = self._rounded("q", q) @ self._rounded("k", k).transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        attended = (self._rounded("p", scores.softmax(dim=-1)) @ self._rounded("v", v)).transpose(1, 2).reshape(-1, length, self.width)
        output = _linear(self.output, attended, self.original.out_proj.weight, self.original.out_proj.bias)
        return (output if self.original.batch_first else output.transpose(0, 1)), None

    def _rounded(self, part: str, values: torch.Tensor) -> torch.Tensor:
        if self.probabilities is None:
            return values
        if part != "p":
            rounded: torch.Tensor = self.products[part](values)
            return rounded
        return values
        

def _linear(site: Site | None, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if site is None:
        return functional.linear(values, weight, bias)
    result: torch.Tensor = site(values, weight, bias)
    return result
