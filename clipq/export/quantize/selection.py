"""Which nodes of an observed tower one quantized form quantizes, and why the others not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipq.errors import ExportError, unknown_name
from clipq.export.quantize.attention import Product
from clipq.export.quantize.layers import Layer
from clipq.export.quantize.observe import Observed


@dataclass(frozen=True, slots=True)
class Selection:
    """What one quantized form quantizes.

    Attributes:
        layers: Layers with quantized weights and activations.
        products: Attention products with both inputs quantized.
        fp32: Why each other MatMul, Gemm and Conv is not quantized.
    """

    layers: tuple[Layer, ...]
    products: tuple[Product, ...]
    fp32: Mapping[str, str]

    @property
    def operators(self) -> dict[str, str]:
        """Names of the quantized nodes, each with its operator."""
        return {**{layer.name: layer.operator for layer in self.layers}, **{product.name: "MatMul" for product in self.products}}


def select(observed: Observed, keep: Mapping[str, str], *, attention: bool) -> Selection:
    """Return what is quantized of an observed tower when the nodes named in ``keep`` stay as they are, each for its reason.

    Raises:
        UsageError: A name in ``keep`` is no MatMul, Gemm or Conv of the tower.
        ExportError: Nothing is left to quantize, or attention is asked for and was not observed.
    """
    known = {*observed.kept, *(layer.name for layer in observed.layers)}
    for name in keep:
        if name not in known:
            raise unknown_name("node to keep", name, known)
    if attention and not observed.attention:
        raise ExportError("attention cannot be quantized", found="nobody observed its products", fix="Observe with attention=True.")
    layers = tuple(layer for layer in observed.layers if layer.name not in keep)
    products = tuple(product for product in observed.products if attention and product.name not in keep)
    if not layers and not products:
        raise ExportError(f"nothing is left to quantize in {observed.source}", found=f"{len(keep)} nodes to keep")
    selection = Selection(layers, products, {})
    return Selection(layers, products, {name: why for name, why in {**observed.kept, **keep}.items() if name not in selection.operators})
