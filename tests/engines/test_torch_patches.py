"""Patch tokens of PyTorch's towers: the formula of GL-MCM written out, and one clear line for towers that have none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from clipq.engines.base import Engine, TowerSpec
from clipq.engines.torch.checkpoint import Checkpoint, load_checkpoint
from clipq.engines.torch.patches import PatchTower
from clipq.errors import EngineError, UsageError


def _pixels(checkpoint: Checkpoint, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, *checkpoint.preprocess.size)).astype(np.float32)


def _norm(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _slow_vit(state: dict[str, torch.Tensor], image: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the patches of one image from the bare tensors, token by token, as the repository's ``clip/model.py`` defines them."""
    x = functional.conv2d(image[None], state["conv1.weight"], stride=state["conv1.weight"].shape[-1])[0].flatten(1).T
    x = torch.cat([state["class_embedding"][None], x]) + state["positional_embedding"]
    x = _norm(x, state, "ln_pre")
    width, depth = x.shape[1], 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.resblocks"))

    def mlp(tokens: torch.Tensor, block: str) -> torch.Tensor:
        hidden = functional.gelu(tokens @ state[f"{block}.mlp.c_fc.weight"].T + state[f"{block}.mlp.c_fc.bias"])
        return hidden @ state[f"{block}.mlp.c_proj.weight"].T + state[f"{block}.mlp.c_proj.bias"]

    local = x
    for layer in range(depth):
        block = f"transformer.resblocks.{layer}"
        q, k, v = (_norm(x, state, f"{block}.ln_1") @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]).split(
            width, dim=1
        )
        out, bias = state[f"{block}.attn.out_proj.weight"].T, state[f"{block}.attn.out_proj.bias"]
        local = x + v @ out + bias  # no queries, no keys, no softmax
        local = local + mlp(_norm(local, state, f"{block}.ln_2"), block)
        size = width // heads
        parts = []
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            parts.append((q[:, columns] @ k[:, columns].T / size**0.5).softmax(dim=1) @ v[:, columns])
        x = x + torch.cat(parts, dim=1) @ out + bias
        x = x + mlp(_norm(x, state, f"{block}.ln_2"), block)
    return _norm(local[1:], state, "ln_post") @ state["proj"]


def test_vit_is_the_formula_written_out(tiny_checkpoint: Callable[[str], str]) -> None:
    """Value and output projection, residual sum, MLP, last norm, projection: from the state dict, image by image."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    tower = PatchTower(checkpoint.model, "tiny")
    pixels = _pixels(checkpoint, 3)
    embeddings, patches = tower.compute(pixels)
    assert (patches.shape, tower.grid) == ((3, 16, 24), (4, 4))
    np.testing.assert_array_equal(embeddings, checkpoint.embed("image", pixels))
    state = checkpoint.model.visual.state_dict()
    for own, image in zip(patches, pixels, strict=True):
        np.testing.assert_allclose(own, _slow_vit(state, torch.from_numpy(image), heads=2), rtol=1e-3, atol=1e-4)


def test_resnet_is_the_formula_written_out(tiny_checkpoint: Callable[[str], str]) -> None:
    """The feature map at each cell through value and output projection of the pooling; neither position nor mean."""
    checkpoint = load_checkpoint(tiny_checkpoint("resnet"))
    tower, visual = PatchTower(checkpoint.model, "tiny"), checkpoint.model.visual
    pixels = _pixels(checkpoint, 2)
    embeddings, patches = tower.compute(pixels)
    assert (patches.shape, tower.grid) == ((2, 4, 24), (2, 2))
    np.testing.assert_array_equal(embeddings, checkpoint.embed("image", pixels))
    with torch.no_grad():
        features = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(torch.from_numpy(pixels))))))
    pool = visual.attnpool
    for image in range(2):
        for row in range(2):
            for column in range(2):
                value = pool.v_proj.weight @ features[image, :, row, column] + pool.v_proj.bias
                expected = pool.c_proj.weight @ value + pool.c_proj.bias
                np.testing.assert_allclose(patches[image, 2 * row + column], expected, rtol=1e-3, atol=1e-5)


def test_threads_do_not_meet(tiny_checkpoint: Callable[[str], str]) -> None:
    """Several batches at once give what they give one by one."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    tower = PatchTower(checkpoint.model, "tiny")
    batches = [_pixels(checkpoint, 4, seed) for seed in range(12)]
    alone = [tower.compute(batch)[1] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda batch: tower.compute(batch)[1], batches), alone, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "why"), [("siglip", "of class TimmModel"), ("convnext", "of class TimmModel"), ("coca", "pools by attention")]
)
def test_other_towers_are_refused_in_a_line(tiny_checkpoint: Callable[[str], str], family: str, why: str) -> None:
    """The line says what the tower is and which models have patch tokens."""
    checkpoint = load_checkpoint(tiny_checkpoint(family))
    with pytest.raises(UsageError, match=rf"{why}; expected CLIP's own ViTs") as raised:
        PatchTower(checkpoint.model, checkpoint.model_id)
    assert raised.value.exit_code == 2


def test_pooling_by_the_mean_is_refused(tiny_checkpoint: Callable[[str], str]) -> None:
    """Without a class token the last block's value path is not what the paper compares with texts."""
    checkpoint = load_checkpoint(tiny_checkpoint("vit"))
    checkpoint.model.visual.pool_type = "avg"
    with pytest.raises(UsageError, match="pools by 'avg', not by a class token"):
        PatchTower(checkpoint.model, "tiny")


class _Patched(Engine):
    """Gives whatever it is told to."""

    def __init__(self, patches: int, answer: Any = None) -> None:
        super().__init__("patched", {"image": TowerSpec("float32", (3, 2, 2), 5, patches)})
        self.answer = answer

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _run(self, tower: str, batch: Any) -> Any:
        return np.zeros((len(batch), 5), np.float32)

    def _run_patches(self, pixels: Any) -> Any:
        return np.zeros((len(pixels), 5), np.float32), self.answer


PIXELS = np.zeros((2, 3, 2, 2), np.float32)


def test_an_engine_without_patch_tokens_says_so() -> None:
    """Zero of them, and an error for who asks."""
    engine = _Patched(0)
    assert engine.patches == 0
    with pytest.raises(EngineError, match="patched has no patch tokens"):
        engine.run_patches(PIXELS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((2, 4, 5), np.float32), r"wrong output of the patch tokens.*float32 \(2, 4, 5\).*\(2, 6, 5\)"),
        (np.zeros((2, 6, 5)), "wrong output of the patch tokens.*float64"),
        (np.where(np.arange(60).reshape(2, 6, 5) == 45, np.nan, 0).astype(np.float32), "NaN or infinity.*1 of 2 rows, first at row 1"),
    ],
)
def test_outputs_are_checked(answer: np.ndarray, message: str) -> None:
    """Shape, type and finite numbers, as for embeddings; good ones pass, wrong pixels do not."""
    with pytest.raises(EngineError, match=message):
        _Patched(6, answer).run_patches(PIXELS)
    good = np.ones((2, 6, 5), np.float32)
    assert _Patched(6, good).run_patches(PIXELS)[1] is good
    with pytest.raises(EngineError, match="wrong input for the image tower"):
        _Patched(6, good).run_patches(PIXELS[:, :2])
