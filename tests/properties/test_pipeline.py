"""The block loop against slow references that run the whole model anew for every group of layers."""

import pytest
import torch
from helpers.runs import FAMILIES, run, same_state, tiny, tokens

from q2n.baselines.gptq import GPTQ
from q2n.baselines.rtn import RTN
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV
from q2n.types import Statistic

GROUPS = (QKV, O_PROJ, GATE_UP, DOWN)
ON = NullSpaceScale(t=0.1, lam=0.2, skip=[])
METHODS = {
    "gptq": GPTQ(bits=3, group_size=16, act_order=True),
    "rtn": RTN(bits=3, group_size=16),
}


def linear(model, block, name):
    return model.get_submodule(f"model.layers.{block}.{name}")


@torch.no_grad()
def inputs_of(model, block, group):
    """What the group's layers read, one sequence after the other, in a plain forward of the whole model."""
    seen = []
    handle = linear(model, block, group.linears[0]).register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].flatten(0, 1).double())
    )
    for sequence in tokens():
        model(sequence[None], use_cache=False)
    handle.remove()
    return torch.stack(seen)


def expect_problem(model, block, group, problem, inputs):
    """The recorded problem is the model's current weights with the inputs' statistics."""
    flat = inputs.flatten(0, 1)
    gram = 2 / len(inputs) * flat.T @ flat
    assert problem.names == group.linears
    weights = [linear(model, block, name).weight for name in group.linears]
    assert torch.equal(problem.weight, torch.cat(weights))
    assert torch.allclose(problem.stats.gram.double(), gram, rtol=0, atol=1e-5 * float(gram.max()))
    assert (problem.stats.sequences, problem.stats.tokens) == (len(tokens()), tokens().numel())


@torch.no_grad()
def write(model, block, problem, solution):
    for name, rows in zip(problem.names, solution.corrected.weight.split(list(problem.rows)), strict=True):
        linear(model, block, name).weight.copy_(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [0, 2])
def test_true_sequential_is_one_forward_a_group(family, method, batch_size):
    """Every group's inputs have gone through all groups before it, quantized and corrected."""
    result = run(METHODS[method], ON, family, batch_size=batch_size)
    model, solved = tiny(family).model, iter(result.solved)
    for block in range(2):
        for group in GROUPS:
            problem, solution = next(solved)
            inputs = inputs_of(model, block, group)
            expect_problem(model, block, group, problem, inputs)
            write(model, block, problem, solution)
    assert next(solved, None) is None
    assert all(torch.equal(value, result.state()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [0, 2])
def test_whole_block_reads_the_block_as_it_was(family, method, batch_size):
    result = run(METHODS[method], ON, family, batch_size=batch_size, true_sequential=False)
    model, solved = tiny(family).model, iter(result.solved)
    for block in range(2):
        measured = [inputs_of(model, block, group) for group in GROUPS]
        for group, inputs in zip(GROUPS, measured, strict=True):
            problem, solution = next(solved)
            expect_problem(model, block, group, problem, inputs)
            write(model, block, problem, solution)
    assert next(solved, None) is None
    assert all(torch.equal(value, result.state()[name]) for name, value in model.state_dict().items())


def test_the_two_stagings_differ_from_the_second_group_on():
    first, second = run(METHODS["gptq"]), run(METHODS["gptq"], true_sequential=False)
    grams = [problem.stats.gram for problem, _ in first.solved]
    others = [problem.stats.gram for problem, _ in second.solved]
    assert torch.equal(grams[0], others[0])
    assert not any(torch.equal(one, other) for one, other in zip(grams[1:], others[1:], strict=True))


@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_reports_are_of_actual_outputs(method, true_sequential):
    result = run(METHODS[method], ON, "qwen3", true_sequential=true_sequential)
    model, reports = tiny("qwen3").model, iter(result.reports)
    for index, (problem, solution) in enumerate(result.solved):
        block, group = divmod(index, len(GROUPS))
        if group == 0:
            before = {name: inputs_of(model, block, GROUPS[name]) for name in range(4)}
        inputs = inputs_of(model, block, GROUPS[group]) if true_sequential else before[group]
        first = 0
        for name, rows in zip(problem.names, problem.rows, strict=True):
            part, report = slice(first, first + rows), next(reports)
            first += rows
            assert (report.block, report.name) == (block, name)
            assert report.shape == (rows, problem.weight.shape[1])
            expected = [
                relative_error(inputs, problem.weight[part], found.weight[part])
                for found in (solution.base, solution.corrected)
            ]
            assert report.error_before == pytest.approx(expected[0], rel=1e-3)
            assert report.error_after == pytest.approx(expected[1], rel=1e-3)
            alpha = solution.corrected.diagnostics["alpha"][part]
            assert (report.alpha_min, report.alpha_max) == (float(alpha.min()), float(alpha.max()))
            assert report.null_rank == solution.corrected.diagnostics["null_rank"]
            bits = solution.corrected.format.select_rows(part.start, part.stop).storage_bits()
            assert report.bits_per_weight == bits / (rows * problem.weight.shape[1])
        if true_sequential or group == 3:
            for done in range(group if true_sequential else 0, group + 1):
                write(model, block, *result.solved[block * 4 + done])
    assert next(reports, None) is None


@pytest.mark.parametrize("true_sequential", [True, False])
def test_half_a_gram_matrix_measures_the_same_errors(true_sequential):
    """Nothing needs it but the reports: layers are then solved one by one, to the same weights."""
    idle = NullSpaceScale(t=0.1, lam=0.2, skip=["*"])
    half = run(METHODS["rtn"], NoCorrection(), "qwen3", true_sequential=true_sequential)
    whole = run(METHODS["rtn"], idle, "qwen3", true_sequential=true_sequential)
    assert Statistic.GRAM not in half.solved[0][0].stats
    assert Statistic.TRIANGLE not in whole.solved[0][0].stats
    assert same_state(half, whole)
    for one, other in zip(half.reports, whole.reports, strict=True):
        assert (one.block, one.name) == (other.block, other.name)
        assert one.error_after == pytest.approx(other.error_before, rel=1e-5)


def relative_error(inputs, weight, quantized):
    """``||X (W - Q)^T||^2 / ||X W^T||^2``."""
    flat = inputs.flatten(0, 1)
    outputs, found = flat @ weight.double().T, flat @ quantized.double().T
    return float((outputs - found).square().sum() / outputs.square().sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("batch_size", [0, 1, 3])
def test_where_activations_wait_does_not_matter(family, true_sequential, batch_size):
    fields = {"batch_size": batch_size, "true_sequential": true_sequential}
    memory = run(METHODS["gptq"], ON, family, activations="memory", **fields)
    disk = run(METHODS["gptq"], ON, family, activations="disk", **fields)
    assert same_state(memory, disk)
    for one, other in zip(memory.solved, disk.solved, strict=True):
        assert torch.equal(one[0].stats.gram, other[0].stats.gram)
    assert [report.error_after for report in memory.reports] == [r.error_after for r in disk.reports]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("true_sequential", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_micro_batches_only_change_the_order_of_a_sum(family, true_sequential, batch_size):
    # No order by activation: two columns of nearly equal activation may change places by the last digit.
    baseline = GPTQ(bits=3, group_size=16)
    whole = run(baseline, ON, family, true_sequential=true_sequential)
    parts = run(baseline, ON, family, true_sequential=true_sequential, batch_size=batch_size)
    assert same_state(whole, parts) or batch_size != 100
    for (one, first), (other, second) in zip(whole.solved, parts.solved, strict=True):
        gram = one.stats.gram
        assert torch.allclose(gram, other.stats.gram, rtol=0, atol=2e-6 * float(gram.max()))
        codes, others = first.base.format.codes, second.base.format.codes
        assert (codes != others).float().mean() < 0.01
        if not torch.equal(codes, others):
            return  # a tie went the other way, and everything after it reads other activations
    assert torch.allclose(whole.logits(), parts.logits(), rtol=0, atol=1e-4)
