"""Any solver with any number format: what goes together, and what is refused (docs/baselines.md)."""

import re
from pathlib import Path

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.composed import Composed
from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.rtn import RTN
from q2n.exceptions import ConfigurationError, UnsupportedError
from q2n.options import construct
from q2n.quantization.formats.awq import AwqSpec
from q2n.quantization.formats.kept import KeptColumnsSpec
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.formats.masked import SalientSpec
from q2n.quantization.formats.mse2d import Mse2dSpec
from q2n.quantization.formats.per_tensor import PerTensorSpec
from q2n.quantization.formats.uniform import CentredSpec, UniformSpec
from q2n.quantization.formats.xnor import XnorSpec
from q2n.quantization.solvers.ldlq import solve_ldlq
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order
from q2n.quantization.solvers.rtn import solve_rtn

PAGE = Path(__file__).parents[3] / "docs" / "baselines.md"
GRIDS = {
    "UniformSpec": UniformSpec(3, 16),
    "CentredSpec": CentredSpec(4, 16, symmetric=True),
    "Mse2dSpec": Mse2dSpec(3, 16, steps=20),
    "AwqSpec": AwqSpec(3, 16),
    "PerTensorSpec": PerTensorSpec(3),
    "LutSpec": LutSpec(3, 4.0),
    "XnorSpec": XnorSpec(16),
    "SalientSpec": SalientSpec(XnorSpec(16), UniformSpec(8), 0.7, "hessian"),
    "KeptColumnsSpec": KeptColumnsSpec(UniformSpec(3, 16)),
}


def hessian(problem):
    return problem.stats.gram + 0.01 * problem.stats.gram.diagonal().mean() * torch.eye(40)


SOLVERS = {
    "RTN": solve_rtn,
    "OBS": lambda problem, grid: solve_obs(
        problem, grid, [0.01], kept=3 if isinstance(grid, KeptColumnsSpec) else 0
    ),
    "OBS, act-order": lambda problem, grid: solve_obs(
        problem,
        grid,
        [0.01],
        activation_order(problem.stats.gram),
        3 if isinstance(grid, KeptColumnsSpec) else 0,
    ),
    "LDLQ": lambda problem, grid: solve_ldlq(problem, grid, hessian(problem)),
    "LDLQ, greedy passes": lambda problem, grid: solve_ldlq(problem, grid, hessian(problem), 1),
}


def documented():
    """The page's table: ``yes`` or ``no`` by grid and solver."""
    head, *rows = re.findall(r"^\| (?:format|`\w+Spec`) .*\|$", PAGE.read_text(), re.MULTILINE)
    names = [cell.strip() for cell in head.strip("|").split("|")][1:]
    table = {}
    for row in rows:
        grid, *cells = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        table |= {(grid, name): cell for name, cell in zip(names, cells, strict=True)}
    return table


def test_the_table_has_every_pair():
    assert set(documented()) == {(grid, solver) for grid in GRIDS for solver in SOLVERS}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_goes_together(grid, solver):
    problem = layer(24, 40)
    if documented()[grid, solver] == "no":
        with pytest.raises(UnsupportedError, match=f"which {grid} is not"):
            SOLVERS[solver](problem, GRIDS[grid])
        return
    assert documented()[grid, solver] == "yes"
    result = SOLVERS[solver](problem, GRIDS[grid])
    assert torch.isfinite(result.weight).all()
    assert torch.equal(result.weight, result.format.dequantize())
    error = (result.weight - problem.weight).square().sum() / problem.weight.square().sum()
    assert float(error) < (0.8 if "Xnor" in grid else 0.2)


@pytest.mark.parametrize(
    ("composed", "method"),
    [
        ({"solver": "rtn", "grid": "uniform", "group_size": 16}, RTN(bits=3, group_size=16)),
        (
            {"solver": "obs", "grid": "uniform", "group_size": 16, "act_order": True},
            GPTQ(bits=3, group_size=16, act_order=True),
        ),
        (
            {"solver": "obs", "grid": "lut", "group_size": -1, "act_order": True, "percdamp": 0.1},
            LeanQuant(bits=3),
        ),
    ],
)
def test_methods_are_special_cases_of_composed(composed, method):
    problem = layer(24, 40)
    found = Composed(bits=3, **composed).quantize(problem)
    assert torch.equal(found.weight, method.quantize(problem).weight)


@pytest.mark.parametrize("solver", ["rtn", "obs", "ldlq"])
@pytest.mark.parametrize("grid", ["uniform", "centred", "mse2d", "lut", "per_tensor"])
@pytest.mark.parametrize("npasses", [0, 1])
def test_composed_parts_are_the_tables_pairs(solver, grid, npasses):
    """What the page calls impossible is refused when settings are read; the rest runs."""
    rows = {
        "uniform": "UniformSpec",
        "centred": "CentredSpec",
        "mse2d": "Mse2dSpec",
        "lut": "LutSpec",
        "per_tensor": "PerTensorSpec",
    }
    columns = {("rtn", 0): "RTN", ("obs", 0): "OBS", ("ldlq", 0): "LDLQ", ("ldlq", 1): "LDLQ, greedy passes"}
    possible = documented().get((rows[grid], columns.get((solver, npasses))), "no") == "yes"
    size = -1 if grid in ("lut", "per_tensor") else 16
    fields = {"bits": 3, "group_size": size, "solver": solver, "grid": grid, "npasses": npasses}
    if not possible:
        with pytest.raises(ConfigurationError, match="baseline"):
            construct(Composed, fields, "baseline")
        return
    result = construct(Composed, fields, "baseline").quantize(layer(24, 40))
    assert torch.isfinite(result.weight).all()


def test_composed_refuses_what_would_be_ignored():
    for fields, message in (
        ({"grid": "lut"}, "grid=lut has no groups"),
        ({"act_order": True}, "act_order is an order for solver=obs"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            construct(Composed, {"bits": 3, "group_size": 16, **fields}, "baseline")
