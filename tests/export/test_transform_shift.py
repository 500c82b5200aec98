"""Shift: offsets taken from what linear layers read, where they go, and how they are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toy_clip import embed, inputs_of, random_clip, relative_difference

from clipq.export.quantize.ptq import scheme_of
from clipq.export.quantize.scheme import Scheme
from clipq.export.transform.blocks import PARTS, residual_blocks
from clipq.export.transform.capture import Seen, capture
from clipq.export.transform.shift import Scaled, Shifted, equalize, offsets_of, scale_activation, shift, shift_input
from clipq.methods import METHODS, W8A8

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.2}},
}


def _captured(model: Any, tower: str) -> Any:
    blocks = residual_blocks(model, tower, "toy", "test")
    return blocks, capture(model, tower, blocks, [inputs_of(tower, 8, seed) for seed in range(3)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_any_offset_leaves_the_function(form: str, tower: str) -> None:
    """One offset per channel and then one for all, on every layer, change no embedding."""
    model = random_clip(**FORMS[form])
    before, generator = embed(model, tower, inputs_of(tower)), torch.Generator().manual_seed(0)
    for block in residual_blocks(model, tower, "toy", "test"):
        for part in PARTS:
            shift_input(block, part, torch.randn(block.weight(part).shape[1], generator=generator))
            shift_input(block, part, torch.tensor(0.7))
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-5


@pytest.mark.parametrize("part", PARTS)
def test_what_a_layer_reads_is_shifted(part: Any) -> None:
    """Behind ``shift_input`` the layer reads its former input minus the offset, and nothing else changes its input."""
    model = random_clip()
    blocks, before = _captured(model, "image")
    offset = torch.linspace(-2, 2, blocks[0].weight(part).shape[1])
    shift_input(blocks[0], part, offset)
    _, after = _captured(model, "image")
    for key, seen in before.items():
        expected = seen.rows - offset if key == (blocks[0].name, part) else seen.rows
        torch.testing.assert_close(after[key].rows, expected, rtol=1e-4, atol=1e-4)


def test_only_the_activation_function_pays() -> None:
    """A second offset joins the first; the other layers get no operator."""
    model = random_clip()
    block = residual_blocks(model, "image", "toy", "test")[0]
    for part in PARTS:
        shift_input(block, part, torch.tensor(0.25))
        shift_input(block, part, torch.tensor(0.5))
    added = [module for module in model.modules() if isinstance(module, Shifted)]
    assert [float(module.offset) for module in added] == [0.75]
    assert block.module.mlp.gelu.shift is added[0]


def test_offsets_by_hand() -> None:
    """The middle of -0.5 and 3.5 is 1.5, of 0 and 1 it is 0.5; of all channels, -0.5 and 3.5 again."""
    rows = torch.stack([torch.linspace(-0.5, 3.5, 1001), torch.linspace(0, 1, 1001)], dim=1)
    rows[0, 0], rows[1000, 0] = -4.0, 8.0  # outside of the inner 99.8 %
    found = offsets_of(Seen(rows, torch.tensor([-0.5, 0.0]), torch.tensor([3.5, 1.0])))
    assert next(iter(found)) == "none"
    assert found["none"].tolist() == [0, 0]
    assert found["channel"].tolist() == [1.5, 0.5]
    assert found["tensor"].tolist() == [1.5, 1.5]
    np.testing.assert_allclose(found["inner"], [2.0, 0.5], atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ["shift, scale", "scale, shift", "scale, shift, scale, shift"])
def test_scales_behind_the_activation_function_leave_the_function(form: str, order: str) -> None:
    """In any order and number, scales and shifts behind GELU change no embedding, and become one Mul and one Sub."""
    model = random_clip(**FORMS[form])
    before, generator = embed(model, "image", inputs_of("image")), torch.Generator().manual_seed(0)
    for block in residual_blocks(model, "image", "toy", "test"):
        channels = block.weight("fc2").shape[1]
        for step in order.split(", "):
            if step == "scale":
                scale_activation(block, torch.rand(channels, generator=generator) * 3 + 0.1)
            else:
                shift_input(block, "fc2", torch.randn(channels, generator=generator))
        assert [name for name, _ in block.module.mlp.gelu.named_children()] == ["function", "scale", "shift"]
    assert relative_difference(before, embed(model, "image", inputs_of("image"))) < 1e-5


def test_what_fc2_reads_is_scaled_and_then_shifted() -> None:
    """By hand: (x - 2) / 4 of every channel, whether it was shifted or scaled first."""
    for first_shift in (True, False):
        model = random_clip()
        blocks, before = _captured(model, "image")
        channels = blocks[0].weight("fc2").shape[1]
        if first_shift:
            shift_input(blocks[0], "fc2", torch.tensor(2.0))
        scale_activation(blocks[0], torch.full((channels,), 4.0))
        if not first_shift:
            shift_input(blocks[0], "fc2", torch.tensor(0.5))
        after = _captured(model, "image")[1][blocks[0].name, "fc2"].rows
        torch.testing.assert_close(after, (before[blocks[0].name, "fc2"].rows - 2) / 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", METHODS["equalize"].bits)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_equalizing_is_exact_and_never_worse_than_shifting(tower: str, bits: str) -> None:
    """Embeddings stay; ``fc2`` alone differs from what shift chooses, and its error there is at most as large."""
    model, shifted = random_clip(), random_clip()
    before = embed(model, tower, inputs_of(tower))
    blocks, seen = _captured(model, tower)
    said = equalize(blocks, seen, METHODS["equalize"].bits[bits])
    others, seen_there = _captured(shifted, tower)
    shifts = shift(others, seen_there, METHODS["equalize"].bits[bits])["layers"]
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-4
    for name, chosen in said["layers"].items():
        if name.endswith(":fc2"):
            assert chosen["error_ratio"] <= shifts[name]["error_ratio"] + 1e-6
        else:
            assert chosen == shifts[name]
    assert said["added_operators"].get("Mul", 0) == sum(isinstance(module, Scaled) for module in model.modules())


def test_channels_of_unlike_sizes_behind_gelu_are_balanced() -> None:
    """One channel in eight is fifty times as large behind GELU: shifting leaves the others few levels, equalizing does not."""
    ratios = {}
    for name, transform in {"shift": shift, "equalize": equalize}.items():
        model = random_clip()
        for block in residual_blocks(model, "image", "toy", "test"):
            block.weight("fc1")[::8].mul_(50)
            block.weight("fc2")[:, ::8].div_(50)
        blocks, seen = _captured(model, "image")
        ratios[name] = [chosen["error_ratio"] for layer, chosen in transform(blocks, seen, W8A8)["layers"].items() if "fc2" in layer]
    assert max(ratios["equalize"]) < 0.1 * min(ratios["shift"])


@pytest.mark.parametrize("tower", ["image", "text"])
def test_shifting_is_exact_and_says_what_it_chose(tower: str) -> None:
    """Embeddings stay; no layer's error grows; the operators that were added are counted."""
    model = random_clip()
    before = embed(model, tower, inputs_of(tower))
    blocks, seen = _captured(model, tower)
    said = shift(blocks, seen, W8A8)
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-4
    assert list(said["layers"]) == [f"{block.name}:{part}" for block in blocks for part in PARTS]
    assert all(0 < chosen["error_ratio"] <= 1 for chosen in said["layers"].values())
    assert said["added_operators"].get("Sub", 0) == sum(isinstance(module, Shifted) for module in model.modules())


def test_one_sided_inputs_are_centred() -> None:
    """What GELU gives lies on one side: centred, the range around zero is half as wide, and most of the error of W8A8 goes."""
    model = random_clip()
    for block in residual_blocks(model, "image", "toy", "test"):
        block.bias("fc1").add_(2.0)
    blocks, seen = _captured(model, "image")
    key = (blocks[0].name, "fc2")
    assert seen[key].lowest.min() > -0.2
    said = shift(blocks, seen, W8A8)["layers"][f"{key[0]}:{key[1]}"]
    assert said["offset"] != "none"
    assert said["error_ratio"] < 0.5
    after = _captured(model, "image")[1][key]
    assert after.largest(torch.zeros(1)).max() < 0.6 * seen[key].largest(torch.zeros(1)).max()


def test_the_engine_corrects_its_biases() -> None:
    """A large offset times the rounding of a weight is a constant error: the scheme takes it out, at all bits."""
    for bits in METHODS["shift"].bits.values():
        assert scheme_of(METHODS["shift"], bits, "percentile") == Scheme("percentile", bits, corrected=True)
        assert scheme_of(METHODS["equalize"], bits, "percentile") == Scheme("mse", bits, rounding="gptq", corrected=True)


def test_dead_inputs_are_safe() -> None:
    """A layer that reads zeros alone is left as it is, without NaN."""
    model = random_clip()
    block = model.visual.transformer.resblocks[0]
    block.ln_1.weight.zero_()
    block.ln_1.bias.zero_()
    blocks, seen = _captured(model, "image")
    before = embed(model, "image", inputs_of("image"))
    said = shift(blocks, seen, W8A8)["layers"]["visual.transformer.resblocks.0:qkv"]
    assert said == {"offset": "none", "error_ratio": 1.0, "alpha": None}
    assert relative_difference(before, embed(model, "image", inputs_of("image"))) < 1e-5
