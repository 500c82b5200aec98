"""SmoothQuant: scales, where they are folded, how alpha is chosen, and the error it is chosen by."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_clip import embed, inputs_of, random_clip, relative_difference

from clipq.export.quantize.weights import quantize_weight
from clipq.export.transform.blocks import residual_blocks
from clipq.export.transform.capture import capture
from clipq.export.transform.error import fake_quantized, output_error, percentile_of, rounded_weight
from clipq.export.transform.smooth import ALPHAS, FOLDABLE, scale_input, smooth, smoothing_scale
from clipq.methods import BITS, W8A8

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.2}},
}


def _captured(model: Any, tower: str) -> Any:
    blocks = residual_blocks(model, tower, "toy", "test")
    return blocks, capture(model, tower, blocks, [inputs_of(tower, 8, seed) for seed in range(3)])


def test_scales_by_hand() -> None:
    """max|x|^a / max|w|^(1-a), divided by the geometric mean: sqrt(16 / 1) = 4 and sqrt(1 / 4) = 1/2 have the mean sqrt 2."""
    scale = smoothing_scale(torch.tensor([16.0, 1.0]), torch.tensor([[1.0, -4.0], [0.5, 2.0]]), 0.5)
    np.testing.assert_allclose(scale.numpy(), [4 / 2**0.5, 0.5 / 2**0.5], rtol=1e-6)


def test_the_ends_of_alpha() -> None:
    """1 makes all channels of the input equally large, 0 all channels of the weight."""
    largest, weight = torch.tensor([3.0, 9.0, 0.5]), torch.tensor([[1.0, 2.0, 8.0]])
    inputs = largest / smoothing_scale(largest, weight, 1.0)
    weights = (weight * smoothing_scale(largest, weight, 0.0)).abs().amax(dim=0)
    np.testing.assert_allclose(inputs / inputs[0], 1, rtol=1e-6)
    np.testing.assert_allclose(weights / weights[0], 1, rtol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_dead_channels_keep_their_size(alpha: float) -> None:
    """A channel without input, or without weight, has scale 1; all dead is all ones; an enormous one stays within the limits."""
    scale = smoothing_scale(torch.tensor([0.0, 2.0, 5.0]), torch.tensor([[1.0, 0.0, 3.0]]), alpha)
    assert scale[:2].tolist() == [1.0, 1.0]
    assert smoothing_scale(torch.zeros(3), torch.ones(2, 3), alpha).tolist() == [1.0] * 3
    wild = smoothing_scale(torch.tensor([1e30, 1e-30, 1.0]), torch.tensor([[1e-20, 1e20, 1.0]]), alpha)
    assert wild.isfinite().all()
    assert (wild >= 1e-4).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_any_scale_leaves_the_function(form: str, tower: str) -> None:
    """Random scales on every layer that takes one change no embedding."""
    model = random_clip(**FORMS[form])
    before, generator = embed(model, tower, inputs_of(tower)), torch.Generator().manual_seed(0)
    for block in residual_blocks(model, tower, "toy", "test"):
        for part in FOLDABLE:
            scale_input(block, part, torch.rand(block.width, generator=generator) * 3 + 0.1)
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-5


def test_what_a_layer_reads_is_divided() -> None:
    """Behind ``scale_input`` the layer reads its former input over the scale."""
    model = random_clip()
    blocks, before = _captured(model, "image")
    scale = torch.linspace(0.5, 4, 48)
    for part in FOLDABLE:
        scale_input(blocks[1], part, scale)
    _, after = _captured(model, "image")
    for part in FOLDABLE:
        key = (blocks[1].name, part)
        torch.testing.assert_close(after[key].rows, before[key].rows / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_smoothing_is_exact_and_says_what_it_chose(bits: str, tower: str) -> None:
    """Embeddings stay; every foldable layer has an alpha of the grid or none, and its error never grows."""
    model = random_clip()
    before = embed(model, tower, inputs_of(tower))
    blocks, seen = _captured(model, tower)
    said = smooth(blocks, seen, BITS[bits])
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-4
    assert said["bits"] == bits
    assert list(said["layers"]) == [f"{block.name}:{part}" for block in blocks for part in FOLDABLE]
    for chosen in said["layers"].values():
        assert chosen["alpha"] is None or chosen["alpha"] in ALPHAS
        assert 0 < chosen["error_ratio"] <= 1


def test_an_outlier_moves_into_the_weight() -> None:
    """A channel 50 times as large as the others makes alpha matter, and most of the error goes."""
    model = random_clip()
    outlier = torch.ones(48)
    outlier[7] = 1 / 50
    for block in residual_blocks(model, "image", "toy", "test"):
        scale_input(block, "qkv", outlier)
    blocks, seen = _captured(model, "image")
    assert smooth(blocks[:1], seen, W8A8)["layers"]["visual.transformer.resblocks.0:qkv"]["error_ratio"] < 0.05


def test_the_chosen_alpha_is_the_best() -> None:
    """Every alpha's error, computed once more in numpy from the original layer, is at least that of the chosen one."""
    model = random_clip()
    blocks, seen = _captured(copy.deepcopy(model), "image")
    block, one = blocks[0], seen[blocks[0].name, "qkv"]
    weight, largest = block.weight("qkv").clone().numpy(), torch.maximum(one.lowest.abs(), one.highest.abs()).numpy()
    errors = {}
    for alpha in ALPHAS:
        raw = largest.astype(np.float64) ** alpha / np.abs(weight).max(axis=0).astype(np.float64) ** (1 - alpha)
        scale = (raw / np.exp(np.log(raw).mean())).astype(np.float32)
        rows, scaled = one.rows.numpy() / scale, weight * scale
        errors[alpha] = sum(_slow_error(rows, scaled, clip, 127) for clip in (_slow_percentile(rows), (largest / scale).max()))
    chosen = smooth([block], seen, W8A8)["layers"][f"{block.name}:qkv"]["alpha"]
    assert errors[chosen] <= min(errors.values()) * 1.01


def _slow_percentile(rows: np.ndarray) -> float:
    values = np.sort(np.abs(rows).ravel())
    return float(values[round(len(values) * 0.9999) - 1])


def _slow_error(rows: np.ndarray, weight: np.ndarray, clip: float, limit: int) -> float:
    integers, scales = quantize_weight(weight, 0, limit)
    inputs = np.clip(np.rint(rows / (clip / limit)), -limit, limit) * (clip / limit)
    return float(np.mean((inputs @ (integers * scales[:, None]).T - rows @ weight.T) ** 2))


def test_output_error_by_a_second_way() -> None:
    """The error of a layer in integers is what numpy and the engines' own rounding of weights give."""
    rng = np.random.default_rng(0)
    rows, weight = rng.standard_normal((50, 12)).astype(np.float32), rng.standard_normal((7, 12)).astype(np.float32)
    for bits in ("W8A8", "W4A8", "W4A4"):
        limits = BITS[bits].weight_limit, BITS[bits].activation_limit
        integers, scales = quantize_weight(weight, 0, limits[0])
        np.testing.assert_allclose(rounded_weight(torch.from_numpy(weight), limits[0]), integers * scales[:, None], rtol=1e-5, atol=1e-7)
        exact, clips = torch.from_numpy(rows @ weight.T), (torch.tensor(2.0), torch.tensor(3.0))
        found = output_error(torch.from_numpy(rows), torch.from_numpy(weight), exact, clips, BITS[bits])
        slow = 0.0
        for clip in (2.0, 3.0):
            inputs = np.clip(np.rint(rows / (clip / limits[1])), -limits[1], limits[1]) * (clip / limits[1])
            slow += float(np.mean((inputs @ (integers * scales[:, None]).T - rows @ weight.T) ** 2))
        assert found == pytest.approx(slow, rel=1e-3)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.sampled_from([7, 31, 127]))
@settings(max_examples=50, deadline=None)
def test_rounding_stays_within_half_a_step(values: list[float], limit: int) -> None:
    """Nothing inside the clip moves by more than half a step, nothing leaves it, and twice rounded is once rounded."""
    tensor = torch.tensor(values)
    clip = tensor.abs().max()
    rounded = fake_quantized(tensor, clip, limit)
    assert ((rounded - tensor).abs() <= clip / limit * 0.501 + 1e-30).all()
    assert rounded.abs().max() <= clip * 1.0001
    torch.testing.assert_close(fake_quantized(rounded, clip, limit), rounded)


def test_a_clip_of_zero_is_safe() -> None:
    """A layer that read only zeros gives zeros, not NaN."""
    assert fake_quantized(torch.zeros(3), torch.tensor(0.0), 127).tolist() == [0.0] * 3
    assert percentile_of(torch.zeros(5)) == 0
