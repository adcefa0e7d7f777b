"""Compiled loops against the plain ones, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.layers import layer

from q2n import kernels
from q2n.grids.centred import CentredGrid
from q2n.grids.kept import KeptColumnsGrid
from q2n.grids.lut import LutGrid
from q2n.grids.masked import SalientGrid
from q2n.grids.per_tensor import PerTensorGrid
from q2n.grids.uniform import UniformGrid
from q2n.grids.xnor import XnorGrid
from q2n.solvers.ldlq import solve_ldlq
from q2n.solvers.obs import activation_order, solve_obs

GRIDS = [
    UniformGrid(3),
    UniformGrid(2, 23),
    UniformGrid(4, 64, symmetric=True, static_groups=True),
    CentredGrid(3, clip="mse"),
    PerTensorGrid(2),
    LutGrid(2, 4.0),
    LutGrid(4, 4.0),
    XnorGrid(40),
    SalientGrid(XnorGrid(), UniformGrid(8), 0.7, "hessian"),
    SalientGrid(XnorGrid(32), UniformGrid(4, 23), 0.5, "magnitude"),
]


@pytest.fixture
def plain(monkeypatch):
    """Runs a call without kernels."""

    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_installed", lambda: False)
            return call()

    return run


def codes(result):
    return {
        name: tensor for name, tensor in result.format.tensors().items() if not tensor.is_floating_point()
    }


def assert_same(result, expected, ties=1):
    """All rows but ``ties``: one rounding that hangs on the last digit changes what follows in its row."""
    rows = torch.zeros(len(expected.weight), dtype=torch.bool)
    found = codes(result)
    for name, tensor in codes(expected).items():
        if tensor.ndim == 2:
            rows |= (found[name] != tensor).any(dim=1)
    assert int(rows.sum()) <= ties
    for name in ("weight", "compensated"):
        one, other = getattr(result, name)[~rows], getattr(expected, name)[~rows]
        assert torch.allclose(one, other, rtol=0, atol=2e-6)
    assert result.diagnostics["loss"] == pytest.approx(expected.diagnostics["loss"], rel=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("act_order", [False, True])
def test_kernels_round_as_the_plain_loop(plain, grid, act_order):
    problem = layer(300, 200, seed=1, dead=(3, 77))
    order = activation_order(problem.stats.gram) if act_order else None
    result = solve_obs(problem, grid, [0.01], order)
    assert_same(result, plain(lambda: solve_obs(problem, grid, [0.01], order)))


def test_kept_columns(plain):
    problem = layer(40, 100, seed=2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    grid = KeptColumnsGrid(UniformGrid(3, 16))
    result = solve_obs(problem, grid, [0.01], order, kept=6)
    assert_same(result, plain(lambda: solve_obs(problem, grid, [0.01], order, kept=6)), ties=0)


@pytest.mark.parametrize("grid", [PerTensorGrid(2), PerTensorGrid(3), UniformGrid(3, 23, static_groups=True)])
@pytest.mark.parametrize("npasses", [0, 1, 4])
def test_ldlq_and_greedy_passes(plain, grid, npasses):
    problem = layer(300, 200, seed=3)
    hessian = problem.stats.gram + 0.05 * problem.stats.gram.diagonal().mean() * torch.eye(200)
    result = solve_ldlq(problem, grid, hessian, npasses)
    expected = plain(lambda: solve_ldlq(problem, grid, hessian, npasses))
    different = (result.format.codes != expected.format.codes).any(dim=1)
    assert int(different.sum()) <= 1
    assert torch.equal(result.weight[~different], expected.weight[~different])


def test_the_plain_loop_is_what_runs_where_kernels_cannot(plain, monkeypatch):
    """Neither double precision nor a machine without numba reaches a kernel."""
    monkeypatch.setattr(UniformGrid.encoder.__globals__["UniformEncoder"], "strips", None)
    problem = layer(8, 40)
    with pytest.raises(TypeError):
        solve_obs(problem, UniformGrid(3), [0.01])
    plain(lambda: solve_obs(problem, UniformGrid(3), [0.01]))
    assert not kernels.usable(problem.weight.double())
    assert not kernels.usable(problem.weight.to("meta"))


@pytest.mark.parametrize("grid", [UniformGrid(3, 64), LutGrid(3, 4.0), GRIDS[-2]])
def test_rows_are_rounded_alike_in_any_company_and_with_any_number_of_threads(grid):
    """Kernels work through rows in slabs; a row's result depends on neither slab nor thread."""
    problem = layer(1100, 150, seed=4)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = solve_obs(problem, grid, [0.01])
        torch.set_num_threads(2)
        together = solve_obs(problem, grid, [0.01])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone.weight, together.weight)
    if not isinstance(grid, SalientGrid):  # its threshold is common to all rows
        part = replace(problem, weight=problem.weight[505:520].clone(), rows=(15,))
        rows = solve_obs(part, grid, [0.01]).weight == alone.weight[505:520]
        assert int((~rows).any(dim=1).sum()) <= 1


@pytest.mark.parametrize(
    "grid", [UniformGrid(3), UniformGrid(4, symmetric=True), PerTensorGrid(2), XnorGrid()]
)
def test_ties_go_where_torch_sends_them(plain, grid):
    """With uncorrelated inputs nothing is pushed: codes are equal without exception, ties included."""
    weight = torch.from_numpy(np.tile(np.arange(-8, 8, 0.25, dtype=np.float32), (4, 1)))
    problem = replace(layer(4, 64), weight=weight)
    problem.stats.gram.copy_(torch.eye(64))
    result, expected = solve_obs(problem, grid, [0.01]), plain(lambda: solve_obs(problem, grid, [0.01]))
    assert torch.equal(result.weight, expected.weight)
    for name, tensor in codes(expected).items():
        assert torch.equal(codes(result)[name], tensor)
