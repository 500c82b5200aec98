"""What is captured of a tower's calibration inputs: extremes of all, rows of some, memory of a fixed size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from toy_clip import inputs_of, random_clip

from clipq.errors import DataError, ExportError
from clipq.export.transform import capture as module
from clipq.export.transform.blocks import residual_blocks
from clipq.export.transform.capture import _Sample, capture, padding_of_model


def _by_hooks(model: Any, batches: list[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Collect what the four layers of every image block read, without the plain form of attention."""
    seen: dict[tuple[str, str], list[torch.Tensor]] = {}
    handles = []
    for block in residual_blocks(model, "image", "toy", "test"):
        parts = {"qkv": block.module.ln_1, "fc1": block.module.ln_2, "fc2": block.module.mlp.gelu}
        for part, layer in parts.items():
            key = (block.name, part)
            handles.append(layer.register_forward_hook(lambda _m, _i, out, key=key: seen.setdefault(key, []).append(out.flatten(0, 1))))
    with torch.no_grad():
        for batch in batches:
            model.encode_image(torch.from_numpy(batch))
    for handle in handles:
        handle.remove()
    return {key: torch.cat(rows).numpy() for key, rows in seen.items()}


def test_extremes_and_rows_are_those_of_the_layers() -> None:
    """Every channel's extremes are exact, and every kept row was read, each once; few inputs are kept whole."""
    model, batches = random_clip(), [inputs_of("image", 3, seed) for seed in range(4)]
    expected = _by_hooks(model, batches)
    found = capture(model, "image", residual_blocks(model, "image", "toy", "test"), batches)
    for key, rows in expected.items():
        np.testing.assert_allclose(found[key].lowest, rows.min(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[key].highest, rows.max(axis=0), rtol=1e-4, atol=1e-5)
        assert found[key].rows.shape == rows.shape
        np.testing.assert_allclose(np.sort(found[key].rows.numpy(), axis=0), np.sort(rows, axis=0), rtol=1e-4, atol=1e-5)


def test_attended_values_are_captured() -> None:
    """``out_proj`` reads the mean of the values by attention: computed here from its result."""
    model, batch = random_clip(), inputs_of("image", 3)
    block = model.visual.transformer.resblocks[0]
    outputs: list[torch.Tensor] = []
    handle = block.attn.register_forward_hook(lambda _m, _i, out: outputs.append(out[0].flatten(0, 1)))
    with torch.no_grad():
        model.encode_image(torch.from_numpy(batch))
    handle.remove()
    seen = capture(model, "image", residual_blocks(model, "image", "toy", "test"), [batch])["visual.transformer.resblocks.0", "out_proj"]
    products = seen.rows @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    np.testing.assert_allclose(np.sort(products.numpy(), axis=0), np.sort(outputs[0].numpy(), axis=0), rtol=1e-3, atol=1e-4)


def test_the_sample_is_even_and_bounded() -> None:
    """Of a stream of 5,000 tokens, 100 stay; early and late ones are as likely, and all parts would keep the same."""
    sample, places = _Sample(100), np.full(100, -1)
    for start in range(0, 5000, 50):
        where, which = sample.choose(50)
        places[where.numpy()] = start + which.numpy()
    assert len(set(places)) == 100
    assert places.min() >= 0
    assert 35 < (places < 2500).sum() < 65


def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of all layers fit the budget however many inputs there are; every layer keeps the same tokens."""
    monkeypatch.setattr(module, "_BUDGET", 0)
    monkeypatch.setattr(module, "_LEAST_ROWS", 7)
    model = random_clip()
    blocks = residual_blocks(model, "text", "toy", "test")
    found = capture(model, "text", blocks, (inputs_of("text", 4, seed) for seed in range(5)))
    assert {len(seen.rows) for seen in found.values()} == {7}
    for block in blocks:
        hidden = found[block.name, "fc1"].rows @ block.weight("fc1").T + block.bias("fc1")
        torch.testing.assert_close(block.module.mlp.gelu(hidden), found[block.name, "fc2"].rows, rtol=1e-4, atol=1e-4)


def test_the_model_stays_as_it_was() -> None:
    """No hook and no other attention is left behind."""
    model = random_clip()
    capture(model, "image", residual_blocks(model, "image", "toy", "test"), [inputs_of("image")])
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert isinstance(model.visual.transformer.resblocks[0].attn, torch.nn.MultiheadAttention)


def test_bad_inputs_are_one_line() -> None:
    """NaN names the first layer that meets it; no input at all is an error too."""
    model, bad = random_clip(), inputs_of("image")
    bad[2, 0, 3, 3] = np.nan
    blocks = residual_blocks(model, "image", "toy", "test")
    with pytest.raises(ExportError, match=r"NaN or infinity in front of visual.transformer.resblocks.0:qkv; found .*inputs 0 to 5"):
        capture(model, "image", blocks, [bad])
    with pytest.raises(DataError, match="no calibration images"):
        capture(model, "image", blocks, [])


def test_padding_of_texts_is_not_captured() -> None:
    """Rows and extremes are those of the tokens up to the end token, by hooks; what stands behind it changes no embedding."""
    model, batches = random_clip(), [inputs_of("text", 4, seed) for seed in range(2)]
    block = model.transformer.resblocks[1]
    outputs: list[torch.Tensor] = []
    handle = block.ln_2.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    with torch.no_grad():
        before = [model.encode_text(torch.from_numpy(batch)) for batch in batches]
    handle.remove()
    rows = [out[row, : int(batch[row].argmax()) + 1] for out, batch in zip(outputs, batches, strict=True) for row in range(len(batch))]
    expected = torch.cat(rows).numpy()
    assert len(expected) < 8 * 10, "some tokens stand behind the end"
    found = capture(model, "text", residual_blocks(model, "text", "toy", "test"), batches)["transformer.resblocks.1", "fc1"]
    np.testing.assert_allclose(np.sort(found.rows.numpy(), axis=0), np.sort(expected, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.lowest, expected.min(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.highest, expected.max(axis=0), rtol=1e-4, atol=1e-5)
    for batch, embedding in zip(batches, before, strict=True):
        other = batch.copy()
        for row in other:
            row[int(row.argmax()) + 1 :] = 1
        with torch.no_grad():
            torch.testing.assert_close(model.encode_text(torch.from_numpy(other)), embedding)


@pytest.mark.parametrize("change", ["last", "no mask"])
def test_other_towers_are_captured_whole(change: str) -> None:
    """Where the last token is the embedding, or tokens attend to those behind them, all tokens count."""
    model, batch = random_clip(), inputs_of("text", 3)
    if change == "last":
        model.text_pool_type = "last"
    else:
        model.attn_mask = None
    assert padding_of_model(model, "text").read(batch) is None
    found = capture(model, "text", residual_blocks(model, "text", "toy", "test"), [batch])
    assert len(found["transformer.resblocks.0", "qkv"].rows) == 3 * 10
