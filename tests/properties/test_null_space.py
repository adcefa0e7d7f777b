"""The null-space row scale against dense formulas, numerical optimisers and the losses they minimise."""

import itertools

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.gptq import GPTQ
from q2n.baselines.rtn import RTN
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import adam_row_scale, row_scale
from q2n.types import LinearProblem, Statistic, Statistics

R, C = 24, 40
STATISTICS = ("gram", "position_mean")


def scaled(t=0.1, lam=0.2, **fields):
    return NullSpaceScale(t=t, lam=lam, **fields)


def solve(correction, problem=None, baseline=None):
    problem = problem or layer(R, C)
    return problem, (baseline or GPTQ(bits=2, group_size=16)).solve(problem, correction)


def projector(problem, solution, statistic):
    """``P`` written down: the span of the smallest eigenvectors of the statistic's second moment."""
    value = problem.stats[Statistic(statistic)].double()
    moment = value if statistic == "gram" else value.T @ value
    vectors = torch.linalg.eigh(moment).eigenvectors
    null = vectors[:, : solution.corrected.diagnostics["null_rank"]]
    return null @ null.T


def optimum(loss, rows):
    """Minimiser of a quadratic: one Newton step from anywhere, with derivatives by autograd."""
    start = torch.zeros(rows, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(start), start)
    curvature = torch.autograd.functional.hessian(loss, start.detach())
    return start.detach() - torch.linalg.solve(curvature, slope)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("reference", ["original", "compensated"])
@pytest.mark.parametrize("t", [0.0, 0.02, 0.1, 0.7])
@pytest.mark.parametrize("lam", [1e-3, 0.2, 5.0])
def test_alpha_minimises_the_loss(statistic, reference, t, lam):
    problem, solution = solve(scaled(t, lam, statistic=statistic, reference=reference))
    quantized, base = solution.base.weight.double(), solution.base
    weight = (base.original if reference == "original" else base.compensated).double()
    null = projector(problem, solution, statistic)
    target = weight @ (torch.eye(C) - null) + quantized @ null

    def loss(alpha):
        fit = (target - alpha[:, None] * quantized).square().sum()
        return fit + lam * (alpha - 1).square().sum()

    alpha = solution.corrected.diagnostics["alpha"]
    # The 1e-8 in the denominator is not part of the loss.
    assert torch.allclose(alpha, optimum(loss, R), rtol=0, atol=1e-6)
    assert not torch.allclose(alpha, torch.ones_like(alpha), atol=1e-5)


def test_both_closed_forms_are_one():
    """``(<B, Q> + lam) / (|Q|^2 + lam)`` is ``1 + <E (I - P), Q> / (|Q|^2 + lam)``."""
    problem, solution = solve(scaled())
    quantized = solution.base.weight.double()
    null = projector(problem, solution, "gram")
    target = problem.weight.double() - (problem.weight.double() - quantized) @ null
    direct = ((target * quantized).sum(1) + 0.2) / (quantized.square().sum(1) + 0.2 + 1e-8)
    assert torch.allclose(solution.corrected.diagnostics["alpha"], direct, rtol=0, atol=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.2, 5.0])
def test_closed_form_is_where_adam_ends(lam):
    _, solution = solve(scaled(0.1, lam))
    alpha = solution.corrected.diagnostics["alpha"]
    _, free = solve(scaled(0.1, 0.0))
    fit, norms = free.corrected.diagnostics["alpha"], free.base.weight.double().square().sum(dim=1)
    trained = torch.ones(R, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([trained], lr=2e-3)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.995)
    for _ in range(2000):
        optimiser.zero_grad()
        (norms * (trained - fit) ** 2 + lam * (trained - 1) ** 2).sum().backward()
        optimiser.step()
        rate.step()
    assert torch.allclose(trained.detach(), alpha, rtol=0, atol=1e-5)
    # Twenty steps of 0.002, as released, cannot go further than that.
    assert (adam_row_scale(fit, norms, lam) - alpha).abs().max() < 0.045


@pytest.mark.parametrize("rank", [0, 1, 7, 20, 21, 39, 40])
def test_low_rank_is_the_dense_formula(rank):
    generator = torch.Generator().manual_seed(rank)
    error, values = torch.randn(2, R, C, generator=generator).unbind()
    vectors = torch.linalg.qr(torch.randn(C, C, generator=generator, dtype=torch.float64)).Q
    null = vectors[:, rank:] @ vectors[:, rank:].T
    shared = ((error.double() @ (torch.eye(C) - null)) * values.double()).sum(dim=1)
    expected = 1 + shared / (values.double().square().sum(dim=1) + 0.2 + 1e-8)
    exact = row_scale(error.double(), values.double(), vectors, rank, 0.2)
    assert torch.allclose(exact, expected, rtol=0, atol=1e-12)
    assert torch.allclose(row_scale(error, values, vectors, rank, 0.2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("dead", [(), (0, 7)])
def test_projector_is_symmetric_and_idempotent(statistic, dead):
    problem = layer(R, C, dead=dead)
    _, solution = solve(scaled(statistic=statistic), problem)
    null_rank = solution.corrected.diagnostics["null_rank"]
    spectrum = problem.stats.spectrum(Statistic(statistic))
    leading, trailing = spectrum.vectors.split([C - null_rank, null_rank], dim=1)
    null = trailing @ trailing.T
    assert torch.allclose(null, null.T, atol=1e-14)
    assert torch.allclose(null @ null, null, atol=1e-12)
    assert torch.allclose(torch.eye(C) - null, leading @ leading.T, atol=1e-12)
    assert torch.allclose(null, projector(problem, solution, statistic), atol=1e-9)
    assert float(null.trace()) == pytest.approx(null_rank)
    # What the inputs' second moment leaves in the null space is what the threshold allows.
    value = problem.stats[Statistic(statistic)].double()
    moment = value if statistic == "gram" else value.T @ value
    energies = torch.linalg.eigvalsh(moment)
    assert float((null @ moment).trace()) == pytest.approx(float(energies[:null_rank].sum()), abs=1e-9)


def test_alpha_is_one_without_error_without_range_and_without_freedom():
    problem, solution = solve(scaled())
    exact = LinearProblem(problem.names, problem.rows, solution.base.weight, problem.stats)
    rounded = RTN(bits=8, group_size=-1).quantize(exact)
    ones = torch.ones(R, dtype=torch.float64)
    same = scaled().correct(exact, type(rounded)(solution.base.format, exact.weight, exact.weight))
    assert torch.equal(same.diagnostics["alpha"], ones)
    assert torch.equal(same.weight, exact.weight)
    fixed = scaled(lam=1e15).correct(problem, solution.base)
    assert torch.allclose(fixed.diagnostics["alpha"], ones, atol=1e-14)
    assert torch.equal(fixed.weight, solution.base.weight)
    distances = [
        (scaled(lam=lam).correct(problem, solution.base).diagnostics["alpha"] - 1).abs()
        for lam in (0.0, 0.1, 1.0, 100.0)
    ]
    assert all(bool((later < earlier).all()) for earlier, later in itertools.pairwise(distances))


def test_inputs_that_are_always_zero_leave_everything_as_it_is():
    stats = Statistics({Statistic.GRAM: torch.zeros(C, C)}, 1, C)
    problem = LinearProblem(("self_attn.q_proj",), (R,), layer(R, C).weight, stats)
    _, solution = solve(scaled(), problem, RTN(bits=2, group_size=-1))
    assert solution.corrected.diagnostics["null_rank"] == C
    assert torch.equal(solution.corrected.weight, solution.base.weight)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_whole_range_and_no_penalty_is_least_squares(statistic):
    problem, solution = solve(scaled(0.0, 0.0, statistic=statistic, index_rule="textbook"))
    assert solution.corrected.diagnostics["null_rank"] == 0
    for row, values, alpha in zip(
        problem.weight, solution.base.weight, solution.corrected.diagnostics["alpha"], strict=True
    ):
        expected = torch.linalg.lstsq(values.double()[:, None], row.double()[:, None]).solution
        assert float(alpha) == pytest.approx(float(expected), abs=1e-6)
