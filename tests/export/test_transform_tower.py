"""Transforms by name: exact on every model that has the blocks, one line for those that have not, and the graphs that follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clipq.artifact import Bundle
from clipq.engines.torch.checkpoint import load_checkpoint
from clipq.errors import ExportError, UsageError
from clipq.export.golden import make_golden
from clipq.export.pipeline import export_bundle
from clipq.export.transform.tower import copy_for, transform_tower
from clipq.recipe import Recipe

MODELS = Path(__file__).resolve().parents[2] / ".." / "shared" / "models"
NAMES = ("rotation", "shift", "w8a8-smoothquant", "w4a4-smoothquant")
TOWERS = ("image", "text")


def _assert_exact(model_id: str, tower: Any, name: str) -> None:
    checkpoint = load_checkpoint(model_id)
    golden = make_golden(checkpoint)
    changed, said = transform_tower(checkpoint, tower, name, lambda: iter([golden.inputs(tower)] * 3))
    before, after = golden.outputs(tower), changed.embed(tower, golden.inputs(tower))
    assert np.abs(before - after).max() < 1e-4 * np.abs(before).max()
    np.testing.assert_array_equal(checkpoint.embed(tower, golden.inputs(tower)), before)
    json.dumps(said)


@pytest.mark.parametrize("model_id", ["demo:under", "demo:over"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", NAMES)
def test_demo_models_compute_the_same(model_id: str, tower: str, name: str) -> None:
    """Before and after differ by less than 1e-4 of the largest output, and the model that was given is untouched."""
    _assert_exact(model_id, tower, name)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="the photograph models are not beside the project")
@pytest.mark.parametrize("model", ["photo-base", "photo-over", "photo-under"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", ["rotation", "shift", "w8a8-smoothquant"])
def test_trained_models_compute_the_same(model: str, tower: str, name: str) -> None:
    """The same on models trained on photographs."""
    _assert_exact(f"local-dir:{(MODELS / model).resolve()}", tower, name)


@pytest.mark.parametrize(
    ("kind", "tower", "found"),
    [
        ("resnet", "image", "class ModifiedResNet"),
        ("convnext", "image", "class TimmModel"),
        ("siglip", "image", "class TimmModel"),
    ],
)
def test_towers_without_blocks_are_refused(tiny_checkpoint: Callable[[str], str], kind: str, tower: Any, found: str) -> None:
    """One line names tower, model, what was found and what to use instead."""
    checkpoint = load_checkpoint(tiny_checkpoint(kind))
    for name in NAMES:
        with pytest.raises(ExportError, match=rf"in the {tower} tower of local-dir:.*{kind}.*; found a tower of {found}.* Use percentile"):
            transform_tower(checkpoint, tower, name, lambda: iter(()))


def test_pooling_by_attention_is_not_rotated(tiny_checkpoint: Callable[[str], str]) -> None:
    """CoCa's image tower has the blocks but reads the stream in another way: no rotation, one line."""
    with pytest.raises(ExportError, match=r"rotation has no blocks to work on in the image tower.*pooling by attention"):
        transform_tower(load_checkpoint(tiny_checkpoint("coca")), "image", "rotation", lambda: iter(()))


@pytest.mark.parametrize(("kind", "tower"), [("coca", "text"), ("siglip", "text"), ("resnet", "text")])
@pytest.mark.parametrize("name", ["rotation", "shift", "w8a8-smoothquant"])
def test_text_towers_of_other_families(tiny_checkpoint: Callable[[str], str], kind: str, tower: Any, name: str) -> None:
    """CoCa's class token at the end, SigLIP's pooling and bias, and a text tower beside a ResNet have CLIP's blocks and stay exact."""
    _assert_exact(tiny_checkpoint(kind), tower, name)


def test_unknown_transforms_are_refused(tiny_checkpoint: Callable[[str], str]) -> None:
    """A name that nobody knows, or bits that SmoothQuant does not come in."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    for name in ("spin", "w4a32-smoothquant"):
        with pytest.raises(UsageError, match=f"unknown transform '{name}'"):
            transform_tower(checkpoint, "image", name, lambda: iter(()))


def test_the_other_tower_is_shared(tiny_checkpoint: Callable[[str], str]) -> None:
    """A copy for one tower has the other's tensors, and neither hooks nor tensors of its own tower."""
    model = load_checkpoint(tiny_checkpoint("vit")).model
    handle = model.visual.ln_pre.register_forward_hook(lambda *_: None)
    image, text = copy_for(model, "image"), copy_for(model, "text")
    assert image.transformer is model.transformer
    assert image.visual.conv1.weight is not model.visual.conv1.weight
    assert not image.visual.ln_pre._forward_hooks
    assert text.visual is model.visual
    assert text.token_embedding.weight is not model.token_embedding.weight
    assert model.visual.ln_pre._forward_hooks
    handle.remove()


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny ViT with its image tower in all four forms, with patch tokens."""
    engines = ("ort-w8a8-rotation", "ort-w8a8-shift", "ort-w8a8-smoothquant", "ort-w8a8-equalize")
    recipe = Recipe(model=tiny_checkpoint("vit"), engines=engines, patch_tokens=True, calib="synthetic:scenes:calibration", calib_n=16)
    return export_bundle(recipe, tmp_path_factory.mktemp("transforms") / "bundle")


def _nodes(bundle: Bundle, kind: str) -> list[onnx.NodeProto]:
    return list(onnx.load(str(bundle.file(f"towers/image.{kind}.onnx"))).graph.node)


@pytest.mark.parametrize("method", ["rotation", "shift", "smoothquant", "equalize"])
def test_graphs_say_how_they_were_made(bundle: Bundle, method: str) -> None:
    """The FP32 graph in between passes the parity gate, patch tokens too, and its facts stand with the engine."""
    said = json.loads(bundle.file(f"engines/ort-w8a8-{method}/engine.json").read_text())["graphs"]
    (name,) = [name for name in said if ".fp32-" in name]
    assert said[name]["transform"] == method
    for figures in (said[name]["parity"], said[name]["parity"]["patches"]):
        assert figures["max_abs_error"] < 1e-4 * figures["max_abs_output"]


def test_the_rotation_itself_stays_fp32(bundle: Bundle) -> None:
    """The one product that makes the rotated stream reads floats; all others of the blocks are INT8."""
    nodes = _nodes(bundle, "w8a8-rotation")
    (turn,) = [node for node in nodes if "stream_rotation" in node.name and node.op_type == "MatMul"]
    assert not any(name.endswith(".dequantized") for name in turn.input)
    others = [node for node in nodes if node.op_type == "MatMul" and "resblocks" in node.name and "/attn/MatMul" not in node.name]
    assert len([node for node in others if node.input[1].endswith("weight.dequantized")]) == 8
    assert sum(node.op_type == "LayerNormalization" for node in nodes) == sum(
        node.op_type == "LayerNormalization" for node in _nodes(bundle, "fp32-shift")
    )


@pytest.mark.parametrize(("kind", "method"), [("fp32-shift", "shift"), ("fp32-w8a8-equalize", "equalize")])
def test_operators_stand_only_behind_activation_functions(bundle: Bundle, kind: str, method: str) -> None:
    """There is a Sub, and for equalize a Mul, where one was chosen, and nowhere else one more than SmoothQuant's graph has."""
    said = json.loads(bundle.file(f"engines/ort-w8a8-{method}/engine.json").read_text())["graphs"]
    (facts,) = [facts for name, facts in said.items() if f".{kind}" in name]
    assert "Mul" not in facts["added_operators"] or method == "equalize"
    for operator in ("Sub", "Mul"):
        nodes, plain = ([node for node in _nodes(bundle, one) if node.op_type == operator] for one in (kind, "fp32-w8a8-smoothquant"))
        added = sum("/patches/" not in node.name for node in nodes) - sum("/patches/" not in node.name for node in plain)
        assert added == facts["added_operators"].get(operator, 0)
