"""Compiled loops against the plain ones, and what must not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.layers import layer

from q2n.linalg import kernels
from q2n.quantization.formats.activation import ActivationQuantizer
from q2n.quantization.formats.awq import AwqSpec
from q2n.quantization.formats.kept import KeptColumnsSpec
from q2n.quantization.formats.kmeans import cluster_rows
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.formats.masked import SalientSpec
from q2n.quantization.formats.mse2d import Mse2dSpec
from q2n.quantization.formats.per_tensor import PerTensorSpec
from q2n.quantization.formats.uniform import CentredSpec, UniformSpec, column_errors
from q2n.quantization.formats.xnor import XnorSpec
from q2n.quantization.solvers.ldlq import solve_ldlq
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order


def heavy_tails(rows, columns, seed=0):
    """Rows of different spreads, some with values far out."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * weight.abs().pow(torch.linspace(0, 2, rows)[:, None]) * 0.02


GRIDS = [
    UniformSpec(3),
    UniformSpec(2, 23),
    UniformSpec(4, 64, symmetric=True, static_groups=True),
    CentredSpec(3, clip="mse"),
    PerTensorSpec(2),
    LutSpec(2, 4.0),
    LutSpec(4, 4.0),
    XnorSpec(40),
    SalientSpec(XnorSpec(), UniformSpec(8), 0.7, "hessian"),
    SalientSpec(XnorSpec(32), UniformSpec(4, 23), 0.5, "magnitude"),
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
    share = float(rows.double().mean())  # a row that went another way has another loss
    assert result.diagnostics["loss"] == pytest.approx(expected.diagnostics["loss"], rel=1e-4 + share)


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
    grid = KeptColumnsSpec(UniformSpec(3, 16))
    result = solve_obs(problem, grid, [0.01], order, kept=6)
    assert_same(result, plain(lambda: solve_obs(problem, grid, [0.01], order, kept=6)), ties=0)


@pytest.mark.parametrize("grid", [PerTensorSpec(2), PerTensorSpec(3), UniformSpec(3, 23, static_groups=True)])
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
    monkeypatch.setattr(UniformSpec.encoder.__globals__["UniformEncoder"], "strips", None)
    problem = layer(8, 40)
    with pytest.raises(TypeError):
        solve_obs(problem, UniformSpec(3), [0.01])
    plain(lambda: solve_obs(problem, UniformSpec(3), [0.01]))
    assert not kernels.usable(problem.weight.double())
    assert not kernels.usable(problem.weight.to("meta"))


@pytest.mark.parametrize("grid", [UniformSpec(3, 64), LutSpec(3, 4.0), GRIDS[-2]])
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
    if not isinstance(grid, SalientSpec):  # its threshold is common to all rows
        part = replace(problem, weight=problem.weight[505:520].clone(), rows=(15,))
        rows = solve_obs(part, grid, [0.01]).weight == alone.weight[505:520]
        assert int((~rows).any(dim=1).sum()) <= 1


@pytest.mark.parametrize(
    "grid", [UniformSpec(3), UniformSpec(4, symmetric=True), PerTensorSpec(2), XnorSpec()]
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


def power_errors(weight, scale, zero, levels):
    """``sum |w - Q(w)|^2.4`` of each row in double precision."""
    ratio = weight.double() / scale.double()[:, None]
    codes = (ratio.round() + zero[:, None]).clamp(0, levels)
    return ((ratio - codes + zero[:, None]).abs() ** 2.4).sum(dim=1) * scale.double() ** 2.4


@pytest.mark.parametrize("columns", [24, 64, 200, 576])
@pytest.mark.parametrize(
    "grid",
    [
        UniformSpec(3, clip="mse"),
        UniformSpec(2, clip="mse", symmetric=True),
        CentredSpec(4, clip="mse", symmetric=True),
        Mse2dSpec(3),
        Mse2dSpec(2, steps=40),
        Mse2dSpec(5, steps=17),
    ],
)
def test_searches_choose_as_the_plain_ones(plain, grid, columns):
    """The same grid, or in a few rows one whose error differs by less than single precision can tell."""
    weight = heavy_tails(60, columns)
    weight[3], weight[4], weight[5] = 0, weight[4].abs(), 1
    (scale, zero), (other, point) = grid.fit(weight), plain(lambda: grid.fit(weight))
    different = (scale != other) | (zero != point)
    assert int(different.sum()) <= 3
    found, expected = (power_errors(weight, *form, grid.levels) for form in ((scale, zero), (other, point)))
    assert torch.allclose(found[different], expected[different], rtol=2e-6)


def test_errors_of_columns_are_those_of_the_plain_rounding(plain):
    weight, grid = heavy_tails(60, 200), UniformSpec(3)
    parameters = grid.fit(weight)
    found = column_errors(weight, *parameters, grid.levels)
    expected = plain(lambda: column_errors(weight, *parameters, grid.levels))
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("grid", [UniformSpec(3, clip="mse"), Mse2dSpec(3)])
def test_one_weight_alone_has_a_grid_it_lies_on(grid):
    weight = heavy_tails(40, 1)
    scale, zero = grid.fit(weight)
    assert float(power_errors(weight, scale, zero, 7).max()) < 1e-12


@pytest.mark.parametrize("clusters", [2, 8, 16])
@pytest.mark.parametrize("columns", [9, 150])
def test_clusters_are_those_of_the_plain_iterations(plain, clusters, columns):
    values = heavy_tails(50, columns)
    values[0], values[1, 1:], values[2] = 0.5, 1, values[2].round(decimals=2)  # fewer values than clusters
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.1
    found = cluster_rows(values, importance, clusters, 0)
    expected = plain(lambda: cluster_rows(values, importance, clusters, 0))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_threads_do_not_change_a_search():
    weight, threads = heavy_tails(101, 96), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            parts = (*Mse2dSpec(3).fit(weight), *UniformSpec(3, clip="mse").fit(weight))
            results.append(torch.cat([*parts, cluster_rows(weight, torch.ones(96), 8, 0).flatten()]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("ratio", "size"), [(1.0, -1), (0.9, -1), (1.0, 32), (0.7, 48)])
def test_tokens_are_rounded_bit_for_bit_as_by_torch(plain, dtype, bits, ratio, size):
    """Whatever comes: tokens of zeros, tiny and huge ones, and ones that are not numbers."""
    tokens = torch.cat([heavy_tails(30, 192), heavy_tails(6, 192, seed=1) * 1e30]).to(dtype)
    tokens[0], tokens[1, 7], tokens[2, 9], tokens[3, 50] = 0, float("nan"), float("inf"), -float("inf")
    tokens[4] *= 1e-30
    quantizer = ActivationQuantizer(bits, True, ratio, size)
    for given in (
        tokens,
        tokens.view(2, 18, 192),
        tokens[:, :96].repeat(1, 2)[:, 96:].T.contiguous().T[:, :96],
    ):
        result, expected = quantizer(given), plain(lambda given=given: quantizer(given))
        assert result.dtype == dtype
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("size", [-1, 16, 24, 100])
def test_trial_weights_are_those_of_the_plain_search(plain, size):
    weight, grid = heavy_tails(40, 200), AwqSpec(3, size)
    weight[0], weight[1, :100], weight[2] = 0, weight[1, :100].abs(), -weight[2].abs()
    scale = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.2
    result = grid.rounded_scaled(weight, scale)
    assert torch.equal(result, plain(lambda: grid.rounded_scaled(weight, scale)))
    assert torch.equal(result, grid.rounded(weight * scale) / scale)
