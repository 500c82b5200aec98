"""Linear layers with quantizers around them: what a QDQ graph will compute, in PyTorch, with gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from clipq.export.qat.quantizers import Activation, Weight
from clipq.export.qat.rounding import Grid, round_to

_SAMPLE = 1 << 14  # values of each batch that are kept of a tensor while its first range is looked for
PRODUCTS = ("MatMul", "MatMul_1")  # of queries and keys, of probabilities and values, as the graph names them


@dataclass(frozen=True, slots=True)
class Makers:
    """How quantizers are made.

    Attributes:
        activation: A new quantizer of an activation.
        product: A new quantizer of queries, keys or values, and of what the values become where the products are quantized; it has no
            offset, because rounded probabilities do not sum to 1 and would not hand it on.
        weight: A new quantizer of a weight with so many output channels.
        probabilities: Grid of attention's probabilities; None leaves the products of attention in FP32.
    """

    activation: Callable[[], Activation]
    product: Callable[[], Activation]
    weight: Callable[[int], Weight]
    probabilities: Grid | None = None


def node_of(path: str) -> str:
    """Return the name in the graph of what stands at a path of the model.

    >>> node_of("visual.transformer.resblocks.3.attn.MatMul")
    '/visual/transformer/resblocks.3/attn/MatMul'
    """
    return "/" + re.sub(r"\.(?!\d+(?:\.|$))", "/", path)


class Observer(torch.nn.Module):
    """Rounds with a quantizer, or, while its first range is looked for, only keeps a sample of what passes.

    Attributes:
        quantizer: What rounds.
        seen: The sample; None when it rounds.
        mean: Mean of each channel of all that counted while the sample was taken, float32 ``(channels,)``.
        read: While the sample is taken: which rows count, bool; None, or another length than that of the rows, for all.
    """

    mean: torch.Tensor

    def __init__(self, quantizer: Activation) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.seen: list[torch.Tensor] | None = None
        self.read: torch.Tensor | None = None
        self._largest = 0.0
        self._rows = 0

    def watch(self) -> None:
        """Keep a sample from now on, and round nothing."""
        self.seen, self._largest, self._rows, self.mean = [], 0.0, 0, torch.zeros(())

    def begin(self) -> None:
        """Take the first range from the sample, and round from now on."""
        assert self.seen, "nothing was seen"
        self.quantizer.begin(torch.cat(self.seen), self._largest)
        self.seen = self.read = None

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values, rounded."""
        if self.seen is None:
            rounded: torch.Tensor = self.quantizer(values)
            return rounded
        rows = values.detach().reshape(-1, values.shape[-1])
        if self.read is not None and len(self.read) == len(rows):
            rows = rows[self.read]
        flat = rows.flatten()
        self._rows += len(rows)
        self.mean = self.mean + (rows.mean(dim=0) - self.mean) * (len(rows) / self._rows)
        self._largest = max(self._largest, float(flat.abs().max()))
        stride = max(len(flat) // _SAMPLE, 1)
        while math.gcd(stride, values.shape[-1]) > 1:  # so that every channel comes up
            stride += 1
        self.seen.append(flat[::stride].clone())
        return values


class Site(torch.nn.Module):
    """A linear layer's quantizers.

    Attributes:
        path: Path of the layer in the model, as it is written for export.
        reads: Quantizer of what the layer reads.
        weight: Quantizer of its weight.
    """

    def __init__(self, path: str, reads: Activation, weight: Weight) -> None:
        super().__init__()
        self.path = path
        self.reads = Observer(reads)
        self.weight = weight

    def forward(self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the layer's result from its weight ``(out, in)`` and bias, both of them what is trained.

        An offset of the activation goes into the bias: ``W x = W (x - offset) + offset * W 1``, with the rounded weight, so that the
        product has integers on both sides and zero point 0.
        """
        if self.reads.seen is not None:
            return functional.linear(self.reads(values), weight, bias)
        rounded = self.weight(weight)
        quantizer = self.reads.quantizer
        if quantizer.shifts:
            bias = bias + quantizer.offset * rounded.sum(dim=1)
        return functional.linear(self.reads(values), rounded, bias)


class QuantizedLinear(torch.nn.Module):
    """A linear layer with its site."""

    def __init__(self, original: torch.nn.Linear, site: Site) -> None:
        super().__init__()
        self.original = original
        self.site = site

    @property
    def weight(self) -> torch.Tensor:
        """The weight that is trained; open_clip asks for its type."""
        weight: torch.Tensor = self.original.weight
        return weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the layer's result."""
        result: torch.Tensor = self.site(values, self.original.weight, self.original.bias)
        return result


class QuantizedAttention(torch.nn.Module):
    """Self-attention as ``clipq.export.attention`` writes it for export, with its two layers and, if asked, its products quantized.

    Attributes:
        original: The module it stands for; its parameters are what is trained.
        project: Site of queries, keys and values; None where it stays FP32.
        output: Site of the output projection.
        products: Quantizers of ``q``, ``k`` and ``v``, empty where the products stay FP32.
    """

    scale: torch.Tensor

    def __init__(self, original: torch.nn.MultiheadAttention, path: str, makers: Makers, kept: Collection[str]) -> None:
        super().__init__()
        self.original = original
        self.heads, self.width = original.num_heads, original.embed_dim
        scale = torch.ones(3 * self.width)
        scale[: self.width] = (self.width // self.heads) ** -0.5
        self.register_buffer("scale", scale, persistent=False)
        self.project = make_site(f"{path}.project", 3 * self.width, makers, kept)
        reads = makers.activation if makers.probabilities is None else makers.product
        self.output = make_site(f"{path}.out_proj", self.width, replace(makers, activation=reads), kept)
        self.products = torch.nn.ModuleDict()
        self._grid = makers.probabilities or Grid(0, 1)
        for product, parts in zip(PRODUCTS, (("q", "k"), ("v",)), strict=True):
            if makers.probabilities is not None and node_of(f"{path}.{product}") not in kept:
                self.products.update({part: Observer(makers.product()) for part in parts})

    def projection(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of queries, keys and values, the scale of the queries in them."""
        return self.original.in_proj_weight * self.scale[:, None], self.original.in_proj_bias * self.scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,  # noqa: ARG002 - the signature of the module it stands for; blocks attend to themselves
        value: torch.Tensor,  # noqa: ARG002
        need_weights: bool = False,  # noqa: ARG002
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return the attended values in the layout of the input, and no weights."""
        tokens = query if self.original.batch_first else query.transpose(0, 1)
        length = tokens.shape[1]
        projected = linear(self.project, tokens, *self.projection())
        by_head = projected.reshape(-1, length, 3 * self.heads, self.width // self.heads).transpose(1, 2)
        q, k, v = torch.split(by_head, [self.heads] * 3, dim=1)
        scores = self._rounded("q", q) @ self._rounded("k", k).transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        shares = scores.softmax(dim=-1)
        if self._rounds_shares:
            shares = round_to(shares, torch.tensor(1 / self._grid.most, device=shares.device), self._grid)
        attended = (shares @ self._rounded("v", v)).transpose(1, 2).reshape(-1, length, self.width)
        output = linear(self.output, attended, self.original.out_proj.weight, self.original.out_proj.bias)
        return (output if self.original.batch_first else output.transpose(0, 1)), None

    @property
    def _rounds_shares(self) -> bool:
        observer = dict(self.products.items()).get("v")
        return isinstance(observer, Observer) and observer.seen is None

    def _rounded(self, part: str, values: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = self.products[part](values) if part in self.products else values
        return rounded


def make_site(path: str, channels: int, makers: Makers, kept: Collection[str]) -> Site | None:
    """Return new quantizers for a layer, or None where its node is one to keep."""
    return None if f"{node_of(path)}/MatMul" in kept else Site(path, makers.activation(), makers.weight(channels))


def linear(site: Site | None, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return a layer's result, quantized where it has a site."""
    result: torch.Tensor = functional.linear(values, weight, bias) if site is None else site(values, weight, bias)
    return result
