"""SmoothQuant against the formulas of its official code (mit-han-lab/smoothquant: smooth.py, fake_quant.py).

The official repository has no test data; its three formulas are written down here in float32.
"""

import pytest
import torch
from helpers.layers import layer
from helpers.tiny_models import TOKENS, tiny

from q2n.baselines.smoothquant import SmoothQuant
from q2n.models.shapes import GATE_UP, QKV
from q2n.quantization.formats.activation import ActivationQuantizer


def official_scales(largest, weights, alpha):
    """smooth.py, smooth_ln_fcs_llama_like: per-channel smoothing factors, ``(C,)``."""
    columns = torch.cat([weight.abs().max(dim=0, keepdim=True)[0] for weight in weights], dim=0)
    columns = columns.max(dim=0)[0].clamp(min=1e-5)
    return (largest.pow(alpha) / columns.pow(1 - alpha)).clamp(min=1e-5)


def official_weight(weight, bits):
    """fake_quant.py, quantize_weight_per_channel_absmax: codes and scales of each output channel."""
    scales = weight.abs().max(dim=-1, keepdim=True)[0].clamp(min=1e-5).div(2 ** (bits - 1) - 1)
    return weight.div(scales).round(), scales


def official_activation(tokens, bits):
    """fake_quant.py, quantize_activation_per_token_absmax: the rounded values."""
    scales = tokens.abs().max(dim=-1, keepdim=True)[0].clamp(min=1e-5).div(2 ** (bits - 1) - 1)
    return tokens.div(scales).round().mul(scales)


@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_gains_and_columns_are_the_official_ones(alpha):
    adapter = tiny("llama")
    block = adapter.blocks[0]
    norms = {QKV: block.module.input_layernorm, GATE_UP: block.module.post_attention_layernorm}
    before = {
        group: (norm.weight.clone(), [block.linear(name).weight.clone() for name in group.linears])
        for group, norm in norms.items()
    }
    largest = {}
    for group, norm in norms.items():
        norm.register_forward_hook(
            lambda _module, _inputs, output, group=group: largest.update(
                {group: output.abs().flatten(0, -2).max(dim=0)[0]}
            )
        )
    hidden = adapter.embed(TOKENS)
    block.forward(hidden)
    observed = dict(largest)
    SmoothQuant(bits=8, alpha=alpha).prepare_block(block, [hidden])
    for group, (gain, weights) in before.items():
        scales = official_scales(observed[group], weights, alpha)
        torch.testing.assert_close(norms[group].weight, gain / scales, rtol=2e-6, atol=0)
        for name, weight in zip(group.linears, weights, strict=True):
            torch.testing.assert_close(block.linear(name).weight, weight * scales, rtol=2e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_are_the_official_ones(bits):
    problem = layer(rows=96, columns=64)
    codes, scales = official_weight(problem.weight, bits)
    found = SmoothQuant(bits=bits).quantize(problem)
    assert torch.equal(found.format.codes.float() - 2 ** (bits - 1), codes)
    assert torch.equal(found.weight, codes * scales)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_activations_are_rounded_bit_by_bit_as_officially(bits, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr("q2n.quantization.formats.activation.usable", lambda *_: False)
    generator = torch.Generator().manual_seed(bits)
    tokens = torch.randn(7, 96, generator=generator) * torch.logspace(-3, 3, 96)
    assert torch.equal(ActivationQuantizer(bits)(tokens), official_activation(tokens, bits))
