"""The correction is made in the basis the solver worked in: order and rotation of inputs do not matter."""

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.rtn import RTN
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import row_scale
from q2n.corrections.released import ReleasedScale
from q2n.types import LinearProblem, Statistic, Statistics

R, C = 24, 40


def scaled(**fields):
    return NullSpaceScale(**{"t": 0.1, "lam": 0.2, **fields})


def permuted(problem, order):
    values = {
        Statistic.GRAM: problem.stats.gram[order][:, order],
        Statistic.POSITION_MEAN: problem.stats[Statistic.POSITION_MEAN][:, order],
    }
    return LinearProblem(problem.names, problem.rows, problem.weight[:, order], Statistics(values, 4, 1200))


EQUIVARIANT = {
    "gptq": GPTQ(bits=2, group_size=-1, act_order=True),
    "gptq with groups": GPTQ(bits=2, group_size=9, act_order=True),
    "leanquant": LeanQuant(bits=2),
    "owq": OWQ(bits=3, target_rank=3, tuning="minmax", act_order=True),
    "rtn": RTN(bits=3, group_size=-1),
}


@pytest.mark.parametrize("name", EQUIVARIANT)
@pytest.mark.parametrize("statistic", ["gram", "position_mean"])
def test_order_of_columns_does_not_matter(name, statistic):
    """A method that orders columns itself gives each column the same values wherever it stands."""
    problem, method = layer(R, C), EQUIVARIANT[name]
    order = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    here = method.solve(problem, scaled(statistic=statistic)).corrected
    there = method.solve(permuted(problem, order), scaled(statistic=statistic)).corrected
    back = torch.argsort(order)
    assert torch.allclose(here.diagnostics["alpha"], there.diagnostics["alpha"], rtol=0, atol=1e-6)
    assert torch.allclose(here.weight, there.weight[:, back], rtol=0, atol=1e-6)
    assert (here.diagnostics["alpha"] - 1).abs().max() > 1e-3


def test_released_step_does_depend_on_the_order_of_columns():
    problem, method = layer(R, C), EQUIVARIANT["gptq"]
    order = torch.randperm(C, generator=torch.Generator().manual_seed(3))
    released = ReleasedScale(t=0.1, lam=0.2).bind(method)
    here = method.solve(problem, released).corrected.diagnostics["alpha"]
    there = method.solve(permuted(problem, order), released).corrected.diagnostics["alpha"]
    assert (here - there).abs().max() > 1e-3


def test_rotated_inputs_have_the_rotated_null_space():
    problem = layer(R, C)
    solution = GPTQ(bits=2, group_size=16).solve(problem, scaled())
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(C, C, generator=generator, dtype=torch.float64)).Q
    error = problem.weight.double() - solution.base.weight.double()
    spectrum = problem.stats.mapped(rotation).spectrum(Statistic.GRAM)
    rank = C - solution.corrected.diagnostics["null_rank"]
    values = solution.base.weight.double() @ rotation.T
    alpha = row_scale(error @ rotation.T, values, spectrum.vectors, rank, 0.2)
    assert torch.allclose(alpha, solution.corrected.diagnostics["alpha"], rtol=0, atol=1e-5)
