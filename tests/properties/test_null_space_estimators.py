"""Second moments, decompositions and rank rules against their definitions in float64."""

import warnings

import pytest
import torch
from helpers.layers import layer
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.gptq import GPTQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace import decompose as decompositions
from q2n.corrections.nullspace.decompose import FullDecompositionWarning, decompose
from q2n.corrections.nullspace.estimator import Estimator
from q2n.corrections.nullspace.partial import NotPartialError, leading_spectrum
from q2n.corrections.nullspace.rank import RankRule
from q2n.exceptions import NumericalError
from q2n.linalg.dense import symmetric_spectrum
from q2n.pipeline.calibration import Accumulators
from q2n.types import LinearProblem, Statistic, Statistics

C = 40
ALL = [Statistic.GRAM, Statistic.MEAN, Statistic.POSITION_MEAN, Statistic.TOKEN_SAMPLE]


def inputs(sequences=4, tokens=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(C, C, generator=generator) / C**0.5
    spread = torch.arange(1, C + 1).pow(-0.5)
    return torch.randn(sequences, tokens, C, generator=generator) * spread @ mixing + 0.3


def measured(batch):
    accumulators = Accumulators(ALL)
    accumulators.update(batch)
    return accumulators.result()


def matrix_of(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double()).Q
    matrix = (vectors * values) @ vectors.T
    return (matrix + matrix.T) / 2, vectors


def geometric(size, decay, first=100.0):
    values = decay ** torch.arange(size, dtype=torch.float64)
    values[0] = first * values[1]
    return values


def projector(spectrum, rank):
    leading = spectrum.vectors[:, :rank].double()
    return leading @ leading.T


def definition(batch, moment):
    rows = batch.double().flatten(0, 1)
    if moment == "covariance":
        rows = rows - rows.mean(dim=0)
    if moment == "position_mean":
        rows = batch.double().mean(dim=0)
        return rows.T @ rows
    return 2 / len(batch) * rows.T @ rows


@pytest.mark.parametrize("moment", ["gram", "covariance", "position_mean"])
@pytest.mark.parametrize("decomposition", ["eigh", "auto", "svd"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_spectrum_is_that_of_the_definition(moment, decomposition, precision):
    """Sequences of 64 tokens: the token sample of ``svd`` holds all of them, so that it too is exact."""
    batch = inputs()
    expected = definition(batch, moment)
    estimator = Estimator(moment, decomposition, precision)
    found = estimator.estimate(measured(batch))
    values = torch.linalg.eigvalsh(expected).flip(0).clamp(min=0)
    assert torch.allclose(found.spectrum.values, values, rtol=0, atol=3e-6 * float(values[0]))
    assert found.rank == RankRule().of(values, C)
    exact = projector(symmetric_spectrum(expected), found.rank)
    assert torch.allclose(projector(found.spectrum, found.rank), exact, atol=1e-3)
    assert estimator.requires <= set(ALL)
    assert found.dimension == C - found.rank


def test_a_decomposition_of_activations_needs_rows_and_no_gram_matrix():
    assert Estimator("gram", "svd").requires == {Statistic.TOKEN_SAMPLE}
    assert Estimator("covariance", "svd").requires == {Statistic.TOKEN_SAMPLE, Statistic.MEAN}
    assert Estimator("position_mean", "svd").requires == {Statistic.POSITION_MEAN}
    assert Estimator("covariance", "eigh").requires == {Statistic.GRAM, Statistic.MEAN}


def test_fewer_rows_than_columns_leave_the_missing_directions_null():
    batch = inputs(sequences=3, tokens=10)
    found = Estimator("position_mean", "svd", rule=RankRule(t=0.0, index_rule="textbook")).estimate(
        measured(batch)
    )
    assert found.spectrum.vectors.shape == (C, 10)
    assert (found.rank, found.dimension) == (10, C - 10)
    whole = Estimator("position_mean", "eigh", rule=RankRule("fixed", rank=10)).estimate(measured(batch))
    assert torch.allclose(projector(found.spectrum, 10), projector(whole.spectrum, 10), atol=1e-9)


def test_equal_choices_share_one_decomposition():
    stats = measured(inputs())
    first, second = Estimator().estimate(stats), Estimator(rule=RankRule(t=0.5)).estimate(stats)
    assert first.spectrum is second.spectrum is stats.spectrum(Statistic.GRAM)
    assert first.rank > second.rank
    assert Estimator("covariance").estimate(stats).spectrum is not first.spectrum


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rule", [RankRule(), RankRule(index_rule="textbook", drop_first=False)])
def test_leading_pairs_are_those_of_the_full_decomposition(decay, seed, rule):
    matrix, _ = matrix_of(geometric(200, decay), seed)
    whole, part = symmetric_spectrum(matrix), leading_spectrum(matrix, rule, 100)
    rank = rule.of(part.values, 200, part.total)
    assert rank == rule.of(whole.values.clamp(min=0), 200)
    assert len(part.values) < 200
    assert part.residual < 1e-9
    assert torch.allclose(part.values[:rank], whole.values[:rank], rtol=0, atol=1e-10)
    gap = float((whole.values[rank - 1] - whole.values[rank]) / whole.values[0])
    difference = (projector(part, rank) - projector(whole, rank)).abs().max()
    assert difference < 10 * part.residual / gap + 1e-9
    basis = part.vectors[:, :rank]
    assert torch.allclose(basis.T @ basis, torch.eye(rank, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("decay", [0.6, 0.85])
def test_a_partial_decomposition_gives_the_same_row_scales(decay):
    matrix, _ = matrix_of(geometric(160, decay))
    stats = Statistics({Statistic.GRAM: matrix}, 1, 1)
    problem = LinearProblem(("self_attn.q_proj",), (24,), layer(24, 160).weight, stats)
    base = GPTQ(bits=2, group_size=-1).quantize(layer(24, 160))
    results = {
        how: NullSpaceScale(t=0.1, lam=0.2, decomposition=how).correct(problem, base).diagnostics
        for how in ("eigh", "partial")
    }
    assert results["partial"]["decomposition"] == "partial"
    assert results["partial"]["null_rank"] == results["eigh"]["null_rank"]
    assert torch.allclose(results["partial"]["alpha"], results["eigh"]["alpha"], rtol=0, atol=1e-7)


def test_high_rank_falls_back_to_the_full_decomposition_visibly():
    matrix, _ = matrix_of(geometric(120, 0.99))
    stats = Statistics({Statistic.GRAM: matrix}, 1, 1)
    with pytest.warns(FullDecompositionWarning, match="rank"):
        found = decompose(stats, "gram", "partial", "float64", RankRule())
    assert found.method.startswith("eigh (rank")
    assert torch.equal(found.values, symmetric_spectrum(matrix).values)


def test_auto_tries_the_partial_one_on_wide_inputs_alone(monkeypatch):
    low, _ = matrix_of(geometric(400, 0.7))
    high, _ = matrix_of(geometric(400, 0.999))

    def method(matrix, rule=RankRule()):  # noqa: B008
        stats = Statistics({Statistic.GRAM: matrix}, 1, 1)
        return decompose(stats, "gram", "auto", "float64", rule).method

    assert method(low) == "eigh"
    monkeypatch.setattr(decompositions, "AUTO_WIDTH", 400)
    assert method(low) == "partial"
    assert method(high).startswith("eigh (rank")
    assert method(low, RankRule("adam_nscl")) == "eigh"


@pytest.mark.parametrize("fault", ["residual", "missed"])
def test_a_wrong_iteration_is_not_taken_for_a_result(monkeypatch, fault):
    """Vectors that are not eigenvectors, and eigenpairs that are not the leading ones."""
    matrix, vectors = matrix_of(geometric(200, 0.8, first=2.0))
    values = geometric(200, 0.8, first=2.0)

    def extended(*_):
        places = slice(0, 60) if fault == "residual" else slice(1, 61)
        found = vectors[:, places].clone()
        if fault == "residual":
            found[:, 3] += 1e-3 * vectors[:, 70]
        return values[places], found

    monkeypatch.setattr("q2n.corrections.nullspace.partial._extended", extended)
    with pytest.raises(NotPartialError, match=fault):
        leading_spectrum(matrix, RankRule("fixed", rank=40), 100)


SPECTRA = {
    "zero": torch.zeros(90),
    "rank one": torch.tensor([3.0] + [0.0] * 89),
    "two directions": torch.tensor([3.0, 1.0] + [0.0] * 88),
    "equal": torch.ones(90),
    "two levels": torch.tensor([5.0] * 40 + [1e-3] * 50),
    "huge range": 10.0 ** torch.linspace(12, -12, 90),
    "tiny": 1e-6 * 0.8 ** torch.arange(90),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    "rule", [RankRule(t=0.05), RankRule("energy", energy=0.9), RankRule("fixed", rank=5)]
)
def test_partial_is_full_on_adversarial_spectra(name, rule):
    """Whether it succeeds or falls back: same rank, and the same energy left to the null space."""
    values = SPECTRA[name].double()
    matrix, _ = matrix_of(values)
    stats = Statistics({Statistic.GRAM: matrix}, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FullDecompositionWarning)
        part = Estimator(decomposition="partial", rule=rule).estimate(stats)
    whole = Estimator(rule=rule).estimate(stats)
    if name not in ("zero", "rank one"):  # there the rank is a matter of round-off, whoever computes it
        assert part.rank == whole.rank
    energies = [float((projector(found.spectrum, found.rank) @ matrix).trace()) for found in (part, whole)]
    assert energies[0] == pytest.approx(energies[1], rel=1e-9, abs=1e-12 * float(values.sum()))
    assert torch.isfinite(part.spectrum.vectors).all()


@pytest.mark.parametrize("how", ["eigh", "partial", "auto", "svd"])
@pytest.mark.parametrize("moment", ["gram", "covariance", "position_mean"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_a_clear_error(how, moment, bad):
    stats = measured(inputs())
    spoilt = {name: value.clone() for name, value in stats.values.items()}
    for value in spoilt.values():
        value[..., 3] = bad
    with pytest.raises(NumericalError, match="not finite"):
        Estimator(moment, how).estimate(Statistics(spoilt, stats.sequences, stats.tokens))


descending = st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=2, max_size=30).map(
    lambda numbers: torch.tensor(sorted(numbers, reverse=True), dtype=torch.float64)
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=descending, energy=st.floats(0.05, 0.999), drop_first=st.booleans())
def test_energy_rule_is_its_definition(values, energy, drop_first):
    rank = RankRule("energy", energy=energy, drop_first=drop_first).of(values, len(values))
    first = 1 if drop_first else 0
    compared = values[first:].tolist()
    total = sum(compared)
    if total <= 1e-9:
        return
    held = sum(compared[: rank - first])
    assert held >= (energy - 1e-9) * total
    assert sum(compared[: rank - first - 1]) <= (energy + 1e-9) * total or rank == first + 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=descending, a=st.floats(1, 1e4))
def test_adam_nscl_rule_is_its_definition(values, a):
    """Wang et al., CVPR 2021: directions of eigenvalues up to ``a`` times the smallest are null."""
    rank = RankRule("adam_nscl", nscl_a=a).of(values, len(values))
    null = [value for value in values.tolist() if value <= a * float(values[-1])]
    assert rank == len(values) - len(null)


@pytest.mark.parametrize(("rank", "expected"), [(0, 0), (7, 7), (40, 40), (99, 40), (0.25, 10), (0.01, 1)])
def test_fixed_rank(rank, expected):
    assert RankRule("fixed", rank=rank).of(torch.ones(C), C) == expected


RULES = st.builds(
    RankRule,
    name=st.sampled_from(["prefix_suffix", "energy"]),
    t=st.floats(1e-3, 3),
    index_rule=st.sampled_from(["released", "textbook"]),
    drop_first=st.booleans(),
    energy=st.floats(0.05, 0.999),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(values=descending, rule=RULES, known=st.integers(1, 30))
def test_leading_eigenvalues_and_the_trace_decide_or_bound_the_rank(values, rule, known):
    values = torch.where(values < 1e-8 * values[0], 0.0, values)
    size, total = len(values), float(values.sum())
    compared = total - (float(values[0]) if rule.drop_first else 0)
    if size < 3 or compared <= max(1e-9, 1e-6 * total):
        return  # nothing to compare
    expected, part = rule.of(values, size), values[:known]
    slack = RankRule(**{**vars(rule), "t": rule.t * (1 + 1e-9), "energy": rule.energy * (1 - 1e-9)})
    tight = RankRule(**{**vars(rule), "t": rule.t * (1 - 1e-9), "energy": rule.energy * (1 + 1e-9)})
    if slack.of(values, size) != tight.of(values, size):
        return  # a tie up to round-off
    found = rule.of(part, size, total)
    if found is None:
        assert rule.at_least(part, size, total) <= expected
    else:
        assert found == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    exponents=st.lists(st.floats(-8, 8), min_size=6, max_size=24),
    seed=st.integers(0, 5),
    moved=st.booleans(),
)
def test_order_and_rotation_of_the_inputs_do_not_matter(exponents, seed, moved):
    values = 10.0 ** torch.tensor(sorted(exponents, reverse=True), dtype=torch.float64)
    matrix, _ = matrix_of(values, seed)
    size = len(values)
    generator = torch.Generator().manual_seed(seed + 1)
    if moved:
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    else:
        turn = torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=generator)]
    here = Estimator().estimate(Statistics({Statistic.GRAM: matrix}, 1, 1))
    there = Estimator().estimate(Statistics({Statistic.GRAM: matrix}, 1, 1).mapped(turn))
    slack = [RankRule(t=0.1 * (1 + sign * 1e-6)).of(values, size) for sign in (-1, 1)]
    if slack[0] == slack[1]:
        assert here.rank == there.rank
    rank = min(here.rank, there.rank)
    if 0 < rank < size and values[rank - 1] - values[rank] > 1e-6 * values[0]:
        image = turn @ projector(here.spectrum, rank) @ turn.T
        assert torch.allclose(image, projector(there.spectrum, rank), atol=1e-7)


def test_a_rule_that_needs_the_smallest_eigenvalue_is_not_partial():
    with pytest.raises(ValueError, match="decomposition=partial"):
        NullSpaceScale(t=0.1, lam=0.2, rank_rule="adam_nscl", decomposition="partial")
