"""One pass of calibration, many graphs: what is observed, kept and grouped, and that writing changes nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_towers import embed, inputs_of, optimized_operators

from clipq.errors import ExportError, UsageError
from clipq.export.quantize.blocks import blocks_of, parts_of
from clipq.export.quantize.observe import Observed, observe
from clipq.export.quantize.static import quantize_static, write_int8
from clipq.files import sha256_file

Towers = Callable[[str, str], Path]


@pytest.fixture
def observed(towers: Towers, tmp_path: Path) -> Observed:
    """Return what 8 random images show of a ViT, attention too."""
    source = towers("vit", "image")
    return observe(source, [inputs_of(source, 8)], tmp_path, attention=True)


def test_two_steps_are_one(towers: Towers, tmp_path: Path) -> None:
    """Observing and writing give the very file and facts of quantize_static; the scratch folder is left empty."""
    source = towers("resnet", "image")
    whole = quantize_static(source, tmp_path / "whole.onnx", [inputs_of(source, 8)], "mse", mha="int8")
    (tmp_path / "scratch").mkdir()
    seen = observe(source, [inputs_of(source, 8)], tmp_path / "scratch", attention=True)
    assert write_int8(seen, tmp_path / "parts.onnx", "mse", mha="int8") == whole
    assert sha256_file(tmp_path / "whole.onnx") == sha256_file(tmp_path / "parts.onnx")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_writing_changes_nothing(observed: Observed, tmp_path: Path) -> None:
    """After writing other forms, and after pickling, the first form comes out byte for byte again."""
    write_int8(observed, tmp_path / "first.onnx", "minmax")
    before = observed.skeleton.SerializeToString(), {name: histogram.counts.copy() for name, histogram in observed.histograms.items()}
    write_int8(observed, tmp_path / "other.onnx", "entropy", mha="int8", keep={observed.layers[0].name: "asked"})
    write_int8(observed, tmp_path / "second.onnx", "minmax")
    write_int8(pickle.loads(pickle.dumps(observed)), tmp_path / "third.onnx", "minmax")
    assert len({sha256_file(tmp_path / f"{name}.onnx") for name in ("first", "second", "third")}) == 1
    assert sha256_file(tmp_path / "other.onnx") != sha256_file(tmp_path / "first.onnx")
    assert observed.skeleton.SerializeToString() == before[0]
    assert all((observed.histograms[name].counts == counts).all() for name, counts in before[1].items())


def test_observed_holds_weights_once(observed: Observed) -> None:
    """The skeleton has no weight of a layer, so a copy of it is small."""
    layers = sum(layer.weight.nbytes for layer in observed.layers)
    assert observed.skeleton.ByteSize() < observed.source_bytes - layers + 20_000


def test_kept_nodes_are_untouched(observed: Observed, tmp_path: Path) -> None:
    """A kept node reads its FP32 weight and activation, is reported with its reason, and the others stay INT8."""
    name = "/visual/transformer/resblocks.1/mlp/c_proj/MatMul"
    product = observed.products[0].name
    facts = write_int8(observed, tmp_path / "graph.onnx", "minmax", mha="int8", keep={name: "damages ece15", product: "asked"})
    nodes = {node.name: node for node in onnx.load(str(tmp_path / "graph.onnx")).graph.node}
    original = {node.name: node for node in observed.skeleton.graph.node}
    for kept in (name, product):
        assert list(nodes[kept].input) == list(original[kept].input)
    assert facts["fp32"][name] == "damages ece15"
    assert facts["fp32"][product] == "asked"
    assert len(facts["quantized"]) == len(observed.layers) + len(observed.products) - 2
    kernels = optimized_operators(tmp_path / "graph.onnx")
    assert kernels["MatMulIntegerToFloat"] + kernels["QLinearMatMul"] == len(facts["quantized"])


def test_keeping_almost_all_is_almost_fp32(observed: Observed, towers: Towers, tmp_path: Path) -> None:
    """The fewer nodes are quantized, the nearer the embedding: one part alone errs less than everything."""
    source = towers("vit", "image")
    inputs = inputs_of(source, 8, seed=1)
    parts = parts_of(observed)
    alone = {node: "" for part, nodes in list(parts.items())[1:] for node in nodes}
    errors = []
    for keep in ({}, alone):
        write_int8(observed, tmp_path / "graph.onnx", "minmax", mha="int8", keep=keep)
        errors.append(np.abs(embed(tmp_path / "graph.onnx", inputs) - embed(source, inputs)).max())
    assert 0 < errors[1] < 0.7 * errors[0]


def test_what_cannot_be_kept(observed: Observed, towers: Towers, tmp_path: Path) -> None:
    """An unknown name gets the nearest one; nothing left, or attention never observed, is an error; nothing is written."""
    with pytest.raises(UsageError, match=r"unknown node to keep.*resblocks\.0/mlp/c_fc/MatMul"):
        write_int8(observed, tmp_path / "graph.onnx", "minmax", keep={"/visual/transformer/resblocks.0/mlp/c_fc/MatMull": ""})
    with pytest.raises(ExportError, match="nothing is left to quantize"):
        write_int8(observed, tmp_path / "graph.onnx", "minmax", keep={layer.name: "" for layer in observed.layers})
    without = observe(towers("vit", "image"), [inputs_of(towers("vit", "image"), 2)], tmp_path)
    with pytest.raises(ExportError, match="nobody observed its products"):
        write_int8(without, tmp_path / "graph.onnx", "minmax", mha="int8")
    assert list(tmp_path.iterdir()) == []


BLOCKS = {
    ("vit", "image"): ["/visual/transformer/resblocks.0", "/visual/transformer/resblocks.1"],
    ("vit", "text"): ["/transformer/resblocks.0", "/transformer/resblocks.1"],
    ("coca", "image"): ["/visual/transformer/resblocks.0", "/visual/transformer/resblocks.1", "/visual/attn_pool"],
    ("siglip", "image"): [*(f"/visual/trunk/blocks/blocks.{index}" for index in range(6)), "/visual/trunk/attn_pool"],
    ("resnet", "image"): ["/visual/conv2", "/visual/conv3", *(f"/visual/layer{i}/layer{i}.0" for i in range(1, 5)), "/visual/attnpool"],
}


@pytest.mark.parametrize(("family", "tower"), BLOCKS)
def test_blocks_of_each_family(towers: Towers, family: str, tower: str, tmp_path: Path) -> None:
    """Blocks have the names of the modules, in graph order; blocks and parts hold every candidate once."""
    source = towers(family, tower)
    seen = observe(source, [inputs_of(source, 2)], tmp_path, attention=True)
    candidates = [layer.name for layer in seen.layers] + [product.name for product in seen.products]
    assert list(blocks_of(seen)) == BLOCKS[family, tower]
    for groups in (blocks_of(seen), parts_of(seen)):
        assert sorted(name for nodes in groups.values() for name in nodes) == sorted(candidates)
    assert all(part.partition(":")[0] in blocks_of(seen) for part in parts_of(seen))


@pytest.mark.parametrize(("family", "block"), [("vit", "/visual/transformer/resblocks.1"), ("siglip", "/visual/trunk/blocks/blocks.1")])
def test_parts_have_one_name_in_every_family(towers: Towers, family: str, block: str, tmp_path: Path) -> None:
    """open_clip's and timm's transformer blocks have the same five parts."""
    source = towers(family, "image")
    parts = parts_of(observe(source, [inputs_of(source, 2)], tmp_path, attention=True))
    found = {part.partition(":")[2]: len(nodes) for part, nodes in parts.items() if part.startswith(f"{block}:")}
    assert found == {"qkv": 1, "attention": 2, "out_proj": 1, "fc1": 1, "fc2": 1}


def test_blocks_of_a_convnext(towers: Towers, tmp_path: Path) -> None:
    """A ConvNeXt's blocks are those of its stages, and each downsampling stands alone."""
    source = towers("convnext", "image")
    blocks = blocks_of(observe(source, [inputs_of(source, 2)], tmp_path))
    assert {name: len(nodes) for name, nodes in blocks.items() if "stages.1" in name} == {
        "/visual/trunk/stages/stages.1/downsample/downsample.1": 1,
        "/visual/trunk/stages/stages.1/blocks/blocks.0": 3,
        "/visual/trunk/stages/stages.1/blocks/blocks.1": 3,
    }
