"""Measures of the null space against their definitions in float64, and known answers."""

import dataclasses
import math

import pytest
import torch
from helpers.layers import layer
from helpers.runs import run

from q2n.baselines.gptq import GPTQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace import measures
from q2n.corrections.nullspace.estimator import Estimator
from q2n.corrections.nullspace.rank import RankRule
from q2n.diagnostics.null_space import ANGLES, NullSpaceMeasures
from q2n.pipeline.calibration import Accumulators
from q2n.types import LinearProblem, NullSpaceReport, Statistic, Statistics

R, C, N, T = 24, 40, 5, 60
MEASURES = NullSpaceMeasures(points=8)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=generator) / C**0.5
    spread = torch.arange(1, C + 1).pow(-1.0)
    return torch.randn(N, T, C, generator=generator) * spread @ mixing + 0.1


def measured(batch, size=2):
    accumulators = Accumulators([Statistic.GRAM, Statistic.HALF_GRAM])
    for part in batch.split(size):
        accumulators.update(part)
    return accumulators.result()


def solved(batch=None, heldout=None):
    stats = measured(inputs() if batch is None else batch)
    if heldout is not None:
        stats = dataclasses.replace(stats, heldout=measured(heldout))
    weight = layer(R, C).weight
    problem = LinearProblem(("self_attn.q_proj", "self_attn.k_proj"), (16, 8), weight, stats)
    return problem, GPTQ(bits=2, group_size=20).solve(problem, NullSpaceScale(t=0.1, lam=0.2))


def projector(rows, rank):
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors
    return vectors[:, : C - rank] @ vectors[:, : C - rank].T


@pytest.mark.parametrize("size", [1, 2, 3, N])
def test_half_gram_is_of_every_other_sequence(size):
    batch = inputs()
    stats = measured(batch, size)
    even, odd = (part.double().flatten(0, 1) for part in (batch[::2], batch[1::2]))
    assert torch.allclose(stats[Statistic.HALF_GRAM].double(), 2 / 3 * even.T @ even, atol=1e-4)
    one, other = measures.halves(stats)
    assert torch.allclose(one.gram, 2 / 3 * even.T @ even, atol=1e-4)
    assert torch.allclose(other.gram, 2 / 2 * odd.T @ odd, atol=1e-4)
    assert (one.tokens, other.tokens) == (3 * T, 2 * T)
    turn = torch.randn(C, C, generator=torch.Generator().manual_seed(1))
    turned = even @ turn.double().T
    found = stats.mapped(turn)[Statistic.HALF_GRAM].double()
    assert torch.allclose(found, 2 / 3 * turned.T @ turned, rtol=1e-3, atol=1e-2)
    factor = torch.linspace(0.5, 2, C)
    scaled = stats.scaled(factor)[Statistic.HALF_GRAM].double()
    assert torch.allclose(scaled, 2 / 3 * (even * factor).T @ (even * factor), atol=1e-4)


def test_every_measure_is_its_definition():
    batch, apart = inputs(), inputs(1)
    problem, solution = solved(batch, apart)
    reports = MEASURES.measure(problem, solution)
    rows, held = batch.double().flatten(0, 1), apart.double().flatten(0, 1)
    values = torch.linalg.eigvalsh(rows.T @ rows).flip(0)
    rank = RankRule().of(values, C)
    null = projector(rows, rank)
    reach = torch.eye(C) - null
    for report, part in zip(reports, (slice(0, 16), slice(16, 24)), strict=True):
        assert report.rank == rank
        assert report.spectrum[0] == 1
        assert (report.spectrum_places[0], report.spectrum_places[-1]) == (1, C)
        assert len(report.spectrum_places) == len(report.spectrum) <= 8
        assert report.spectrum[-1] == pytest.approx(float(values[-1] / values[0]), rel=1e-2)
        shares = (values / values.sum()).tolist()
        entropy = -sum(share * math.log(share) for share in shares)
        assert report.effective_rank == pytest.approx(math.exp(entropy), rel=1e-4)
        assert report.projection_error == pytest.approx(float((rows @ null).norm() / rows.norm()), rel=1e-4)
        expected = float((held @ null).norm() / held.norm())
        assert report.heldout_projection_error == pytest.approx(expected, rel=1e-4)
        original = problem.weight[part].double()
        base, corrected = solution.base.weight[part].double(), solution.corrected.weight[part].double()
        target = base + (original - base) @ reach
        best = (target * base).sum(1) / base.square().sum(1)
        whole = (target - base).square().sum()
        left = (target - best[:, None] * base).square().sum()
        assert report.reach == pytest.approx(float(1 - left / whole), rel=1e-3)
        left = (target - corrected).square().sum()
        assert report.reached == pytest.approx(float(1 - left / whole), rel=1e-3)
        assert report.reached <= report.reach
        output = (original @ rows.T).square().sum()
        for sources, weight in ((report.error_sources, base), (report.error_sources_after, corrected)):
            error = original - weight
            assert sources[2] == pytest.approx(
                float((error @ null @ rows.T).square().sum() / output), rel=1e-3
            )
            assert sum(sources) == pytest.approx(float((error @ rows.T).square().sum() / output), rel=1e-4)


def test_halves_are_compared_by_angles_and_by_each_other_s_inputs():
    batch = inputs()
    problem, solution = solved(batch)
    report = MEASURES.measure(problem, solution)[0]
    even, odd = (part.double().flatten(0, 1) for part in (batch[::2], batch[1::2]))
    ranks = [RankRule().of(torch.linalg.eigvalsh(rows.T @ rows).flip(0), C) for rows in (even, odd)]
    assert report.half_ranks == tuple(ranks)
    first, second = projector(even, ranks[0]), projector(odd, ranks[1])
    expected = float((odd @ first).norm() / odd.norm())
    assert report.half_projection_error == pytest.approx(expected, rel=1e-3)
    count = C - max(ranks)
    cosines = torch.linalg.svdvals(first @ second)[:count].clamp(max=1)
    angles = torch.rad2deg(torch.arccos(cosines))
    assert len(report.half_angles) == ANGLES
    assert report.half_angles[-1] == pytest.approx(float(angles[-1]), rel=1e-3)
    assert report.half_angles[8] == pytest.approx(float(angles.median()), abs=3)
    assert report.heldout_projection_error is None


def test_principal_angles_of_planes_that_are_known():
    """Two planes of three-space that share a line and are 30 degrees apart, and a space with itself."""
    angle = math.radians(30)

    def null(normal):
        gram = torch.outer(torch.tensor(normal), torch.tensor(normal))
        return Estimator(rule=RankRule("fixed", rank=1)).estimate(Statistics({Statistic.GRAM: gram}, 1, 1))

    one, other = null([0.0, 0.0, 1.0]), null([0.0, math.sin(angle), math.cos(angle)])
    assert measures.principal_angles(one, other, 2) == pytest.approx((0, 30), abs=1e-4)
    assert measures.principal_angles(one, one, 3) == pytest.approx((0, 0, 0), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "rank"), [([1.0] * 7, 7), ([3.0] + [0.0] * 6, 1), ([2.0, 2.0, 0.0, 0.0], 2), ([0.0] * 4, 0)]
)
def test_effective_rank_of_known_spectra(values, rank):
    assert measures.effective_rank(torch.tensor(values, dtype=torch.float64)) == pytest.approx(rank)


@pytest.mark.parametrize("points", [2, 8, 32])
@pytest.mark.parametrize("size", [1, 2, 40, 576])
def test_places_of_a_spectrum(points, size):
    chosen = measures.places(size, points).tolist()
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, size - 1)
    assert len(chosen) <= min(points, size)


def test_zero_inputs_and_zero_error_are_measured():
    gram = torch.zeros(C, C)
    stats = Statistics({Statistic.GRAM: gram, Statistic.HALF_GRAM: gram}, 4, 4 * T)
    weight = layer(R, C).weight
    problem = LinearProblem(("self_attn.q_proj",), (R,), weight, stats)
    solution = GPTQ(bits=2, group_size=20).solve(problem, NullSpaceScale(t=0.1, lam=0.2))
    report = MEASURES.measure(problem, solution)[0]
    assert (report.rank, report.effective_rank, report.projection_error) == (0, 0, 0)
    assert (report.reach, report.reached, report.error_sources) == (None, None, (0, 0, 0))


def test_measures_are_in_every_layer_s_report_and_change_nothing():
    correction = NullSpaceScale(t=0.1, lam=0.2)
    plain = run(GPTQ(bits=3, group_size=16), correction)
    told = run(GPTQ(bits=3, group_size=16), correction, diagnostics=MEASURES)
    assert all(torch.equal(value, told.state()[name]) for name, value in plain.state().items())
    assert all(report.null_space is None for report in plain.reports)
    for report in told.reports:
        assert isinstance(report.null_space, NullSpaceReport)
        assert sum(report.null_space.error_sources) == pytest.approx(report.error_before, rel=1e-3)
        assert sum(report.null_space.error_sources_after) == pytest.approx(report.error_after, rel=1e-3)
        if not report.name.endswith("down_proj"):
            assert report.shape[1] - report.null_space.rank == report.null_rank
