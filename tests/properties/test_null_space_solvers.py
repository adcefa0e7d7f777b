"""Solvers of alpha on one objective: gradients, optima, what lambda's scale means."""

import pytest
import torch
from helpers.layers import layer
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.gptq import GPTQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import adam_row_scale, adam_to_convergence
from q2n.types import LinearProblem, QuantizedLinear, Statistic

R, C = 24, 40


class Matrix:
    """A number format that is the matrix itself, for weights of any size."""

    def __init__(self, values):
        self.values = values

    def dequantize(self):
        return self.values

    def scale_rows(self, alpha):
        return Matrix(alpha.to(self.values)[:, None] * self.values)


def solved(problem, base, **fields):
    return NullSpaceScale(**{"t": 0.1, "lam": 0.2, **fields}).correct(problem, base)


def case(seed=0):
    problem = layer(R, C, seed=seed)
    return problem, GPTQ(bits=2, group_size=16).quantize(problem)


def objective(problem, base, result, lam, relative):
    """``alpha -> ||B - diag(alpha) Q||^2 + sum lambda_r (alpha_r - 1)^2`` with the projector written down."""
    null_rank = result.diagnostics["null_rank"]
    vectors = torch.linalg.eigh(problem.stats.gram.double()).eigenvectors
    null = vectors[:, :null_rank] @ vectors[:, :null_rank].T
    quantized = base.weight.double()
    target = problem.weight.double() @ (torch.eye(C) - null) + quantized @ null
    weights = lam * quantized.square().sum(dim=1) if relative else torch.full((R,), lam, dtype=torch.float64)

    def loss(alpha):
        fit = (target - alpha[:, None] * quantized).square().sum()
        return fit + (weights * (alpha - 1).square()).sum()

    return loss


@pytest.mark.parametrize("solver", ["closed", "adam"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.2, 5.0])
def test_the_gradient_of_the_objective_vanishes(solver, relative, lam):
    problem, base = case()
    scale = "relative" if relative else "absolute"
    result = solved(problem, base, lam=lam, lam_scale=scale, alpha=solver)
    loss = objective(problem, base, result, lam, relative)
    alpha = result.diagnostics["alpha"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(alpha), alpha)
    start = torch.ones(R, dtype=torch.float64, requires_grad=True)
    (before,) = torch.autograd.grad(loss(start), start)
    curvature = 2 * (base.weight.double().square().sum(dim=1) * (1 + lam * relative) + lam)
    allowed = 1e-4 * before.abs().max() if solver == "closed" else 1.1e-6 * curvature.max()
    assert slope.abs().max() < allowed < before.abs().max()
    assert loss(alpha.detach()) < loss(torch.ones(R, dtype=torch.float64))
    if solver == "adam":
        assert result.diagnostics["extra"]["alpha_distance"] <= 1e-6
        assert result.diagnostics["extra"]["alpha_steps"] < 10_000


@pytest.mark.parametrize("lam_scale", ["absolute", "relative"])
def test_adam_to_convergence_is_the_closed_form_and_twenty_steps_are_not(lam_scale):
    problem, base = case()
    found = {
        solver: solved(problem, base, alpha=solver, lam_scale=lam_scale).diagnostics["alpha"]
        for solver in ("closed", "adam20", "adam")
    }
    assert torch.allclose(found["adam"], found["closed"], rtol=0, atol=2e-6)
    assert (found["adam20"] - found["closed"]).abs().max() > 1e-3
    assert (found["adam20"] - 1).abs().max() < 0.045


def test_twenty_steps_are_torch_s_adam_on_the_objective_itself():
    problem, base = case()
    result = solved(problem, base, alpha="adam20")
    loss = objective(problem, base, result, 0.2, False)
    alpha = torch.ones(R, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([alpha], lr=2e-3)
    for _ in range(20):
        optimiser.zero_grad()
        loss(alpha).backward()
        optimiser.step()
    assert torch.allclose(result.diagnostics["alpha"], alpha.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_relative_lambda_does_not_depend_on_the_size_of_weights_and_absolute_does(factor):
    problem, base = case()

    def at(factor, scale):
        moved = LinearProblem(problem.names, problem.rows, problem.weight * factor, problem.stats)
        values = base.weight * factor
        return solved(
            moved, QuantizedLinear(Matrix(values), moved.weight, moved.weight), lam_scale=scale
        ).diagnostics["alpha"]

    # the constant in the denominator is absolute: 1e-8 beside a row's norm of about 1e-7
    tolerance = 1e-2 if factor < 1 else 1e-6
    ones = torch.ones(R, dtype=torch.float64)
    assert torch.allclose(at(factor, "relative"), at(1.0, "relative"), rtol=0, atol=tolerance)
    assert not torch.allclose(at(factor, "absolute"), at(1.0, "absolute"), rtol=0, atol=1e-2)
    assert (at(1.0, "relative") - ones).abs().max() > 1e-2


@pytest.mark.parametrize("lam", [0.0, 0.3, 7.0])
def test_relative_lambda_shrinks_every_row_alike(lam):
    problem, base = case()
    free = solved(problem, base, lam=0.0).diagnostics["alpha"] - 1
    held = solved(problem, base, lam=lam, lam_scale="relative").diagnostics["alpha"] - 1
    assert torch.allclose(held, free / (1 + lam), rtol=1e-5, atol=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    fits=st.lists(st.floats(0.3, 1.7), min_size=1, max_size=8),
    exponents=st.lists(st.floats(-6, 4), min_size=8, max_size=8),
    lam=st.just(0.0) | st.floats(1e-3, 10),
)
def test_adam_ends_at_the_optimum_of_any_row(fits, exponents, lam):
    fit = torch.tensor(fits, dtype=torch.float64)
    norms = 10.0 ** torch.tensor(exponents[: len(fits)], dtype=torch.float64)
    found = adam_to_convergence(fit, norms, lam)
    optimum = (norms * fit + lam) / (norms + lam)
    assert (found.alpha - optimum).abs().max() < 2 * max(found.distance, 1e-6)
    assert found.distance < 1e-3
    assert torch.equal(adam_row_scale(torch.ones_like(fit), norms, lam), torch.ones_like(fit))


@pytest.mark.parametrize("statistic", ["gram", "covariance", "position_mean"])
@pytest.mark.parametrize(
    "rule",
    [
        {"rank_rule": "energy", "energy": 0.8},
        {"rank_rule": "fixed", "rank": 12},
        {"rank_rule": "fixed", "rank": 0.5},
        {"rank_rule": "adam_nscl", "nscl_a": 50.0},
        {"rank_rule": "prefix_suffix", "index_rule": "textbook", "drop_first": False},
    ],
)
def test_every_choice_is_the_dense_formula(statistic, rule):
    problem, base = case()
    mean = problem.stats[Statistic.POSITION_MEAN].mean(dim=0)
    stats = type(problem.stats)({**problem.stats.values, Statistic.MEAN: mean}, 4, 1200)
    problem = LinearProblem(problem.names, problem.rows, problem.weight, stats)
    result = solved(problem, base, statistic=statistic, **rule)
    moment = {
        "gram": stats.gram.double(),
        "covariance": stats.gram.double() - 600 * torch.outer(mean, mean).double(),
        "position_mean": stats[Statistic.POSITION_MEAN].double().T @ stats[Statistic.POSITION_MEAN].double(),
    }[statistic]
    vectors = torch.linalg.eigh(moment).eigenvectors
    rank = C - result.diagnostics["null_rank"]
    assert 0 < rank < C
    if rule["rank_rule"] == "fixed":
        assert rank == (12 if rule["rank"] == 12 else C // 2)
    reach = vectors[:, C - rank :] @ vectors[:, C - rank :].T
    quantized, error = base.weight.double(), (problem.weight - base.weight).double()
    expected = 1 + ((error @ reach) * quantized).sum(1) / (quantized.square().sum(1) + 0.2)
    assert torch.allclose(result.diagnostics["alpha"], expected, rtol=0, atol=1e-6)
