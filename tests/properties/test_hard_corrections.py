"""Null spaces, corrections and diagnostics of layers whose statistics or weights are of every hard kind."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers.hard_inputs import LARGE, SMALL, numbers
from helpers.layers import layer

from q2n.baselines.base import corrected
from q2n.baselines.gptq import GPTQ
from q2n.baselines.rtn import RTN
from q2n.corrections.bias import OutputBias
from q2n.corrections.group_systems import null_space_factors, output_factors
from q2n.corrections.groupwise import GroupwiseScale
from q2n.corrections.lstsq import LeastSquaresScale
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace import partial
from q2n.corrections.nullspace.alpha import adam_row_scale, adam_to_convergence
from q2n.corrections.nullspace.estimator import Estimator
from q2n.corrections.nullspace.partial import NotPartialError, leading_spectrum
from q2n.corrections.nullspace.rank import RankRule
from q2n.corrections.released import ReleasedScale
from q2n.corrections.requantize import RequantizeProjected
from q2n.corrections.tuned import TunedNullSpaceScale
from q2n.diagnostics.layers import layer_reports
from q2n.diagnostics.null_space import NullSpaceMeasures
from q2n.exceptions import NumericalError
from q2n.pipeline.calibration import ACCUMULATORS, Accumulators
from q2n.types import LinearProblem, Solution, share

R, C, N, T = 10, 24, 5, 16


def with_entry(value):
    def change(weight):
        weight[2, 3] = value
        return weight

    return change


WEIGHTS = {
    "ordinary": lambda weight: weight,
    "zero": torch.zeros_like,
    "zero rows": lambda weight: weight * (torch.arange(len(weight)) % 2)[:, None],
    "constant": lambda weight: torch.full_like(weight, 0.3),
    "rank one": lambda weight: weight[:, :1] * weight[:1],
    "one outlier": with_entry(1e4),
    "small": lambda weight: weight * 1e-18,
    "mixed magnitudes": lambda weight: weight * torch.logspace(-12, 12, len(weight))[:, None],
}
HUGE = {"huge": lambda weight: weight * 1e30, "one huge": with_entry(1e37)}

CORRECTIONS = {
    "on": NullSpaceScale(t=0.1, lam=0.2, skip=[]),
    "on, free": NullSpaceScale(t=0.0, lam=0.0, skip=[], index_rule="textbook", drop_first=False),
    "on, relative": NullSpaceScale(t=0.1, lam=0.2, lam_scale="relative", skip=[], alpha="adam20"),
    "on, adam": NullSpaceScale(t=0.1, lam=0.2, skip=[], alpha="adam"),
    "on, covariance": NullSpaceScale(t=0.1, lam=0.2, skip=[], statistic="covariance", eigenvalues="abs"),
    "on, position mean": NullSpaceScale(t=0.1, lam=0.2, skip=[], statistic="position_mean"),
    "released": ReleasedScale(t=0.1, lam=0.2).bind(GPTQ(bits=3, group_size=8)),
    "lstsq": LeastSquaresScale(),
    "lstsq, damped": LeastSquaresScale(lam=0.1, damping=0.1),
    "groupwise": GroupwiseScale(),
    "groupwise, free": GroupwiseScale(lam=0.0),
    "groupwise, q2n": GroupwiseScale(objective="q2n"),
    "bias": OutputBias(),
    "requantize": RequantizeProjected(skip=[]),
    "tuned": TunedNullSpaceScale(t=[0.01, 0.5], lam=[0.0, 0.2], skip=[]),
}


def measured(make, columns=C, sequences=N, tokens=T):
    accumulators = Accumulators(ACCUMULATORS)
    accumulators.update(make(sequences, tokens, columns))
    return accumulators.result()


def problem(make, weight=WEIGHTS["ordinary"], rows=R, columns=C, **shape):
    stats = measured(make, columns, **shape)
    stats = replace(stats, heldout=measured(make, columns, sequences=2))
    values = weight(layer(rows, max(columns, 5)).weight[:, :columns].clone())
    return LinearProblem(("q_proj",), (rows,), values, stats)


def output_error(given, weight):
    error = (given.weight - weight).double()
    return float(((error @ given.stats.gram.double()) * error).sum())


def check(given, base, name):
    """All finite, and what minimises the output error does not add to it."""
    result = CORRECTIONS[name].correct(given, base)
    assert bool(result.weight.isfinite().all())
    solution = Solution(base, result)
    figures = NullSpaceMeasures(points=4).measure(given, solution)
    reports = layer_reports(0, given, solution, 0.0, figures)
    assert all(math.isfinite(number) for report in reports for number in numbers(report))
    if name.startswith(("lstsq", "groupwise", "requantize")) and name not in ("groupwise, q2n",):
        before, after = output_error(given, base.weight), output_error(given, result.weight)
        bound = 1e-6 * output_error(given, torch.zeros_like(base.weight))
        slack = 1 + (0.1 if "damped" in name else 1e-5)
        assert after <= slack * before + bound
    return result


@contextmanager
def refused(cause):
    """What is inside may raise a :class:`NumericalError`, which then gives its cause."""
    try:
        yield
    except NumericalError as error:
        if cause not in str(error):
            raise


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("inputs", SMALL)
def test_a_correction_is_finite_whatever_the_inputs(inputs, name):
    given = problem(SMALL[inputs])
    check(given, GPTQ(bits=3, group_size=8).quantize(given), name)
    rounded = RTN(bits=3, group_size=8).quantize(given)
    result = check(given, rounded, name)
    if inputs == "zero" and name != "lstsq, damped":
        assert torch.equal(result.weight, rounded.weight)


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_correction_is_finite_whatever_the_weights(weight, name):
    for inputs in ("one outlier", "rank one", "dead columns"):
        given = problem(SMALL[inputs], WEIGHTS[weight])
        check(given, RTN(bits=3, group_size=8).quantize(given), name)


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("weight", HUGE)
def test_a_product_that_overflows_is_named(weight, name):
    given = problem(SMALL["one outlier"], HUGE[weight])
    base = RTN(bits=3, group_size=8).quantize(given)
    with refused("exceeds float32"):
        check(given, base, name)


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("inputs", LARGE)
def test_statistics_that_are_not_finite_are_named_or_not_used(inputs, name):
    given = problem(LARGE[inputs])
    base = RTN(bits=3, group_size=8).quantize(given)
    with refused("not finite"):
        result = CORRECTIONS[name].correct(given, base)
        assert bool(result.weight.isfinite().all())
        assert result.bias is None or bool(result.bias.isfinite().all())


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (9, 1), (1, 1)])
def test_single_rows_and_columns(name, rows, columns):
    for inputs in ("constant", "zero", "one outlier"):
        given = problem(SMALL[inputs], rows=rows, columns=columns)
        check(given, RTN(bits=3, group_size=-1).quantize(given), name)
    given = problem(SMALL["one outlier"], rows=rows, columns=columns, sequences=1, tokens=1)
    check(given, RTN(bits=3, group_size=-1).quantize(given), name)


def test_who_made_the_numbers_that_are_not_finite_is_said():
    given = problem(SMALL["one outlier"])
    base = RTN(bits=3, group_size=8).quantize(given)
    broken = base.with_format(base.format.scale_rows(torch.full((R,), 1e39, dtype=torch.float64)))
    with pytest.raises(NumericalError, match="quantized weight before the correction: "):
        corrected(given, broken, LeastSquaresScale())
    with pytest.raises(NumericalError, match="row scale alpha"):
        base.scaled_rows(torch.full((R,), float("nan")))
    assert corrected(given, base, NoCorrection()).corrected is base


RULES = [
    RankRule(),
    RankRule(t=0.0, index_rule="textbook", drop_first=False),
    RankRule("energy", energy=1.0),
    RankRule("adam_nscl"),
    RankRule("fixed", rank=0.5),
    RankRule("fixed", rank=1000),
]


@pytest.mark.parametrize("decomposition", ["auto", "eigh", "partial", "svd"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("inputs", SMALL)
@pytest.mark.filterwarnings("ignore::q2n.corrections.nullspace.decompose.FullDecompositionWarning")
def test_every_estimate_has_a_rank_and_a_basis(inputs, precision, decomposition):
    for columns in (1, 2, C):
        stats = measured(SMALL[inputs], columns)
        for moment in ("gram", "covariance", "position_mean"):
            for rule in RULES:
                if decomposition == "partial" and rule.needs_all:
                    continue
                found = Estimator(moment, decomposition, precision, rule).estimate(stats)
                assert 0 <= found.rank <= columns
                vectors = found.spectrum.vectors[:, : found.rank]
                assert bool(found.spectrum.values.isfinite().all())
                size = torch.eye(vectors.shape[1], dtype=vectors.dtype)
                assert torch.allclose(vectors.T @ vectors, size, atol=1e-4)


@pytest.mark.filterwarnings("ignore::q2n.corrections.nullspace.decompose.FullDecompositionWarning")
def test_a_moment_too_large_for_the_precision_is_refused():
    stats = measured(SMALL["large"], C)
    stats = replace(stats, values={name: value * 1e10 for name, value in stats.values.items()})
    for decomposition in ("eigh", "partial"):
        with pytest.raises(NumericalError, match="decomposed in float32"):
            Estimator("position_mean", decomposition, "float32").estimate(stats)
        assert Estimator("position_mean", decomposition).estimate(stats).rank > 0


def test_subnormal_eigenvalues_bound_the_rank_by_all_there_are():
    values = torch.tensor([1.0, 1e-320], dtype=torch.float64)
    assert RankRule().at_least(values, 50, 1e9) <= 52


def test_a_partial_spectrum_that_is_no_number_is_not_taken(monkeypatch):
    matrix = torch.diag(torch.arange(100.0, 0, -1, dtype=torch.float64))
    nothing = (
        torch.full((32,), float("nan"), dtype=torch.float64),
        torch.zeros(100, 32, dtype=torch.float64),
    )
    monkeypatch.setattr(partial, "_extended", lambda *arguments: nothing)
    with pytest.raises(NotPartialError, match="residual nan"):
        leading_spectrum(matrix, RankRule("fixed", rank=3), 50)


@pytest.mark.parametrize("fit", [0.0, 1.0, -1e20, 1e20])
@pytest.mark.parametrize("norm", [0.0, 1e-300, 1e-8, 1.0, 1e30])
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_adam_stays_finite(fit, norm, lam):
    fits, norms = (torch.full((3,), value, dtype=torch.float64) for value in (fit, norm))
    assert bool(adam_row_scale(fits, norms, lam).isfinite().all())
    if abs(fit) <= 1 and norm <= 1e-8:
        descent = adam_to_convergence(fits, norms, lam)
        assert bool(descent.alpha.isfinite().all())
        assert math.isfinite(descent.distance)


@pytest.mark.parametrize("inputs", SMALL)
def test_group_systems_that_are_singular_keep_ones_or_improve(inputs):
    gram = measured(SMALL[inputs]).gram
    weight = layer(R, C).weight
    scaled = (weight / 0.05).round() * 0.05
    index = torch.arange(C) // 8
    index[-1] = -1
    scaled[0], scaled[1, :8] = 0, 0
    factors = output_factors(weight - scaled, scaled, index, 3, gram, 0.0)
    assert bool(factors.isfinite().all())
    assert bool((factors[0] == 1).all())
    basis = torch.linalg.eigh(gram.double()).eigenvectors[:, 5:]
    assert bool(null_space_factors(weight - scaled, scaled, index, 3, basis, 0.0).isfinite().all())


@pytest.mark.parametrize(
    ("part", "whole", "quotient"),
    [(1.0, 4.0, 0.25), (0.0, 0.0, 0.0), (1.0, 0.0, None), (1e300, 1e-300, None), (math.nan, 1.0, None)],
)
def test_a_share_is_finite_or_absent(part, whole, quotient):
    assert share(part, whole) == quotient


def test_a_zero_layer_that_is_not_stored_as_zero_has_no_relative_error():
    given = problem(SMALL["one outlier"], WEIGHTS["zero"])
    base = RTN(bits=3, group_size=8).quantize(problem(SMALL["one outlier"]))
    solution = Solution(replace(base, original=given.weight), replace(base, original=given.weight))
    figures = NullSpaceMeasures(points=4).measure(given, solution)
    (report,) = layer_reports(0, given, solution, 0.0, figures)
    assert (report.error_before, report.error_after, report.heldout_error_after) == (None, None, None)
    assert report.null_space.error_sources is None
