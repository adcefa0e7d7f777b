"""The column loop against optimal brain quantization as it is defined, and against round-to-nearest."""

import pytest
import torch
from helpers.layers import layer
from helpers.obq import naive_obq, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.gptq import GPTQ
from q2n.quantization.formats.lut import LutSpec
from q2n.quantization.formats.masked import SalientSpec
from q2n.quantization.formats.uniform import UniformSpec
from q2n.quantization.formats.xnor import XnorSpec
from q2n.quantization.solvers import reference
from q2n.quantization.solvers.ldlq import solve_ldlq
from q2n.quantization.solvers.obs import solve_obs
from q2n.quantization.solvers.reference import activation_order
from q2n.types import LinearProblem, Statistic, Statistics

DEAD = (0, 5, 17, 39)


def gptq(bits=3, group_size=-1, **fields):
    return GPTQ(bits=bits, group_size=group_size, percdamp_schedule=[], **fields)


def by_activation(problem):
    """Columns by falling diagonal."""
    diagonal = problem.stats.gram.diagonal().tolist()
    return torch.tensor(sorted(range(len(diagonal)), key=lambda column: -diagonal[column]))


def check(method, problem, expected):
    """Codes (of live columns) and weights of every row in which no rounding hangs on the last digit."""
    result = method.quantize(problem)
    clear, live = expected.clear, problem.stats.gram.diagonal() > 0
    assert torch.equal(result.format.codes[clear][:, live], expected.codes[clear][:, live])
    assert torch.allclose(result.weight[clear].double(), expected.weight[clear], rtol=0, atol=2e-6)
    if bool(clear.all()):
        assert result.diagnostics["loss"] == pytest.approx(expected.loss, rel=1e-4)


@pytest.mark.parametrize("columns", [40, 150, 270])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 16, 23, 64, 1000])
def test_codes_are_those_of_optimal_brain_quantization(columns, act_order, group_size):
    group_size = min(group_size, columns)
    problem = layer(16, columns)
    order = by_activation(problem) if act_order else None
    expected = naive_obq(problem, 3, group_size, order=order)
    check(gptq(3, group_size, act_order=act_order), problem, expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("damping", [0.001, 0.1, 1.0])
def test_bits_symmetry_and_damping(symmetric, bits, damping):
    problem = layer(16, 60, seed=1)
    expected = naive_obq(problem, bits, 25, symmetric=symmetric, damping=damping)
    check(gptq(bits, 25, sym=symmetric, percdamp=damping), problem, expected)
    assert gptq(percdamp=damping).quantize(problem).diagnostics["damping"] == damping


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [16, 23, 150])
def test_static_groups_stay_those_of_the_layer(act_order, group_size):
    problem = layer(16, 150, seed=2)
    order = by_activation(problem) if act_order else None
    expected = naive_obq(problem, 3, group_size, order=order, static=True)
    method = gptq(3, group_size, act_order=act_order, static_groups=True)
    check(method, problem, expected)
    groups = method.quantize(problem).format.group
    assert groups.tolist() == [column // group_size for column in range(150)]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 9, 40])
def test_dead_columns(static, act_order, group_size):
    problem = layer(16, 40, seed=3, dead=DEAD)
    # A weight that would rule its group's range if it were not known to be without effect.
    problem.weight[:, 5] = 3.0
    method = gptq(3, group_size, act_order=act_order, static_groups=static)
    result = method.quantize(problem)
    check(method, problem, naive_obq(problem, 3, group_size, order=result.order, static=static))
    assert result.diagnostics["dead_columns"] == len(DEAD)
    assert not result.weight[:, list(DEAD)].any()


def test_order_is_by_falling_diagonal():
    problem = layer(2, 50)
    assert torch.equal(activation_order(problem.stats.gram), by_activation(problem))
    assert torch.equal(gptq(act_order=True).quantize(problem).order, by_activation(problem))
    assert activation_order(torch.diag(torch.tensor([0.5, 0.0, 3.0, 1.5]))).tolist() == [2, 3, 1, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bits=st.integers(2, 8),
    columns=st.integers(1, 170),
    rows=st.integers(1, 5),
    group_size=st.integers(1, 60) | st.just(-1),
    factor=st.sampled_from([1e-6, 1.0, 3e4]),
    static=st.booleans(),
    symmetric=st.booleans(),
    reverse=st.booleans(),
)
def test_uncorrelated_inputs_make_it_round_to_nearest(
    bits, columns, rows, group_size, factor, static, symmetric, reverse
):
    """With ``H`` a multiple of the identity no column can make up for another."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    stats = Statistics({Statistic.GRAM: factor * torch.eye(columns)}, 1, columns)
    problem = LinearProblem(("self_attn.q_proj",), (rows,), weight, stats)
    size = -1 if group_size == -1 else min(group_size, columns)
    order = torch.arange(columns - 1, -1, -1) if reverse and (static or size == -1) else None
    result = solve_obs(problem, UniformSpec(bits, size, symmetric, static_groups=static), [0.01], order)
    nearest = UniformSpec(bits, size, symmetric).quantize(weight)
    assert torch.equal(result.format.codes, nearest.codes)
    assert torch.equal(result.weight, nearest.dequantize())
    assert torch.equal(result.compensated, weight)


BLOCKS = [(1, 1), (3, 2), (7, 32), (31, 5), (64, 64), (100, 1), (150, 150), (1000, 32), (1000, 1000)]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [-1, 23])
def test_block_size_does_not_matter(monkeypatch, act_order, group_size):
    problem = layer(16, 150, seed=4)
    order = by_activation(problem) if act_order else None
    expected = naive_obq(problem, 3, group_size, order=order, static=True)
    method = gptq(3, group_size, act_order=act_order, static_groups=True)
    for block, lookback in BLOCKS:
        monkeypatch.setattr(reference, "BLOCK", block)
        monkeypatch.setattr(reference, "LOOKBACK", lookback)
        check(method, problem, expected)


@pytest.mark.parametrize("lookback", [1, 5, 128])
def test_lookback_does_not_matter_to_groups_fitted_on_the_way(monkeypatch, lookback):
    problem = layer(16, 150, seed=5)
    monkeypatch.setattr(reference, "LOOKBACK", lookback)
    check(gptq(3, 23), problem, naive_obq(problem, 3, 23))


@pytest.mark.parametrize("block", [1, 10, 23, 1000])
def test_block_decides_what_groups_are_fitted_on(monkeypatch, block):
    """With blocks of one column a group is fitted on the weight exactly as it is compensated by then."""
    problem = layer(16, 150, seed=6)
    monkeypatch.setattr(reference, "BLOCK", block)
    check(gptq(3, 23), problem, naive_obq(problem, 3, 23, block=block))


@pytest.mark.parametrize(
    "grid", [LutSpec(3, 4.0), XnorSpec(40), SalientSpec(XnorSpec(), UniformSpec(4), 0.7, "hessian")]
)
def test_block_size_does_not_matter_to_grids_fitted_ahead(monkeypatch, grid):
    problem = layer(16, 150, seed=7)
    usual = solve_obs(problem, grid, [0.01]).weight
    for block, lookback in BLOCKS:
        monkeypatch.setattr(reference, "BLOCK", block)
        monkeypatch.setattr(reference, "LOOKBACK", lookback)
        weight = solve_obs(problem, grid, [0.01]).weight
        rows = (weight - usual).abs().amax(dim=1) > 1e-6
        assert int(rows.sum()) <= 1  # one tie may go the other way


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [-1, 16, 23])
@pytest.mark.parametrize("columns", [40, 150])
def test_ldlq_is_optimal_brain_quantization_from_the_last_column(bits, group_size, columns):
    """QuIP's theorem 6: for whatever is done to round a column, so also on a grid that ends."""
    problem = layer(16, columns, seed=8)
    _, hessian = prepared(problem.weight.double(), problem.stats.gram.double(), 0.01)
    backwards = torch.arange(columns - 1, -1, -1)
    expected = naive_obq(problem, bits, group_size, order=backwards, static=True)
    result = solve_ldlq(problem, UniformSpec(bits, group_size, static_groups=True), hessian)
    clear = expected.clear
    assert torch.equal(result.format.codes[clear], expected.codes[clear])
    assert torch.allclose(result.weight[clear].double(), expected.weight[clear], rtol=0, atol=2e-6)


def test_ldlq_of_uncorrelated_inputs_is_round_to_nearest():
    problem = layer(16, 150)
    grid = UniformSpec(3, 23, static_groups=True)
    for npasses in (0, 2):
        result = solve_ldlq(problem, grid, torch.eye(150) * 7, npasses)
        assert torch.equal(result.format.codes, grid.quantize(problem.weight).codes)
