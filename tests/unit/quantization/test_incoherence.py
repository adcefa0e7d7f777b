"""Kronecker rotations and the incoherent basis."""

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.options import construct
from q2n.quantization.transforms.incoherence import draw_incoherence
from q2n.quantization.transforms.kronecker import factor_sizes, random_kronecker, special_orthogonal
from q2n.types import Statistic

SIZES = {4096: (64, 64), 8192: (128, 64), 14336: (64, 224), 28672: (448, 64), 11008: (688, 16), 97: (97, 1)}


@pytest.mark.parametrize("size", SIZES)
def test_factor_sizes(size):
    assert factor_sizes(size) == SIZES[size]


@pytest.mark.parametrize("size", [1, 2, 7, 24, 60])
def test_kronecker_rotations_are_orthogonal_products(size):
    rotation = random_kronecker(size, torch.Generator().manual_seed(0))
    identity = torch.eye(size, dtype=torch.float64)
    dense = rotation.apply(identity)
    assert torch.allclose(dense @ dense.T, identity, atol=1e-12)
    assert torch.allclose(rotation.undo(dense), identity, atol=1e-12)
    product = torch.kron(rotation.first, rotation.second)
    assert torch.allclose(dense, product[:, torch.argsort(rotation.entry)][rotation.leave], atol=1e-12)


def test_rotations_are_uniform():
    """Haar on SO(3): entries have mean 0 and variance 1/3, the trace has mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([special_orthogonal(3, generator) for _ in range(2000)])
    assert torch.allclose(torch.linalg.det(drawn), torch.ones(2000, dtype=torch.float64))
    assert drawn.mean(dim=0).abs().max() < 0.06
    assert (drawn.var(dim=0) - 1 / 3).abs().max() < 0.04
    assert (drawn.diagonal(dim1=1, dim2=2).sum(dim=1).var() - 1).abs() < 0.15


def test_weight_and_statistics_move_together():
    problem = layer(24, 40)
    basis = draw_incoherence(problem, seed=3)
    rotated = basis.problem(problem)
    assert torch.allclose(basis.undo_weight(rotated.weight), problem.weight, atol=1e-6)
    dense = basis.inputs.apply(torch.eye(40)) / basis.scale
    by_matrix = problem.stats.mapped(dense)
    for statistic in (Statistic.GRAM, Statistic.POSITION_MEAN):
        largest = float(by_matrix[statistic].abs().max())
        assert torch.allclose(rotated.stats[statistic], by_matrix[statistic], atol=2e-6 * largest)
    # W' x' = U W x: the output error is the same in both bases.
    error = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    here = torch.einsum("rc,cd,rd->", error, problem.stats.gram, error)
    moved = basis.weight(error)
    there = torch.einsum("rc,cd,rd->", moved, rotated.stats.gram, moved)
    assert torch.allclose(here, there, rtol=1e-4)


def test_rotations_depend_on_seed_and_name_alone():
    first = QuIP(bits=3, seed=1).solve(layer(24, 40), NoCorrection()).base.weight
    again = QuIP(bits=3, seed=1).solve(layer(24, 40), NoCorrection()).base.weight
    other = QuIP(bits=3, seed=2).solve(layer(24, 40), NoCorrection()).base.weight
    named = QuIP(bits=3, seed=1).solve(layer(24, 40, name="self_attn.k_proj"), NoCorrection()).base.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, named)


def test_rotated_rounding_beats_rounding_outliers():
    problem = layer(32, 64)
    problem.weight[:, 3] *= 20
    basis = QuIP(bits=4).solve(problem, NoCorrection()).base
    error = (basis.weight - problem.weight).double()
    plain = QuIP(bits=4).quantize(problem)
    straight = (plain.weight - problem.weight).double()
    gram = problem.stats.gram.double()
    assert (error @ gram * error).sum() < 0.5 * (straight @ gram * straight).sum()


def test_groups_need_a_grid_with_groups():
    with pytest.raises(Exception, match="per-tensor grid has one scale"):
        construct(QuIP, {"bits": 3, "group_size": 64}, "baseline")
    assert QuIP(bits=3, group_size=64, grid="uniform").group_size == 64
