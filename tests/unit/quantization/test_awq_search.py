"""AWQ's search for scales and clipped ranges against the method written out naively."""

import copy
import dataclasses

import pytest
import torch
from helpers.tiny_models import FAMILIES, SHAPES, TOKENS, difference, logits, quantize, tiny

from q2n.baselines.awq import AWQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV
from q2n.quantization.formats.awq import AwqSpec, clip_limits
from q2n.quantization.transforms import awq_scales
from q2n.quantization.transforms.awq_scales import channel_scale, fold_scales, mean_magnitude, search_scales
from q2n.quantization.transforms.scaling import group_inputs, spread_sequences

GRID = AwqSpec(bits=3, group_size=24)
INSPECTED = {QKV: "self_attn", O_PROJ: "self_attn.o_proj", GATE_UP: "mlp", DOWN: "mlp.down_proj"}


def hidden_states(adapter):
    return [adapter.embed(part) for part in TOKENS.split(2)]


def naive_rounding(weight, grid):
    """Each group of each row by itself."""
    result = weight.clone()
    for row in result:
        for group in row.split(grid.group_size):
            scale = (group.max() - group.min()).clamp(min=1e-5) / (2**grid.bits - 1)
            zero = (-(group.min() / scale).round()).clamp(0, 2**grid.bits - 1)
            group.copy_(((group / scale).round() + zero).clamp(0, 2**grid.bits - 1).sub(zero) * scale)
    return result


def naive_losses(block, group, inputs, steps):
    """Mean squared change of the inspected module's output with trial weights really put into a copy."""
    losses = []
    batch = torch.cat(inputs)
    magnitude = batch.abs().flatten(0, 1).mean(dim=0)

    def output(which):
        module = which.module.get_submodule(INSPECTED[group])
        return which.attend(batch, {}) if group is QKV else module(batch)

    expected = output(block)
    for step in range(steps):
        scale = magnitude.pow(step / steps).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        trial = copy.deepcopy(block)
        for name in group.linears:
            weight = trial.linear(name).weight
            weight.copy_(naive_rounding(weight * scale, GRID) / scale)
        losses.append(float((output(trial) - expected).square().mean()))
    return losses


@pytest.mark.parametrize("name", ["qwen2_own_heads", "qwen3_wide_heads", "nine_heads"])
def test_the_exponent_is_the_best_of_a_naive_search(name):
    adapter = tiny(name)
    block, steps = adapter.blocks[0], 8
    inputs = group_inputs(block, hidden_states(adapter))
    found = {item.group: item for item in search_scales(block, inputs, GRID, steps)}
    assert (O_PROJ in found) == (name == "qwen2_own_heads")
    for group, item in found.items():
        losses = naive_losses(block, group, inputs[group], steps)
        assert torch.allclose(torch.tensor(item.losses), torch.tensor(losses), rtol=1e-3)
        best = min(range(steps), key=losses.__getitem__)
        assert item.ratio == best / steps
        assert torch.equal(item.scale, channel_scale(mean_magnitude(inputs[group]), best / steps))


@pytest.mark.parametrize("name", SHAPES)
def test_folding_leaves_the_model_as_it_was(name):
    """Found scales, and then far larger ones."""
    adapter, generator = tiny(name, torch.float64), torch.Generator().manual_seed(0)
    expected, hidden = logits(adapter), hidden_states(adapter)
    for block in adapter.blocks:
        found = search_scales(block, group_inputs(block, hidden), GRID, 5)
        fold_scales(block, found)
        before = block.linear("mlp.down_proj").weight.clone()
        for item in found:
            scale = 0.1 + 9 * torch.rand(len(item.scale), generator=generator)
            fold_scales(block, [dataclasses.replace(item, scale=scale)])
        assert difference(block.linear("mlp.down_proj").weight, before) > 1
    assert difference(logits(adapter), expected) < 2e-6


def test_scales_have_the_geometric_mean_of_their_extremes_at_one():
    scale = channel_scale(torch.tensor([0.0, 1e-6, 0.3, 40.0]), 0.7)
    assert float(scale.max() * scale.min()) == pytest.approx(1)
    assert torch.equal(channel_scale(torch.tensor([0.2, 3.0]), 0.0), torch.ones(2))


@pytest.mark.parametrize("group_size", [-1, 7, 16, 24])
def test_trial_weights_are_the_stored_format_bit_for_bit(group_size):
    weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(2))
    weight[0], weight[1] = weight[0].abs(), 0
    grid = AwqSpec(bits=3, group_size=group_size)
    assert torch.equal(grid.rounded(weight), grid.quantize(weight).dequantize())
    if group_size > 0:
        assert torch.allclose(grid.rounded(weight), naive_rounding(weight, grid), rtol=0, atol=1e-6)


def test_clipped_ranges_are_the_best_of_a_naive_search():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 48, generator=generator) ** 3
    tokens = torch.randn(60, 48, generator=generator) + 0.3
    found = clip_limits(weight, tokens, GRID)
    for row in range(5):
        for index in range(2):
            columns = slice(24 * index, 24 * index + 24)
            part, inputs = weight[row, columns], tokens[:, columns]
            errors = []
            for step in range(10):
                limit = part.abs().max() * (1 - step / 20)
                rounded = naive_rounding(part.clamp(-limit, limit)[None], GRID)[0]
                errors.append(float((inputs @ (rounded - part)).square().sum()))
            best = min(range(10), key=errors.__getitem__)
            assert float(found[row, index]) == pytest.approx(float(part.abs().max()) * (1 - best / 20))


@pytest.mark.parametrize(("tokens", "expected"), [(None, 5), (10**6, 5), (12, 3), (4, 1), (1, 1)])
def test_sequences_are_spread_over_the_calibration_set(tokens, expected):
    batches = [torch.full((2, 4, 3), float(index)) for index in range(2)] + [torch.full((1, 4, 3), 2.0)]
    kept = spread_sequences(batches, tokens)
    assert sum(len(batch) for batch in kept) == expected
    assert max(len(batch) for batch in kept) <= 2
    if expected == 3:
        assert torch.cat(kept)[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("correction", [None, NullSpaceScale(t=0.1, lam=0.2)])
def test_whole_method_through_the_pipeline(name, correction):
    """Half as many bits, a far greater error; and both near the model where there are many bits."""
    errors = {}
    for bits in (3, 8):
        adapter = tiny(name)
        expected = logits(adapter)
        reports = quantize(adapter, AWQ(bits=bits, group_size=32, search_tokens=48), correction)
        assert len(reports) == 14
        errors[bits] = difference(logits(adapter), expected)
        assert difference(adapter.model(TOKENS).logits, logits(adapter)) < 1e-6
    assert errors[8] < 0.05 < errors[3]


@pytest.mark.parametrize("width", [5, 40, 41])
def test_half_a_symmetric_matrix_is_enough_for_a_quadratic_form(monkeypatch, width):
    monkeypatch.setattr(awq_scales, "TRIANGLE", 8)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 3, width, generator=generator) for _ in range(3)]
    change = torch.randn(6, width, generator=generator)
    expected = float((torch.cat(batches).flatten(0, 1) @ change.T).square().sum())
    found = awq_scales._quadratic(change, awq_scales._second_moment(batches))
    assert found == pytest.approx(expected, rel=1e-5)
