"""A tower with quantizers around the linear layers of its residual blocks, and what they have learned written back into it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipq.engines.base import Tower
from clipq.export.qat.quantizers import Activation
from clipq.export.qat.sites import Makers, Observer, QuantizedAttention, QuantizedLinear, Site, make_site
from clipq.export.quantize.padding import Padding
from clipq.export.transform.blocks import Block, Part, residual_blocks, write
from clipq.export.transform.capture import rows_read
from clipq.export.transform.shift import shift_input

_FIXED = ("logit_scale", "logit_bias")  # they belong to both towers
_TOKENS = "token_embedding."  # a thousand captions have few of its rows


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a site stands.

    Attributes:
        block: Its block; its modules are the original ones only before ``wrap`` and after ``unwrap``.
        part: Which of the block's linear layers.
        site: The quantizers.
    """

    block: Block
    part: Part
    site: Site


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A model one of whose towers computes with fake quantization.

    Attributes:
        model: The model.
        tower: The tower.
        spots: Its quantized layers, in the order of the graph.
        attentions: Its attentions by path.
    """

    model: Any
    tower: Tower
    spots: tuple[Spot, ...]
    attentions: Mapping[str, QuantizedAttention]

    @property
    def observers(self) -> Iterator[Observer]:
        """Everything that rounds an activation."""
        return (module for module in self.model.modules() if isinstance(module, Observer))

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the tower's raw embeddings ``(n, d)``."""
        encode = self.model.encode_image if self.tower == "image" else self.model.encode_text
        embedding: Tensor = encode(inputs, normalize=False)
        return embedding

    def scales(self) -> dict[str, torch.nn.Parameter]:
        """Return what the quantizers learn, by name."""
        return {name: value for name, value in self._parameters() if _of_quantizer(name)}

    def backbone(self) -> dict[str, torch.nn.Parameter]:
        """Return the tower's own parameters by name, without the table of tokens."""
        return {name: value for name, value in self._parameters() if not _of_quantizer(name) and _TOKENS not in name}

    def ranges(self) -> dict[str, Tensor]:
        """Return what the quantizers know without learning it, by name."""
        return {name: value for name, value in self.model.named_buffers() if _of_quantizer(name)}

    def train(self, mode: bool) -> None:
        """Let running ranges follow their values, or not; the rest of the model stays in eval mode."""
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, Activation):
                module.train(mode)

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, value in self.model.named_parameters():
            if name.startswith("visual.") == (self.tower == "image") and name not in _FIXED:
                yield name, value


def _of_quantizer(name: str) -> bool:
    return any(part in f".{name}" for part in (".site.", ".project.", ".output.", ".products."))


def wrap(model: Any, tower: Tower, model_id: str, makers: Makers, kept: Collection[str] = ()) -> Wrapped:
    """Put quantizers into a tower of a model, in place.

    Args:
        model: An open_clip model of which nothing else is wanted.
        tower: The tower.
        model_id: Its id, for the error.
        makers: How quantizers are made.
        kept: Names of nodes in the graph that stay FP32.

    Raises:
        ExportError: The tower has no blocks of CLIP's own kind.
    """
    spots: list[Spot] = []
    attentions = {}
    for block in residual_blocks(model, tower, model_id, "training with quantization"):
        path, module = f"{block.name}.attn", block.module
        attention = attentions[path] = QuantizedAttention(module.attn, path, makers, kept)
        found: dict[Part, Site | None] = {"qkv": attention.project, "out_proj": attention.output}
        module.attn = attention
        parts: tuple[tuple[Part, str], ...] = (("fc1", "c_fc"), ("fc2", "c_proj"))
        for part, name in parts:
            layer = getattr(module.mlp, name)
            found[part] = site = make_site(f"{block.name}.mlp.{name}", layer.out_features, makers, kept)
            if site is not None:
                setattr(module.mlp, name, QuantizedLinear(layer, site))
        spots += [Spot(block, part, site) for part, site in found.items() if site is not None]
    return Wrapped(model, tower, tuple(spots), attentions)


def begin(wrapped: Wrapped, inputs: Iterator[Tensor], padding: Padding) -> None:
    """Give every quantizer its first range from the FP32 tower's activations and weights.

    What rounding a weight adds to a layer's output on average is taken out of its bias: the larger the mean of an input is beside its
    spread, the larger it is.

    Args:
        wrapped: The tower; its quantizers and biases are overwritten.
        inputs: Inputs of the tower, in batches.
        padding: Tells which tokens of a text count.
    """
    for observer in wrapped.observers:
        observer.watch()
    with torch.no_grad():
        for batch in inputs:
            read = rows_read(wrapped.model, padding, batch.cpu().numpy())
            for observer in wrapped.observers:
                observer.read = read
            wrapped.embed(batch)
        for observer in wrapped.observers:
            observer.begin()
        for spot in wrapped.spots:
            exact = weight_of(spot).clone()
            write_weight(spot, spot.site.weight.begin(exact))
            _correct_bias(spot, (spot.site.weight(weight_of(spot)) - exact) @ spot.site.reads.mean)


def weight_of(spot: Spot) -> Tensor:
    """Return the weight ``(out, in)`` that a site rounds, as it is trained, detached."""
    attention, layer = spot.block.module.attn, _layer(spot)
    weight: Tensor = attention.projection()[0] if layer is None else layer.weight
    return weight.detach()


def write_weight(spot: Spot, weight: Tensor) -> None:
    """Overwrite the weight that a site rounds."""
    attention, layer = spot.block.module.attn, _layer(spot)
    if layer is None:
        write(attention.original.in_proj_weight, weight / attention.scale[:, None])
    else:
        write(layer.weight, weight)


def _correct_bias(spot: Spot, error: Tensor) -> None:
    attention, layer = spot.block.module.attn, _layer(spot)
    bias = attention.original.in_proj_bias if layer is None else layer.bias
    write(bias, bias - (error / attention.scale if layer is None else error))


def unwrap(wrapped: Wrapped) -> dict[str, float]:
    """Take the quantizers off, in place, and leave what they computed in the tower: rounded weights, offsets in the biases.

    Returns:
        Offset of what each layer read, by its path, where there is one.
    """
    rounded = [(spot, spot.site.weight(weight_of(spot)).detach()) for spot in wrapped.spots]
    for spot, weight in rounded:
        write_weight(spot, weight)
    for spot in wrapped.spots:
        _restore(spot.block.module)
    offsets = {}
    for spot in wrapped.spots:
        quantizer = spot.site.reads.quantizer
        if quantizer.shifts:
            shift_input(spot.block, spot.part, quantizer.offset)
            offsets[spot.site.path] = float(quantizer.offset.detach())
    return offsets


def _layer(spot: Spot) -> torch.nn.Linear | None:
    """Return the linear layer of a wrapped block's part, None for the projection of attention, which is no module."""
    module = spot.block.module
    if spot.part == "qkv":
        return None
    layer: torch.nn.Linear = {
        "out_proj": lambda: module.attn.original.out_proj,
        "fc1": lambda: module.mlp.c_fc.original,
        "fc2": lambda: module.mlp.c_proj.original,
    }[spot.part]()
    return layer


def _restore(module: Any) -> None:
    module.attn = getattr(module.attn, "original", module.attn)
    for name in ("c_fc", "c_proj"):
        layer = getattr(module.mlp, name)
        setattr(module.mlp, name, getattr(layer, "original", layer))
