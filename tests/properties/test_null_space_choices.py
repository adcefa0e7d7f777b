"""Which directions count as null, which columns are scaled, which layers are left alone."""

import pytest
import torch
from helpers.layers import layer
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.gptq import GPTQ
from q2n.baselines.owq import OWQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.rank import prefix_suffix_rank
from q2n.types import LinearProblem, Statistic, Statistics

R, C = 24, 40


def scaled(**fields):
    return NullSpaceScale(**{"t": 0.1, "lam": 0.2, **fields})


def naive_rank(values, t, rule, drop_first):
    """The rules as sums over lists of Python numbers, and the sums' distance from the threshold."""
    numbers = [float(value) for value in values]
    first = 1 if drop_first else 0
    gap = 1 if rule == "released" else 0
    nearest = float("inf")
    for kept in range(first + 1, len(numbers) + 1 - gap):
        leading, rest = sum(numbers[first:kept]), sum(numbers[kept + gap :])
        if leading <= 1e-12:
            continue
        nearest = min(nearest, abs(rest - t * leading) / sum(numbers))
        if rest <= t * leading:
            return kept, nearest
    return 0, nearest


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=30),
    t=st.just(0.0) | st.floats(1e-3, 3),
    rule=st.sampled_from(["released", "textbook"]),
    drop_first=st.booleans(),
    scale=st.sampled_from([1e-9, 1.0]),
)
def test_rank_of_any_spectrum(values, t, rule, drop_first, scale):
    values = torch.tensor(sorted(values, reverse=True), dtype=torch.float64) * scale
    # What is lost when numbers of this size are added up is no part of the rule.
    values = torch.where(values < 1e-8 * values[0], 0.0, values)
    expected, margin = naive_rank(values, t, rule, drop_first)
    if t == 0 or margin > 1e-12:
        assert prefix_suffix_rank(values, t, rule, drop_first) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(decay=st.floats(0.3, 0.999), size=st.integers(3, 200), t=st.floats(0.01, 1))
def test_released_rule_keeps_at_most_one_direction_less(decay, size, t):
    values = decay ** torch.arange(size, dtype=torch.float64)
    for drop_first in (True, False):
        released = prefix_suffix_rank(values, t, "released", drop_first)
        textbook = prefix_suffix_rank(values, t, "textbook", drop_first)
        assert released in (textbook - 1, textbook)


@pytest.mark.parametrize(
    ("values", "t", "released", "textbook"),
    [
        ([1.0], 0.1, 0, 0),  # the one direction is dropped: nothing to compare
        ([0.0], 0.1, 0, 0),
        ([5.0, 1.0], 0.1, 0, 2),
        ([5.0, 0.0], 0.1, 0, 0),
        ([5.0, 4.0, 1.0], 0.1, 2, 3),
        ([0.0] * 6, 0.1, 0, 0),
        ([9.0] + [0.0] * 6, 0.1, 0, 0),
        ([9.0, 1e-13, 1e-13], 0.1, 0, 0),  # below what counts as energy
        ([9.0, 3.0, 2.0, 1.0, 0.0, 0.0], 0.0, 3, 4),
        ([9.0, 3.0, 2.0, 1.0, 0.0, 0.0], 1.0, 2, 2),
        ([9.0, 3.0, 2.0, 1.0, 0.0, 0.0], 1e9, 2, 2),
    ],
)
def test_rank_at_the_edges(values, t, released, textbook):
    spectrum = torch.tensor(values, dtype=torch.float64)
    assert prefix_suffix_rank(spectrum, t, "released") == released
    assert prefix_suffix_rank(spectrum, t, "textbook") == textbook


def test_rank_with_the_first_eigenvalue():
    spectrum = torch.tensor([8.0, 1.0, 1.0, 0.5])
    assert prefix_suffix_rank(spectrum, 0.2, "textbook", drop_first=False) == 2
    assert prefix_suffix_rank(spectrum, 0.2, "released", drop_first=False) == 1
    assert prefix_suffix_rank(torch.tensor([2.0]), 0.1, "textbook", drop_first=False) == 1
    assert prefix_suffix_rank(torch.tensor([2.0]), 0.1, "released", drop_first=False) == 0


@pytest.mark.parametrize(("decay", "released"), [(0.5, 4), (0.9, 23), (0.99, 239), (0.999, 873)])
def test_rank_of_geometric_spectra(decay, released):
    values = decay ** torch.arange(1024, dtype=torch.float64)
    values[0] = 100 * values[1]
    assert prefix_suffix_rank(values, 0.1, "released") == released
    assert prefix_suffix_rank(values, 0.1, "textbook") == released + 1


@pytest.mark.parametrize("eigenvalues", ["clamp", "abs"])
def test_negative_round_off_counts_as_nothing_or_by_size(eigenvalues):
    """A matrix with a clearly negative eigenvalue stands in for round-off."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(C, C, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.linspace(1, 0, C, dtype=torch.float64).square()
    spectrum[-1] = -3.0
    stats = Statistics({Statistic.GRAM: (vectors * spectrum) @ vectors.T}, 1, 1)
    problem = LinearProblem(("self_attn.q_proj",), (R,), layer(R, C).weight, stats)
    quantized = GPTQ(bits=2, group_size=-1).quantize(layer(R, C))
    found = scaled(eigenvalues=eigenvalues).correct(problem, quantized).diagnostics["null_rank"]
    values = spectrum.clamp(min=0) if eigenvalues == "clamp" else spectrum.abs()
    assert C - found == naive_rank(values, 0.1, "released", True)[0]


def dense_alpha(problem, quantized, scaled_columns, lam=0.2):
    """``argmin ||B - diag(alpha) Q_s - Q_k||^2 + lam ||alpha - 1||^2`` with ``Q_s`` the columns scaled."""
    spectrum = torch.linalg.eigh(problem.stats.gram.double())
    rank, _ = naive_rank(spectrum.eigenvalues.clamp(min=0).flip(0), 0.1, "released", True)
    null = spectrum.eigenvectors[:, : C - rank] @ spectrum.eigenvectors[:, : C - rank].T
    values = quantized.weight.double()
    target = problem.weight.double() @ (torch.eye(C) - null) + values @ null
    part = values * scaled_columns
    return (((target - (values - part)) * part).sum(1) + lam) / (part.square().sum(1) + lam)


@pytest.mark.parametrize("kept_columns", ["exclude", "include"])
def test_kept_columns_are_not_scaled(kept_columns):
    problem = layer(R, C)
    base = OWQ(bits=3, target_rank=4).quantize(problem)
    result = scaled(kept_columns=kept_columns).correct(problem, base)
    assert int(base.kept.sum()) == 4
    columns = ~base.kept if kept_columns == "exclude" else torch.ones(C)
    alpha = result.diagnostics["alpha"]
    assert torch.allclose(alpha, dense_alpha(problem, base, columns), rtol=0, atol=1e-6)
    assert torch.equal(result.weight[:, base.kept], base.weight[:, base.kept])
    expected = alpha.float()[:, None] * base.weight[:, ~base.kept]
    assert torch.allclose(result.weight[:, ~base.kept], expected, rtol=1e-6, atol=0)


def stacked():
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    problem = layer(R, C)
    return LinearProblem(names, (10, 8, 6), problem.weight, problem.stats)


@pytest.mark.parametrize(
    ("skip", "left_alone"),
    [
        ([], []),
        (["*down_proj"], [2]),
        (["self_attn.*"], [0, 1]),
        (["*.k_proj", "mlp.*"], [1, 2]),
        (["*[qk]_proj"], [0, 1]),
        (["down_proj"], []),  # the whole name must fit
        (["*Q_PROJ"], []),
        (["*"], [0, 1, 2]),
    ],
)
def test_layers_left_alone(skip, left_alone):
    problem = stacked()
    base = GPTQ(bits=2, group_size=16).quantize(problem)
    result = scaled(skip=skip).correct(problem, base)
    full = scaled(skip=[]).correct(problem, base)
    if len(left_alone) == 3:
        assert result is base
    for index, rows in enumerate(torch.arange(R).split([10, 8, 6])):
        expected = base if index in left_alone else full
        assert torch.equal(result.weight[rows], expected.weight[rows])
        assert not torch.equal(full.weight[rows], base.weight[rows])


def test_default_skips_the_down_projection_alone():
    problem = stacked()
    alpha = scaled().correct(problem, GPTQ(bits=2, group_size=16).quantize(problem)).diagnostics["alpha"]
    assert torch.equal(alpha == 1, torch.arange(R) >= 18)
