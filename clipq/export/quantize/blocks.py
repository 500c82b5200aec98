"""A tower's blocks and their parts, by the names that PyTorch's modules have in the graph."""

from __future__ import annotations

import re
from collections.abc import Callable

from clipq.export.quantize.observe import Observed

# The innermost numbered block (open_clip's resblocks, timm's blocks, ResNet's layer1.0, Hugging Face's layer.0), or attention pooling.
_BLOCK = re.compile(r".*/(?:(?:resblocks|blocks?|layers?|layer\d+)\.\d+|attn_?pool)(?=/)")
_PARTS = {
    **dict.fromkeys(("project", "qkv", "in_proj", "kv", "q", "k", "v"), "qkv"),
    **dict.fromkeys(("out_proj", "proj"), "out_proj"),
    **dict.fromkeys(("c_fc", "fc1"), "fc1"),
    **dict.fromkeys(("c_proj", "fc2"), "fc2"),
}


def blocks_of(observed: Observed) -> dict[str, tuple[str, ...]]:
    """Return the nodes of each block that can be quantized, by the block's name, in graph order.

    A block is one residual block of a transformer, ResNet or ConvNeXt, such as ``/visual/transformer/resblocks.3``, or a pooling
    by attention; a layer outside of these is a block of its own, named by its module. Products of attention are among the nodes
    where they were observed.
    """
    return _grouped(observed, _block)


def parts_of(observed: Observed) -> dict[str, tuple[str, ...]]:
    """Return the nodes of each part of each block, by ``<block>:<part>``, in graph order.

    Parts of a transformer's block are ``qkv``, ``attention`` (its two products), ``out_proj``, ``fc1`` and ``fc2`` (before and
    behind the activation function), whatever the model's source calls them; any other part has the name of its module. What has
    no module of its own inside the block bears the name of the block alone.
    """
    products = {product.name for product in observed.products}
    return _grouped(observed, lambda name: ":".join(filter(None, (_block(name), "attention" if name in products else _part(name)))))


def _grouped(observed: Observed, group: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    names = {layer.name for layer in observed.layers} | {product.name for product in observed.products}
    groups: dict[str, tuple[str, ...]] = {}
    for node in observed.skeleton.graph.node:
        if node.name in names:
            key = group(node.name)
            groups[key] = (*groups.get(key, ()), node.name)
    return groups


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found.group() if found else name.rpartition("/")[0] or name


def _part(name: str) -> str:
    module = name[len(_block(name)) :].rpartition("/")[0].rpartition("/")[2]
    return _PARTS.get(module, module)
