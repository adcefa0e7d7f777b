"""The loop as the paper states it against optimal brain quantization, and the loop that runs against it."""

import pytest
import torch
from helpers.layers import layer
from helpers.obq import naive_obq, prepared

from q2n.linalg import kernels
from q2n.quantization.formats.kept import KeptColumnsSpec
from q2n.quantization.formats.uniform import UniformSpec
from q2n.quantization.solvers.ldlq import solve_ldlq
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order, solve

COLUMNS = 150  # more than a block


def expect_same(found, expected):
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.compensated, expected.compensated)
    assert torch.equal(found.order, expected.order)
    assert found.diagnostics == expected.diagnostics
    for name, tensor in expected.format.tensors().items():
        assert torch.equal(found.format.tensors()[name], tensor)


def expect_close(found, expected, ties=1):
    """All rows but ``ties``: one rounding that hangs on the last digit changes what follows in its row."""
    error = (found.weight - expected.weight).abs().amax(dim=1)
    assert int((error > 2e-6).sum()) <= ties


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 23, 64])
def test_codes_are_those_of_optimal_brain_quantization(group_size, act_order, static):
    problem = layer(16, COLUMNS)
    order = activation_order(problem.stats.gram) if act_order else None
    grid = UniformSpec(3, group_size, static_groups=static)
    found = solve(problem, grid, [0.01], order)
    expected = naive_obq(problem, 3, group_size, order=order, static=static)
    clear = expected.clear
    assert torch.equal(found.format.codes[clear], expected.codes[clear])
    assert torch.allclose(found.weight[clear].double(), expected.weight[clear], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kept", [0, 5])
@pytest.mark.parametrize("dead", [(), (0, 17, 149)])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 23])
def test_the_loop_that_runs_is_the_reference(monkeypatch, group_size, act_order, dead, kept):
    """Without a kernel bit for bit; with one all but the order of sums."""
    problem = layer(40, COLUMNS, seed=1, dead=dead)
    order = activation_order(problem.stats.gram) if act_order else None
    grid = KeptColumnsSpec(UniformSpec(3, group_size)) if kept else UniformSpec(3, group_size)
    expected = solve(problem, grid, [0.01], order, kept)
    expect_close(solve_obs(problem, grid, [0.01], order, kept), expected)
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    expect_same(solve_obs(problem, grid, [0.01], order, kept), expected)


def test_ldlq_is_the_reference_from_the_last_column():
    problem = layer(40, COLUMNS, seed=2)
    grid = UniformSpec(3, 23, static_groups=True)
    _, hessian = prepared(problem.weight.double(), problem.stats.gram.double(), 0.01)
    backwards = torch.arange(COLUMNS - 1, -1, -1)
    expect_close(solve_ldlq(problem, grid, hessian), solve(problem, grid, [0.01], backwards))
