"""Self-attention written for export computes what PyTorch's module computes."""

from __future__ import annotations

import pytest
import torch

from clipq.export.attention import SelfAttention, plain_attention

WIDTH, HEADS, LENGTH, BATCH = 48, 4, 7, 3


def _attention(*, bias: bool = True, batch_first: bool = True) -> torch.nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first).eval()
    if bias:
        torch.nn.init.normal_(attention.in_proj_bias)
    return attention


def _masks() -> dict[str, torch.Tensor | None]:
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    additive = torch.zeros(LENGTH, LENGTH).masked_fill(causal, float("-inf"))
    return {"none": None, "additive": additive, "boolean": causal, "per head": additive.repeat(BATCH * HEADS, 1, 1)}


@pytest.mark.parametrize("mask", _masks())
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_module_it_stands_for(mask, batch_first, bias):
    """With every kind of mask, layout and bias the values are those of torch.nn.MultiheadAttention."""
    attention = _attention(bias=bias, batch_first=batch_first)
    x = torch.randn(BATCH, LENGTH, WIDTH) if batch_first else torch.randn(LENGTH, BATCH, WIDTH)
    with torch.no_grad():
        expected = attention(x, x, x, need_weights=False, attn_mask=_masks()[mask])[0]
        found = SelfAttention(attention)(x, x, x, need_weights=False, attn_mask=_masks()[mask])[0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_attention_to_something_else_is_left_to_the_original():
    """Cross-attention gives the original's values."""
    attention = _attention()
    query, key = torch.randn(BATCH, 2, WIDTH), torch.randn(BATCH, LENGTH, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(SelfAttention(attention)(query, key, key)[0], attention(query, key, key, need_weights=False)[0])


def test_the_model_is_as_before_afterwards():
    """Inside the block self-attention is replaced, after it the model is the same."""
    model = torch.nn.Sequential(_attention(), torch.nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=8))
    before = list(model)
    with plain_attention(model):
        assert isinstance(model[0], SelfAttention)
        assert model[1] is before[1], "keys of another width cannot share one product"
    assert list(model) == before
