"""Held-out calibration sequences: they are measured like the others, and nothing is learnt from them."""

from dataclasses import replace

import pytest
import torch
from helpers.layers import layer
from helpers.runs import FAMILIES, run, same_state, tiny, tokens

from q2n.baselines.awq import AWQ
from q2n.baselines.gptq import GPTQ
from q2n.baselines.quip import QuIP
from q2n.baselines.smoothquant import SmoothQuant
from q2n.corrections.null_space import NullSpaceScale
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV
from q2n.pipeline.calibration import Accumulators
from q2n.quantization.transforms.incoherence import draw_incoherence
from q2n.types import Statistic

GROUPS = (QKV, O_PROJ, GATE_UP, DOWN)
ON = NullSpaceScale(t=0.1, lam=0.2, skip=[])
OTHERS = torch.randint(3, 259, (3, 24), generator=torch.Generator().manual_seed(9))
BASELINES = {
    "gptq": GPTQ(bits=3, group_size=16),
    "quip": QuIP(bits=3),
    "awq": AWQ(bits=3, group_size=16),
    "smoothquant": SmoothQuant(bits=4),
}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("batch_size", [0, 2])
def test_they_change_no_bit_of_the_model(baseline, true_sequential, batch_size):
    fields = {"true_sequential": true_sequential, "batch_size": batch_size}
    without = run(BASELINES[baseline], ON, **fields)
    beside = run(BASELINES[baseline], ON, heldout=OTHERS, **fields)
    assert same_state(without, beside)
    for (problem, _), (other, _) in zip(without.solved, beside.solved, strict=True):
        assert problem.stats.heldout is None
        assert torch.equal(problem.stats.gram, other.stats.gram)
        assert (problem.stats.sequences, problem.stats.tokens) == (5, 5 * 24)
        assert (other.stats.heldout.sequences, other.stats.heldout.tokens) == (3, 3 * 24)
    for one, other in zip(without.reports, beside.reports, strict=True):
        assert (one.heldout_error_before, one.heldout_error_after) == (None, None)
        timeless = {"solve_seconds": 0.0, "correct_seconds": 0.0}
        unmeasured = {"heldout_error_before": None, "heldout_error_after": None}
        assert replace(other, **timeless, **unmeasured) == replace(one, **timeless)


@torch.no_grad()
def inputs_of(model, block, group):
    """What the group's layers read of the held-out sequences, in a forward of the whole model; float64."""
    seen = []
    layers = model.get_submodule(f"model.layers.{block}")
    handle = layers.get_submodule(group.linears[0]).register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].flatten(0, 1).double())
    )
    model(OTHERS, use_cache=False)
    handle.remove()
    return seen[0]


def relative(inputs, weight, quantized):
    outputs = inputs @ weight.double().T
    return float((outputs - inputs @ quantized.double().T).square().sum() / outputs.square().sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [0, 2])
def test_their_errors_are_those_of_outputs_of_the_quantized_model(family, batch_size):
    result = run(BASELINES["gptq"], ON, family, heldout=OTHERS, batch_size=batch_size)
    model, reports = tiny(family).model, iter(result.reports)
    for index, (problem, solution) in enumerate(result.solved):
        block, group = divmod(index, len(GROUPS))
        inputs = inputs_of(model, block, GROUPS[group])
        gram = 2 / len(OTHERS) * inputs.T @ inputs
        measured = problem.stats.heldout.gram.double()
        assert torch.allclose(measured, gram, rtol=0, atol=1e-5 * float(gram.max()))
        first = 0
        for name, rows in zip(problem.names, problem.rows, strict=True):
            part, report = slice(first, first + rows), next(reports)
            first += rows
            for found, linear in (
                (report.heldout_error_before, solution.base),
                (report.heldout_error_after, solution.corrected),
            ):
                expected = relative(inputs, problem.weight[part], linear.weight[part])
                assert found == pytest.approx(expected, rel=1e-3)
            assert report.heldout_error_before != report.error_before
            with torch.no_grad():
                written = model.get_submodule(f"model.layers.{block}.{name}").weight
                written.copy_(solution.corrected.weight[part])
    assert next(reports, None) is None
    assert len(tokens()) == result.solved[0][0].stats.sequences


def measured(inputs):
    accumulators = Accumulators({Statistic.GRAM})
    accumulators.update(inputs)
    return accumulators.result()


def test_they_move_with_the_statistics_and_the_weight():
    generator = torch.Generator().manual_seed(0)
    problem = layer(24, 40)
    inputs = torch.randn(2, 30, 40, generator=generator)
    stats = replace(problem.stats, heldout=measured(inputs))
    right = torch.randn(32, 40, generator=generator)
    factor = torch.rand(40, generator=generator) + 0.5
    for moved, images in (
        (stats.mapped(right), inputs @ right.T),
        (stats.scaled(factor), inputs * factor),
    ):
        assert torch.allclose(moved.heldout.gram, measured(images).gram, rtol=1e-4, atol=1e-4)
        assert (moved.heldout.sequences, moved.heldout.tokens) == (2, 60)
    rotated = draw_incoherence(problem, 0).problem(replace(problem, stats=stats))
    error = problem.weight - problem.weight.round(decimals=1)
    expected = float(torch.trace(error @ stats.heldout.gram @ error.T))
    there = rotated.weight - draw_incoherence(problem, 0).weight(problem.weight.round(decimals=1))
    found = float(torch.trace(there @ rotated.stats.heldout.gram @ there.T))
    assert found == pytest.approx(expected, rel=1e-3)
