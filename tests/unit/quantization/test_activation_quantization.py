"""Activations, keys and values are rounded in the finished model, exactly so, and nowhere before."""

import pytest
import torch
from helpers.tiny_models import FAMILIES, SHAPES, TOKENS, difference, logits, quantize, tiny

from q2n.baselines.quarot import QuaRot
from q2n.baselines.smoothquant import SmoothQuant
from q2n.quantization.formats.activation import ActivationQuantizer
from q2n.quantization.transforms.hadamard import hadamard_matrix
from q2n.quantization.transforms.online import OnlineLinear, QuantizedCache, quantize_cache, quantize_inputs


def weights(adapter):
    return {
        f"{block.index}.{name}": block.linear(name).weight
        for block in adapter.blocks
        for group in block.groups
        for name in group.linears
    }


def sylvester(size):
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5


def rounded(rows, bits, symmetric, ratio, zero_inside):
    """The last axis rounded as the official quantizer's formulas read."""
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    if zero_inside:
        low, high = low.clamp(max=0), high.clamp(min=0)
    low, high = ratio * low, ratio * high
    if symmetric:
        scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        return (rows / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()
    return scale * (((rows / scale).round() + zero).clamp(0, 2**bits - 1) - zero)


@pytest.mark.parametrize("name", ["llama", "nine_heads"])
def test_calibration_sees_unrounded_activations(name):
    """Weights and reports do not depend on how activations are rounded; the finished model does."""
    plain, low = tiny(name), tiny(name)
    reports = quantize(plain, QuaRot(bits=4, a_bits=16))
    others = quantize(low, QuaRot(bits=4, a_bits=2, k_bits=2, v_bits=2, kv_sym=False))
    assert [report.error_after for report in reports] == [report.error_after for report in others]
    for key, weight in weights(plain).items():
        assert torch.equal(weights(low)[key], weight), key
    assert difference(logits(low), logits(plain)) > 0.05


@pytest.mark.parametrize("method", [QuaRot(bits=4, a_bits=3), SmoothQuant(bits=8, a_bits=3)])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_of_every_block_reads_few_levels(name, method):
    adapter = tiny(name)
    quantize(adapter, method)
    seen = []

    def check(module, inputs):
        for token in inputs[0].flatten(0, -2)[::5]:
            assert len(token.unique()) <= 8
        seen.append(module)

    handles = [
        block.linear(name).register_forward_pre_hook(check)
        for block in adapter.blocks
        for group in block.groups
        for name in group.linears
    ]
    head = []
    handles.append(adapter.lm_head.register_forward_pre_hook(lambda module, inputs: head.append(inputs[0])))
    logits(adapter)
    assert len(set(seen)) == len(handles) - 1 == 14
    assert len(head[0][0, 0].unique()) > 8
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("method", [QuaRot(bits=8), SmoothQuant(bits=8, a_bits=8)])
@pytest.mark.parametrize("name", SHAPES)
def test_eight_bits_hardly_change_the_model(name, method):
    adapter = tiny(name)
    expected = logits(adapter)
    quantize(
        adapter, method if isinstance(method, SmoothQuant) else QuaRot(bits=8, a_bits=8, k_bits=8, v_bits=8)
    )
    assert difference(logits(adapter), expected) < 0.05
    # What evaluation computes block by block is what the model computes as a whole.
    with torch.no_grad():
        whole = adapter.model(TOKENS).logits
    assert difference(whole, logits(adapter)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "nine_heads", "qwen3_wide_heads"])
def test_input_is_transformed_then_rounded(name):
    adapter = tiny(name)
    QuaRot(bits=4).rewrite(adapter)
    quantize_inputs(adapter, ActivationQuantizer(4))
    generator = torch.Generator().manual_seed(0)
    block = adapter.blocks[0]
    width = adapter.intermediate_size
    order = 12 if width == 96 else 1
    dense = torch.kron(
        hadamard_matrix(12) / 12**0.5 if order == 12 else torch.ones(1, 1), sylvester(width // order)
    )
    rows = torch.randn(2, 5, width, generator=generator)
    expected = block.linear("mlp.down_proj")(rounded(rows @ dense.T, 4, True, 1.0, True))
    assert difference(block.module.mlp.down_proj(rows), expected) < 1e-5
    rows = torch.randn(2, 5, adapter.hidden_size, generator=generator)
    expected = block.linear("mlp.up_proj")(rounded(rows, 4, True, 1.0, True))
    assert torch.equal(block.module.mlp.up_proj(rows), expected)


@pytest.mark.parametrize("method", [QuaRot(bits=4, a_bits=16), SmoothQuant(bits=8, a_bits=16)])
@pytest.mark.parametrize("name", FAMILIES)
def test_sixteen_bits_change_nothing(name, method):
    adapter = tiny(name)
    method.rewrite(adapter)
    expected = logits(adapter)
    method.finish(adapter)
    assert torch.equal(logits(adapter), expected)
    assert not any(
        isinstance(module, OnlineLinear) and module.input_quantizer is not None
        for module in adapter.model.modules()
    )


@pytest.mark.parametrize("name", SHAPES)
def test_cache_without_quantizers_is_the_ordinary_attention_bit_for_bit(name):
    adapter = tiny(name)
    expected = logits(adapter)
    whole = adapter.model(TOKENS).logits
    quantize_cache(adapter, QuantizedCache(None, None))
    assert torch.equal(logits(adapter), expected)
    assert torch.equal(adapter.model(TOKENS).logits, whole)


def turned(rows, cos, sin):
    """Rotary embedding: channel ``i`` and ``i + d/2`` are a pair."""
    first, last = rows.chunk(2, dim=-1)
    return rows * cos + torch.cat([-last, first], dim=-1) * sin


def reference_attention(adapter, block, normed, keys, values):
    """Attention written out, with ``keys`` and ``values`` applied to what a cache would hold."""
    module, (batch, length, _) = block.attention, normed.shape
    size, heads, groups = adapter.head_dim, adapter.num_heads, adapter.num_kv_heads
    q = module.q_proj(normed).view(batch, length, heads, size)
    k = module.k_proj(normed).view(batch, length, groups, size)
    v = module.v_proj(normed).view(batch, length, groups, size)
    if hasattr(module, "q_norm"):
        q, k = module.q_norm(q), module.k_norm(k)
    cos, sin = adapter.base.rotary_emb(normed, torch.arange(length)[None])
    q, k = (turned(rows, cos[:, :, None], sin[:, :, None]) for rows in (q, k))
    if keys is not None:
        rotation = sylvester(size).T
        q, k = q @ rotation, keys(k @ rotation)
    if values is not None:
        v = values(v)
    future = torch.ones(length, length).triu(1).bool()
    outputs = []
    for head in range(heads):
        own = head * groups // heads
        scores = q[:, :, head] @ k[:, :, own].transpose(1, 2) / size**0.5
        outputs.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, :, own])
    return module.o_proj(torch.cat(outputs, dim=-1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("key_bits", "value_bits"), [(4, 16), (16, 4), (3, 4)])
@pytest.mark.parametrize("name", [*SHAPES])
def test_attention_reads_keys_and_values_rounded_after_the_rotary_embedding(
    name, key_bits, value_bits, symmetric
):
    adapter = tiny(name)
    method = QuaRot(
        bits=4, a_bits=16, k_bits=key_bits, v_bits=value_bits, kv_sym=symmetric, kv_clip_ratio=0.95
    )
    method.finish(adapter)
    adapter.prepare(TOKENS.shape[1])
    block = adapter.blocks[1]
    normed = torch.randn(2, TOKENS.shape[1], adapter.hidden_size, generator=torch.Generator().manual_seed(1))

    def keys(rows):
        return rounded(rows, key_bits, symmetric, 0.95, zero_inside=True)

    def values(rows):
        return rounded(rows, value_bits, symmetric, 0.95, zero_inside=False)

    found = block.attend(normed, {})
    used = (keys if key_bits < 16 else None, values if value_bits < 16 else None)
    assert difference(found, reference_attention(adapter, block, normed, *used)) < 1e-5
    assert difference(found, reference_attention(adapter, block, normed, None, None)) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_rounding_when_read_is_rounding_when_stored(name):
    """Decoding token by token from a cache gives what one pass over the text gives."""
    adapter = tiny(name)
    quantize(adapter, QuaRot(bits=4, a_bits=16, k_bits=4, v_bits=4, kv_sym=False, kv_clip_ratio=0.95))
    whole = adapter.model(TOKENS, use_cache=False).logits
    first = adapter.model(TOKENS[:, :10], use_cache=True)
    cache, steps = first.past_key_values, [first.logits]
    for position in range(10, TOKENS.shape[1]):
        step = adapter.model(TOKENS[:, position : position + 1], past_key_values=cache, use_cache=True)
        steps.append(step.logits)
    assert difference(torch.cat(steps, dim=1), whole) < 1e-4
