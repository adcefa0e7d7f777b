"""OBS, LDLQ and greedy passes against slow, dense definitions."""

import pytest
import torch
from helpers.layers import layer

from q2n.exceptions import NumericalError, UnsupportedError
from q2n.linalg.dense import damped_inverse_factor, invert_factor, kth_smallest, lower_factor
from q2n.quantization.formats.kept import KeptColumnsSpec
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.formats.per_tensor import PerTensorSpec
from q2n.quantization.formats.uniform import UniformSpec
from q2n.quantization.solvers.ldlq import solve_ldlq
from q2n.quantization.solvers.obs import solve_obs


def damped(problem, fraction=0.01):
    gram = problem.stats.gram.double()
    return gram + fraction * gram.diagonal().mean() * torch.eye(len(gram))


@pytest.mark.parametrize(
    "grid", [UniformSpec(8), UniformSpec(3), UniformSpec(3, 16, static_groups=True), LutSpec(3, 2.0)]
)
@pytest.mark.parametrize("columns", [40, 200])
def test_ldlq_is_obs_in_reversed_order(grid, columns):
    problem = layer(12, columns)
    if isinstance(grid, LutSpec):
        grid = LutSpec(3, 2.0, tables=torch.randn(12, 8) * 0.05)
    reversed_order = torch.arange(columns - 1, -1, -1)
    by_obs = solve_obs(problem, grid, [0.01], reversed_order)
    by_ldlq = solve_ldlq(problem, grid, damped(problem))
    assert torch.equal(by_ldlq.format.codes, by_obs.format.codes)
    assert torch.allclose(by_ldlq.weight, by_obs.weight, atol=1e-6)


def dense_ldlq(target, hessian, scale, levels, npasses):
    """The definition, one column at a time in float64, on lattice coordinates."""
    lattice = ((target.double() / scale + 1) / 2 * levels).clamp(0, levels)
    lower = torch.linalg.cholesky(hessian)
    feedback = lower / lower.diagonal() - torch.eye(len(lower))
    codes = lattice.clone()
    for column in range(len(hessian) - 1, -1, -1):
        push = (lattice[:, column:] - codes[:, column:]) @ feedback[column:, column]
        codes[:, column] = (lattice[:, column] + push + 0.5).floor().clamp(0, levels)
    for _ in range(npasses):
        error = codes - lattice
        for column in range(len(hessian) - 1, -1, -1):
            move = error @ hessian[:, column] / hessian[column, column]
            new = torch.round(codes[:, column] - move)
            error[:, column] += new - codes[:, column]
            codes[:, column] = new
        codes.clamp_(0, levels)
    return codes


@pytest.mark.parametrize("npasses", [0, 1, 3])
@pytest.mark.parametrize("columns", [40, 150])
def test_ldlq_and_greedy_passes_are_their_definition(npasses, columns):
    problem, grid = layer(12, columns), PerTensorSpec(2)
    hessian = damped(problem, 0.1)
    result = solve_ldlq(problem, grid, hessian, npasses, grid.target(problem.weight))
    expected = dense_ldlq(problem.weight, hessian, grid.scale(problem.weight).double(), 3, npasses)
    assert (result.format.codes != expected).float().mean() < 2e-3


def proxy(problem, result, hessian):
    error = (result.weight - problem.weight).double()
    return float((error @ hessian * error).sum())


def test_greedy_passes_lower_the_proxy_loss():
    problem, grid = layer(16, 64), UniformSpec(4)
    hessian = damped(problem)
    losses = [proxy(problem, solve_ldlq(problem, grid, hessian, count), hessian) for count in (0, 1, 10)]
    nearest = (grid.quantize(problem.weight).dequantize() - problem.weight).double()
    assert losses[2] <= losses[1] < losses[0] < float((nearest @ hessian * nearest).sum())


def test_greedy_passes_need_an_even_grid():
    problem = layer(8, 16)
    with pytest.raises(UnsupportedError, match="npasses to 0"):
        solve_ldlq(problem, LutSpec(2, 2.0), damped(problem), npasses=1)


def test_ldlq_needs_a_positive_definite_hessian():
    problem = layer(8, 16)
    with pytest.raises(NumericalError, match="not positive definite"):
        solve_ldlq(problem, PerTensorSpec(2), -damped(problem))


def test_kept_columns_end_as_the_compensated_values():
    problem = layer(12, 150)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    result = solve_obs(problem, KeptColumnsSpec(UniformSpec(3)), [0.01], order, kept=5)
    columns = result.kept.nonzero()[:, 0]
    assert torch.equal(columns, order[-5:].sort().values)
    assert torch.equal(result.weight[:, columns], result.compensated[:, columns])
    assert not torch.allclose(result.weight[:, columns], problem.weight[:, columns])
    # They are what minimises the error that rounding the others has left.
    gram = damped(problem)
    error = (result.weight - problem.weight).double()
    rest = ~result.kept
    best = -error[:, rest] @ gram[rest][:, columns] @ torch.linalg.inv(gram[columns][:, columns])
    assert torch.allclose(error[:, columns], best, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 7, 192, 200, 500])
def test_a_factor_and_its_inverse(columns):
    hessian = damped(layer(2, columns))
    inverse = hessian.clone()
    assert invert_factor(inverse)
    lower = lower_factor(hessian)
    assert torch.allclose(lower @ lower.T, hessian, rtol=0, atol=1e-10 * float(hessian.max()))
    assert torch.allclose(inverse @ lower, torch.eye(columns, dtype=torch.float64), atol=1e-9)
    assert torch.equal(lower, lower.tril())
    assert torch.equal(inverse, inverse.tril())
    indefinite = hessian - 2 * hessian.diagonal().mean() * torch.eye(columns)
    assert lower_factor(indefinite) is None
    assert not invert_factor(indefinite)


def test_inverse_factor_is_the_upper_cholesky_factor_of_the_inverse():
    hessian = layer(2, 300).stats.gram
    factor = damped_inverse_factor(hessian, [0.01])
    gram = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(300)
    expected = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    assert torch.allclose(factor.upper.double(), expected, rtol=0, atol=1e-6 * float(expected.max()))


def test_kth_smallest():
    values = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    for rank in (0, 99, 209):
        assert kth_smallest(values, rank) == values.flatten().sort().values[rank]
