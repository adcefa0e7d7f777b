"""Causal attention against torch's in float64, and what is left to transformers."""

import pytest
import torch

from q2n.models import attention

SHAPES = {"grouped": (2, 6, 2, 50, 8), "own_heads": (3, 4, 4, 33, 16), "one_token_more": (1, 9, 3, 129, 4)}
"""Batch, heads, groups, tokens, width."""


def inputs(shape, dtype=torch.float32):
    batch, heads, groups, length, width = shape
    generator = torch.Generator().manual_seed(length)
    drawn = [
        torch.randn(batch, length, count, width, generator=generator) for count in (heads, groups, groups)
    ]
    return [tensor.to(dtype).transpose(1, 2) for tensor in drawn]


def exact(query, key, value, scaling):
    query, key, value = (tensor.double() for tensor in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scores", [200, 1 << 21])
def test_equals_softmax_of_causal_scores(name, dtype, scores, monkeypatch):
    """Also where so few scores fit at a time that queries come in small blocks."""
    monkeypatch.setattr(attention, "SCORES", scores)
    query, key, value = inputs(SHAPES[name], dtype)
    found = attention.causal_attention(query, key, value, 0.3)
    expected = exact(query, key, value, 0.3)
    assert found.dtype == dtype
    if dtype == torch.float32:
        assert torch.allclose(found.double(), expected, rtol=0, atol=2e-6)
    else:  # nothing is rounded before the end
        assert float((found.double() - expected).abs().max()) <= 2**-8 * float(expected.abs().max())


@pytest.mark.parametrize("amx", [False, True])
@torch.no_grad()
def test_processors_with_and_without_amx_get_the_same_attention(amx, monkeypatch):
    monkeypatch.setattr(attention, "has_amx", lambda: amx)
    if amx:
        monkeypatch.setattr(attention, "causal_attention", None)
    query, key, value = inputs(SHAPES["grouped"], torch.bfloat16)
    module = torch.nn.Module()
    module.num_key_value_groups = query.shape[1] // key.shape[1]
    found, _ = attention.attention_forward(module, query, key, value, None, scaling=0.3)
    expected = exact(query, key, value, 0.3)
    assert float((found.double() - expected).abs().max()) <= 2**-7 * float(expected.abs().max())


def test_a_sequence_does_not_depend_on_its_batch():
    query, key, value = inputs(SHAPES["grouped"], torch.bfloat16)
    whole = attention.causal_attention(query, key, value, 0.3)
    alone = attention.causal_attention(query[1:], key[1:], value[1:], 0.3)
    assert torch.equal(whole[1:], alone)


@torch.no_grad()
def test_masks_and_cached_keys_are_left_to_transformers(monkeypatch):
    monkeypatch.setattr(attention, "causal_attention", None)  # calling it would fail
    query, key, value = inputs(SHAPES["grouped"])
    module, length = torch.nn.Module(), query.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    key_all, value_all = (tensor.repeat_interleave(3, dim=1) for tensor in (key, value))
    module.num_key_value_groups = 1
    found, _ = attention.attention_forward(module, query, key_all, value_all, mask, scaling=0.3)
    assert torch.allclose(found.double(), exact(query, key, value, 0.3), rtol=0, atol=1e-5)
    last, _ = attention.attention_forward(module, query[:, :, -1:], key_all, value_all, None, scaling=0.3)
    assert torch.allclose(last[:, 0].double(), exact(query, key, value, 0.3)[:, -1], rtol=0, atol=1e-5)


def test_gradients_are_left_to_transformers(monkeypatch):
    monkeypatch.setattr(attention, "causal_attention", None)
    query, key, value = (tensor.requires_grad_() for tensor in inputs(SHAPES["own_heads"]))
    module = torch.nn.Module()
    module.num_key_value_groups = 1
    attention.attention_forward(module, query, key, value, None)[0].sum().backward()
    assert query.grad is not None
