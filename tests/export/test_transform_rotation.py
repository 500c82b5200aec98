"""Rotation: the matrices, what they do to a tower, and that the tower computes the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from toy_clip import embed, inputs_of, random_clip, relative_difference

from clipq.export.transform.blocks import residual_blocks
from clipq.export.transform.hadamard import hadamard, head_rotation, mean_keeping_rotation
from clipq.export.transform.rotate import rotate

ORDERS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 44, 48, 60, 64, 76, 96, 160, 192, 256)
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.2}},
    "mean of patches": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "no first norm": {"vision": {"no_ln_pre": True}},
    "projection with a bias": {"text": {"proj_bias": True}},
    "no projection": {"text": {"proj_type": "none"}},
    "odd widths": {"vision": {"width": 54, "head_width": 18}, "text": {"width": 30, "heads": 3}},
}


@pytest.mark.parametrize("order", ORDERS)
def test_hadamard_matrices(order: int) -> None:
    """Entries are 1 and -1, rows are orthogonal, the first row and column are ones."""
    matrix = hadamard(order)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))
    assert (matrix[0] == 1).all()
    assert (matrix[:, 0] == 1).all()


def test_hadamard_agrees_with_scipy() -> None:
    """At powers of two it is Sylvester's matrix, as scipy builds it."""
    for order in (2, 8, 64):
        np.testing.assert_array_equal(hadamard(order), scipy.linalg.hadamard(order))


@pytest.mark.parametrize("order", [0, 3, 6, 10, 14, 18, 22, 92])
def test_orders_without_a_construction(order: int) -> None:
    """No Hadamard matrix has such an order, or (92) none of ours."""
    assert hadamard(order) is None


@pytest.mark.parametrize("width", [384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1664])
def test_widths_of_clip_have_hadamard_matrices(width: int) -> None:
    """Every width of CLIP's towers is reached, so that no channel keeps more than a small share of itself."""
    matrix = hadamard(width)
    assert matrix is not None
    assert np.array_equal(matrix[1] @ matrix.T, width * np.eye(width)[1])


@pytest.mark.parametrize("width", [1, 2, 12, 30, 54, 64, 96])
def test_rotation_keeps_the_mean(width: int) -> None:
    """It is orthogonal and maps the ones vector to itself, whether or not there is a Hadamard matrix; the same every time."""
    rotation = mean_keeping_rotation(width)
    np.testing.assert_allclose(rotation.matrix @ rotation.matrix.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(rotation.matrix @ np.ones(width), np.ones(width), atol=1e-12)
    np.testing.assert_array_equal(rotation.matrix, mean_keeping_rotation(width).matrix)
    assert rotation.to_json()["width"] == width


def test_rotation_by_hand() -> None:
    """At width 2, signs (1, -1) swap the two channels and (1, 1) leave them: the only two rotations that keep the mean."""
    matrix = mean_keeping_rotation(2).matrix
    assert any(np.allclose(matrix, expected) for expected in (np.eye(2), np.eye(2)[::-1]))


def test_rotation_is_flat() -> None:
    """No entry is more than four times as large as those of a perfectly flat matrix."""
    assert mean_keeping_rotation(256).largest < 4
    assert np.abs(mean_keeping_rotation(256).matrix).max() == pytest.approx(mean_keeping_rotation(256).largest / 16)


def test_head_rotation_is_orthogonal() -> None:
    """Whether or not there is a Hadamard matrix of the size of a head."""
    for width in (1, 6, 32, 64, 80):
        np.testing.assert_allclose(head_rotation(width) @ head_rotation(width).T, np.eye(width), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_rotated_towers_compute_the_same(form: str, tower: str) -> None:
    """Embeddings of both towers stay what they were, whatever the model's form."""
    model = random_clip(**FORMS[form])
    before = embed(model, tower, inputs_of(tower))
    said = rotate(model, tower, "toy")
    assert relative_difference(before, embed(model, tower, inputs_of(tower))) < 1e-5
    assert said["fp32_products"] == (["visual.ln_pre.stream_rotation"] if tower == "image" and form != "no first norm" else [])


def test_the_stream_is_rotated_and_centred() -> None:
    """What goes into every block is Q times what went in before, without its mean: computed once more from the original."""
    model = random_clip()
    rotated = copy.deepcopy(model)
    rotate(rotated, "image", "toy")
    turn = mean_keeping_rotation(48).matrix
    for before, after in zip(_streams(model), _streams(rotated), strict=True):
        np.testing.assert_allclose(after, (before - before.mean(axis=-1, keepdims=True)) @ turn.T, atol=2e-5)


def _streams(model: Any) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    blocks = residual_blocks(model, "image", "toy", "test")
    handles = [block.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].numpy())) for block in blocks]
    embed(model, "image", inputs_of("image"))
    for handle in handles:
        handle.remove()
    return seen


def test_an_outlier_of_the_stream_is_spread() -> None:
    """A channel 100 times as large as the others is gone from what the linear layers read."""
    model = random_clip()
    model.visual.ln_pre.weight[5] *= 100
    for block in model.visual.transformer.resblocks:
        block.ln_1.weight[5] = 40.0
    rows = _normed(model)
    rotate(model, "image", "toy")
    assert np.abs(rows).max() / rows.std() > 6
    assert np.abs(_normed(model)).max() / _normed(model).std() < 5


def _normed(model: Any) -> np.ndarray:
    seen: list[np.ndarray] = []
    handle = model.visual.transformer.resblocks[0].ln_1.register_forward_hook(lambda _m, _i, output: seen.append(output.numpy()))
    embed(model, "image", inputs_of("image"))
    handle.remove()
    return seen[0]


def test_norms_have_nothing_left() -> None:
    """Behind a rotation every LayerNorm of a block has scale 1 and offset 0: all else is in the weights."""
    model = random_clip()
    rotate(model, "text", "toy")
    for block in residual_blocks(model, "text", "toy", "test"):
        for norm in (block.module.ln_1, block.module.ln_2):
            assert torch.equal(norm.weight, torch.ones(32))
            assert torch.equal(norm.bias, torch.zeros(32))
