"""SmoothQuant's migration: the paper's formula, without a trace in what the model computes."""

import pytest
import torch
from helpers.layers import layer
from helpers.tiny_models import FAMILIES, SHAPES, TOKENS, difference, logits, quantize, tiny

from q2n.baselines.smoothquant import SmoothQuant
from q2n.models.shapes import GATE_UP, QKV
from q2n.quantization.formats.activation import ActivationQuantizer
from q2n.quantization.transforms.online import quantize_inputs
from q2n.quantization.transforms.scaling import largest_inputs

NORMS = {QKV: "input_layernorm", GATE_UP: "post_attention_layernorm"}


def hidden_states(adapter):
    return [adapter.embed(part) for part in TOKENS.split(2)]


def observed_inputs(adapter, block):
    """Largest magnitude of each channel behind each norm, by watching the whole model run."""
    seen = {}
    handles = []
    for group, norm in NORMS.items():

        def watch(module, inputs, output, group=group):
            seen[group] = output.abs().flatten(0, -2).amax(dim=0)

        handles.append(block.module.get_submodule(norm).register_forward_hook(watch))
    adapter.model(TOKENS)
    for handle in handles:
        handle.remove()
    return seen


def exaggerate(adapter, channel=3, factor=40):
    """An outlier channel, as large models have them."""
    for block in adapter.blocks:
        for norm in NORMS.values():
            block.module.get_submodule(norm).weight[channel] *= factor


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85])
@pytest.mark.parametrize("name", SHAPES)
def test_migration_leaves_the_model_as_it_was(name, alpha):
    adapter = tiny(name, torch.float64)
    expected = logits(adapter)
    method, hidden = SmoothQuant(bits=8, alpha=alpha), hidden_states(adapter)
    for block in adapter.blocks:
        method.prepare_block(block, hidden)
        hidden = [block.forward(batch) for batch in hidden]
    assert difference(logits(adapter), expected) < 2e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_scales_are_those_of_the_paper(name):
    """Equation 4, channel by channel; weights of all layers that share the input count together."""
    adapter, alpha = tiny(name), 0.6
    block = adapter.blocks[0]
    before = {
        linear: block.linear(linear).weight.clone() for group in block.groups for linear in group.linears
    }
    gains = {group: block.module.get_submodule(norm).weight.clone() for group, norm in NORMS.items()}
    largest = observed_inputs(adapter, block)
    SmoothQuant(bits=8, alpha=alpha).prepare_block(block, hidden_states(adapter))
    for group, norm in NORMS.items():
        scales = []
        for channel in range(adapter.hidden_size):
            columns = [float(before[linear][:, channel].abs().max()) for linear in group.linears]
            scales.append(float(largest[group][channel]) ** alpha / max(columns) ** (1 - alpha))
        scale = torch.tensor(scales)
        assert difference(block.module.get_submodule(norm).weight, gains[group] / scale) < 1e-5
        for linear in group.linears:
            assert difference(block.linear(linear).weight, before[linear] * scale) < 1e-5
    for linear in ("self_attn.o_proj", "mlp.down_proj"):
        assert torch.equal(block.linear(linear).weight, before[linear])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_difficulty_is_shared_as_alpha_says(alpha):
    """All of it in the weights: inputs of size 1; all in the activations: weights of size 1; half: equal."""
    adapter = tiny("llama")
    exaggerate(adapter)
    SmoothQuant(bits=8, alpha=alpha).prepare_block(adapter.blocks[0], hidden_states(adapter))
    for group, inputs in observed_inputs(adapter, adapter.blocks[0]).items():
        weights = [adapter.blocks[0].linear(linear).weight.abs().amax(dim=0) for linear in group.linears]
        columns = torch.stack(weights).amax(dim=0)
        expected = {0.0: torch.ones_like(columns), 0.5: inputs, 1.0: columns}[alpha]
        assert torch.allclose(columns, expected, rtol=1e-4)
        if alpha == 1:
            assert torch.allclose(inputs, torch.ones_like(inputs), rtol=1e-4)


def test_largest_inputs_of_all_batches():
    adapter = tiny("qwen3_wide_heads")
    block = adapter.blocks[0]
    found = largest_inputs(block, hidden_states(adapter), (QKV, GATE_UP))
    for group, largest in observed_inputs(adapter, block).items():
        assert torch.allclose(found[group], largest, rtol=1e-5)


def test_a_channel_that_is_never_used_stays_finite():
    method = SmoothQuant(bits=8)
    scale = method.scale(torch.tensor([0.0, 0.0, 2.0]), [torch.tensor([[0.0, 1.0, 0.5]])])
    assert bool(scale.isfinite().all())
    assert bool((scale > 0).all())


def test_weights_are_rounded_row_by_row_around_zero():
    problem = layer()
    found = SmoothQuant(bits=8).quantize(problem).weight
    step = problem.weight.abs().amax(dim=1, keepdim=True) / 127
    assert torch.allclose(found, (problem.weight / step).round() * step, rtol=0, atol=1e-7)


def test_outliers_cost_less_than_without_migration():
    plain, smooth, rounded = tiny("llama"), tiny("llama"), tiny("llama")
    for adapter in (plain, smooth, rounded):
        exaggerate(adapter)
    expected = logits(plain)
    quantize_inputs(rounded, ActivationQuantizer(6))
    quantize(smooth, SmoothQuant(bits=8, a_bits=6))
    assert difference(logits(smooth), expected) < 0.5 * difference(logits(rounded), expected)
