"""Output bias, requantization after projection, and Q2N tuned on held-out sequences."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.corrections import BASELINES, C, R, inputs_of, measured, output_errors, problem, quantized
from helpers.layers import split
from helpers.runs import run, same_state, tiny, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from q2n.baselines.gptq import GPTQ
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.corrections.bias import OutputBias
from q2n.corrections.groupwise import GroupwiseScale
from q2n.corrections.lstsq import LeastSquaresScale
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.rank import RankRule
from q2n.corrections.requantize import RequantizeProjected
from q2n.corrections.tuned import TunedNullSpaceScale
from q2n.diagnostics.layers import layer_reports
from q2n.exceptions import ConfigurationError, NumericalError, UnsupportedError
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method
from q2n.pipeline.checkpoint import Checkpoint
from q2n.quantization.formats.awq import AwqSpec
from q2n.quantization.formats.base import requantized
from q2n.quantization.formats.mse2d import Mse2dSpec
from q2n.quantization.formats.uniform import CentredSpec
from q2n.types import LinearProblem, Solution, Statistic, Statistics

NAMES = list(BASELINES)
STACK = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (12, 5, 7))

# --- scaled rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("correction", [NullSpaceScale(t=0.1, lam=0.2), LeastSquaresScale()])
def test_errors_of_scaled_rows_are_those_of_the_weight(name, correction):
    given_ = problem()
    solution = BASELINES[name].solve(given_, correction)
    unrelated = replace(solution, corrected=replace(solution.corrected, scaling=None))
    (found,), (expected,) = (layer_reports(0, given_, it, 0) for it in (solution, unrelated))
    assert found.error_after == pytest.approx(expected.error_after, rel=1e-4)
    assert found.heldout_error_after == pytest.approx(expected.heldout_error_after, rel=1e-4)
    assert found.error_after != found.error_before


# --- output bias --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_bias_is_the_mean_error_and_takes_it_away(name):
    given_ = problem()
    solution = BASELINES[name].solve(given_, OutputBias())
    inputs = inputs_of().reshape(-1, C).double()
    outputs = inputs @ (given_.weight - solution.base.weight).double().T
    assert torch.allclose(solution.corrected.bias.double(), outputs.mean(dim=0), rtol=0, atol=1e-5)
    assert torch.equal(solution.corrected.weight, solution.base.weight)
    (report,) = layer_reports(0, given_, solution, 0)
    energy = (inputs @ given_.weight.double().T).square().sum()
    assert report.error_before == pytest.approx(float(outputs.square().sum() / energy), rel=1e-4)
    left = float((outputs - outputs.mean(dim=0)).square().sum() / energy)
    assert report.error_after == pytest.approx(left, rel=1e-3)
    assert report.error_after < report.error_before
    apart = inputs_of(1, sequences=2).reshape(-1, C).double()
    shifted = apart @ (given_.weight - solution.base.weight).double().T - solution.corrected.bias.double()
    expected = float(shifted.square().sum() / (apart @ given_.weight.double().T).square().sum())
    assert report.heldout_error_after == pytest.approx(expected, rel=1e-3)


def test_no_other_bias_leaves_less_error():
    given_ = problem()
    best = BASELINES["gptq"].solve(given_, OutputBias())
    (least,) = layer_reports(0, given_, best, 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = replace(best.corrected, bias=best.corrected.bias + 0.01 * torch.randn(R, generator=generator))
        (report,) = layer_reports(0, given_, replace(best, corrected=other), 0)
        assert report.error_after > least.error_after


def test_a_bias_counts_where_there_was_none():
    given_ = replace(problem(names=STACK[0], rows=STACK[1]), biased=(True, False, False))
    reports = layer_reports(0, given_, BASELINES["gptq"].solve(given_, OutputBias(skip=["*v_proj"])), 0)
    plain = layer_reports(0, given_, BASELINES["gptq"].solve(given_, OutputBias(skip=["*"])), 0)
    more = [one.bits_per_weight - other.bits_per_weight for one, other in zip(reports, plain, strict=True)]
    assert more == pytest.approx([0, 16 / C, 0])
    assert [one.error_after < one.error_before for one in reports] == [True, True, False]
    only = layer_reports(0, given_, BASELINES["gptq"].solve(given_, OutputBias(layers="biased")), 0)
    assert [one.error_after < one.error_before for one in only] == [True, False, False]
    assert [one.bits_per_weight for one in only] == [other.bits_per_weight for other in plain]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("baseline", [GPTQ(bits=3, group_size=16), QuIP(bits=3)])
def test_the_pipeline_writes_the_bias_into_the_model(family, baseline):
    result = run(baseline, OutputBias(), family)
    before, reports = tiny(family), iter(result.reports)
    for index, (given_, solution) in enumerate(result.solved):
        first, number = 0, index if baseline.stacks_rows else 0
        block = number // 4 if baseline.stacks_rows else index // 7
        for name, rows in zip(given_.names, given_.rows, strict=True):
            report, part = next(reports), slice(first, first + rows)
            first += rows
            assert (report.block, report.name) == (block, name)
            assert report.error_after < report.error_before
            own = before.adapter.blocks[block].linear(name).bias
            expected = solution.corrected.bias[part] + (0 if own is None else own.detach())
            assert torch.allclose(result.loaded.adapter.blocks[block].linear(name).bias, expected, atol=1e-6)
            stored = solution.corrected.format.select_rows(part.start, part.stop).storage_bits()
            bits = (stored + (16 * rows if own is None else 0)) / (rows * given_.weight.shape[1])
            assert report.bits_per_weight == pytest.approx(bits)
    assert next(reports, None) is None
    plain = run(baseline, None, family)
    assert not torch.equal(result.logits(), plain.logits())
    skipped = run(baseline, OutputBias(skip=["*"]), family)
    assert same_state(skipped, plain), "a layer left alone gets no bias of zeros"


class StoppedError(Exception):
    pass


def resumable(folder, stop=None):
    loaded = tiny("llama")

    def progress(block, group):
        if block == stop:
            raise StoppedError

    with activation_store("memory") as store, Checkpoint(folder, "0" * 16, every=1) as checkpoint:
        reports = BlockLoop(
            Method(GPTQ(bits=3, group_size=16), OutputBias()),
            tokens(),
            batch_size=2,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=progress,
            heldout=tokens(2),
            checkpoint=checkpoint,
        ).quantize(loaded.adapter)
    return loaded.model.state_dict(), reports, checkpoint.resumed_at


def test_a_model_with_new_biases_goes_on_from_a_checkpoint(tmp_path):
    with pytest.raises(StoppedError):
        resumable(tmp_path / "cell", stop=1)
    state, reports, resumed_at = resumable(tmp_path / "cell")
    whole, expected, _ = resumable(tmp_path / "other")
    assert resumed_at == (1,)
    assert list(state) == list(whole)
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    timeless = {"solve_seconds": 0.0, "correct_seconds": 0.0}
    assert [replace(it, **timeless) for it in reports] == [replace(it, **timeless) for it in expected]


# --- requantize ---------------------------------------------------------------------------------------------

GRIDS = {
    "centred": CentredSpec(3, 16, symmetric=True),
    "awq": AwqSpec(3, 16),
    "searched": Mse2dSpec(2, 16, steps=10),
}


def formats():
    for name in NAMES:
        yield name, quantized(name)[1].format
    weight = problem().weight
    for name, grid in GRIDS.items():
        yield name, grid.quantize(weight).scale_rows(torch.linspace(0.7, 1.3, R))


@pytest.mark.parametrize(("name", "form"), list(formats()), ids=[name for name, _ in formats()])
def test_rounding_with_the_same_scales_finds_the_nearest_level(name, form):
    weight = form.dequantize()
    assert torch.equal(requantized(form, weight).dequantize(), weight), "levels are rounded to themselves"
    generator = torch.Generator().manual_seed(1)
    other = weight + 0.05 * torch.randn(weight.shape, generator=generator)
    rounded = requantized(form, other)
    for part, tensor in form.tensors().items():
        if part.rpartition(".")[2] not in ("codes", "signs"):
            assert torch.equal(rounded.tensors()[part], tensor), part
    # What each entry could have been: the values the format has for any weight from low to high.
    sweep = torch.stack(
        [requantized(form, torch.full_like(weight, x)).dequantize() for x in torch.linspace(-1, 1, 801)]
    )
    nearest = (sweep - other).abs().amin(dim=0)
    assert bool(((rounded.dequantize() - other).abs() <= nearest + 1e-6).all())
    assert not torch.equal(rounded.dequantize(), weight)
    turned = form.scale_rows(-torch.ones(R))
    assert torch.equal(requantized(turned, -weight).dequantize(), turned.dequantize())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0])
def test_no_row_of_a_requantized_layer_has_more_output_error(name, t):
    given_, base = quantized(name)
    result = RequantizeProjected(t=t, skip=[]).correct(given_, base)
    gram = given_.stats.gram
    before, after = (output_errors(base.original, it.weight, gram) for it in (base, result))
    assert bool((after <= before * (1 + 1e-6)).all())
    (notes,) = result.diagnostics["notes"]
    assert notes["changed"] == pytest.approx(float((result.weight != base.weight).double().mean()))
    assert (notes["changed"] > 0) == bool((after < before * (1 - 1e-6)).any())
    assert result.bits_per_weight == base.bits_per_weight


def test_one_round_is_the_rounded_target_in_the_rows_it_helps():
    given_, base = quantized("pbllm")
    result = RequantizeProjected(t=0.1, rounds=1, skip=[]).correct(given_, base)
    vectors = torch.linalg.eigh(given_.stats.gram.double()).eigenvectors
    null = vectors[:, : result.diagnostics["null_rank"]]
    error = (base.original - base.weight).double()
    target = requantized(base.format, (base.original - error @ null @ null.T).float()).dequantize()
    gram = given_.stats.gram
    helps = output_errors(base.original, target, gram) < output_errors(base.original, base.weight, gram)
    assert torch.equal(result.weight, target.where(helps[:, None], base.weight))
    assert int(helps.sum()) > 0
    more = RequantizeProjected(t=0.1, rounds=10, skip=[]).correct(given_, base)
    assert (
        output_errors(base.original, more.weight, gram).sum()
        < output_errors(base.original, result.weight, gram).sum()
    )


def test_a_format_that_cannot_round_again_is_named():
    given_, base = quantized("gptq")

    class Odd:
        shape = base.format.shape

        def dequantize(self):
            return base.weight

    with pytest.raises(UnsupportedError, match="Odd cannot round again"):
        RequantizeProjected(skip=[]).correct(given_, replace(base, format=Odd()))


# --- tuned --------------------------------------------------------------------------------------------------

GRID = {"t": [0.01, 0.1, 0.5], "lam": [0.0, 0.2, 2.0]}


@pytest.mark.parametrize("name", NAMES)
def test_tuned_is_the_pair_of_least_held_out_error(name):
    given_, base = quantized(name)
    result = TunedNullSpaceScale(**GRID, skip=[]).correct(given_, base)
    heldout = given_.stats.heldout.gram
    errors = {}
    for t, lam in itertools.product(GRID["t"], GRID["lam"]):
        single = NullSpaceScale(t=t, lam=lam, skip=[]).correct(given_, base)
        errors[t, lam] = (float(output_errors(base.original, single.weight, heldout).sum()), single)
    least, single = min(errors.values(), key=lambda it: it[0])
    before = float(output_errors(base.original, base.weight, heldout).sum())
    found = float(output_errors(base.original, result.weight, heldout).sum())
    assert found == pytest.approx(min(least, before), rel=1e-5)
    (notes,) = result.diagnostics["notes"]
    if least < before * (1 - 1e-5):
        assert errors[notes["t"], notes["lam"]][0] == pytest.approx(least, rel=1e-5)
        chosen = errors[notes["t"], notes["lam"]][1]
        assert torch.allclose(result.diagnostics["alpha"], chosen.diagnostics["alpha"], rtol=0, atol=1e-6)
        assert notes["null_rank"] == chosen.diagnostics["null_rank"]


def test_every_layer_of_a_stack_has_its_own_pair():
    given_, base = quantized("gptq", problem(names=STACK[0], rows=STACK[1]))
    tuned = TunedNullSpaceScale(**GRID, skip=["*v_proj"])
    together = tuned.correct(given_, base)
    pieces = base.weight.split(list(STACK[1]))
    for index, part in enumerate(split(given_)):
        start = sum(STACK[1][:index])
        form = base.format.select_rows(start, start + len(pieces[index]))
        alone = tuned.correct(part, replace(base, format=form, original=part.weight, compensated=part.weight))
        rows = slice(start, start + len(pieces[index]))
        assert torch.allclose(alone.weight, together.weight[rows], rtol=0, atol=1e-6)
    assert torch.equal(together.weight[17:], base.weight[17:])
    assert together.diagnostics["notes"][2] == {}


def test_a_layer_that_nothing_improves_stays_as_it_is():
    given_, base = quantized("gptq")
    # Held-out inputs to which the quantized weight is perfect: any step away from it costs.
    tuned = TunedNullSpaceScale(**GRID, skip=[])
    noisy = replace(base, original=base.weight + 1e-3 * given_.weight)
    blind = replace(given_, weight=noisy.original)
    only = torch.linalg.qr(torch.cat([noisy.original - base.weight, torch.zeros(C - R, C)]).T).Q[:, R:]
    direction = only[:, :1].T
    heldout = Statistics({Statistic.GRAM: 100 * direction.T @ direction}, 1, 1)
    result = tuned.correct(replace(blind, stats=replace(given_.stats, heldout=heldout)), noisy)
    (notes,) = result.diagnostics["notes"]
    before = output_errors(noisy.original, noisy.weight, heldout.gram).sum()
    after = output_errors(noisy.original, result.weight, heldout.gram).sum()
    assert after <= before + 1e-6
    assert notes == {}
    assert torch.equal(result.weight, base.weight)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from(["rtn", "gptq", "owq"]))
def test_tuned_never_raises_the_held_out_error(seed, name):
    given_, base = quantized(name, problem(seed))
    stranger = measured(inputs_of(seed + 7, sequences=1, tokens=3))
    given_ = replace(given_, stats=replace(given_.stats, heldout=stranger))
    result = TunedNullSpaceScale(**GRID, skip=[]).correct(given_, base)
    before, after = (output_errors(base.original, it.weight, stranger.gram).sum() for it in (base, result))
    assert after <= before * (1 + 1e-5)


def test_tuned_needs_held_out_sequences():
    given_, base = quantized("gptq")
    alone = replace(given_, stats=replace(given_.stats, heldout=None))
    tuned = TunedNullSpaceScale(**GRID)
    with pytest.raises(ConfigurationError, match=r"calibration\.heldout"):
        tuned.correct(alone, base)
    assert tuned.heldout > 0
    assert len(preflight(CONFIG_DIR, ["q2n=tuned"]).cells) == 1
    with pytest.raises(ConfigurationError, match=r"calibration\.heldout=0: q2n=tuned is chosen on held-out"):
        preflight(CONFIG_DIR, ["q2n=tuned", "calibration.heldout=0"])


# --- all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["weight", "gram", "mean", "heldout"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error(where, value):
    given_, base = quantized("rtn")
    stats, original = given_.stats, base.original.clone()
    spoilt = {Statistic(name): value_.clone() for name, value_ in stats.values.items()}
    apart = {name: tensor.clone() for name, tensor in stats.heldout.values.items()}
    if where == "weight":
        original[3, 5] = value
    elif where == "heldout":
        apart[Statistic.GRAM][2, 2] = value
    else:
        spoilt[Statistic(where)][2] = value
    base = replace(base, original=original)
    heldout = replace(stats.heldout, values=apart)
    given_ = LinearProblem(
        given_.names, given_.rows, original, replace(stats, values=spoilt, heldout=heldout)
    )
    concerned = {
        "weight": [OutputBias(), RequantizeProjected(skip=[]), TunedNullSpaceScale(**GRID, skip=[])],
        "gram": [RequantizeProjected(skip=[]), TunedNullSpaceScale(**GRID, skip=[])],
        "mean": [OutputBias()],
        "heldout": [TunedNullSpaceScale(**GRID, skip=[])],
    }
    for correction in concerned[where]:
        with pytest.raises(NumericalError, match="not finite"):
            correction.correct(given_, base)


@pytest.mark.parametrize("rule", [RankRule("fixed", rank=7), RankRule("energy", energy=0.6)])
@pytest.mark.parametrize(
    "option",
    [
        partial(NullSpaceScale, t=0.1, lam=0.2, skip=[]),
        partial(GroupwiseScale, objective="q2n"),
        partial(RequantizeProjected, skip=[]),
        partial(TunedNullSpaceScale, t=[0.1], lam=[0.0, 0.2], skip=[]),
    ],
    ids=lambda option: option.func.__name__,
)
def test_every_rank_rule_is_that_of_every_correction_with_a_rank(option, rule):
    given_, base = quantized("gptq")
    asked = option(rank_rule=rule.name, **({"rank": 7} if rule.name == "fixed" else {"energy": 0.6}))
    (report,) = layer_reports(0, given_, Solution(base, asked.correct(given_, base)), 0)
    values = given_.stats.spectrum(Statistic.GRAM).values.clamp(min=0)
    assert rule.of_whole(values) != RankRule().of_whole(values)
    noted = report.extra.get("null_rank", report.null_rank)  # tuned: of each layer its own
    assert noted == len(values) - rule.of_whole(values)


def test_layers_left_alone_are_the_very_ones():
    given_, base = quantized("gptq")
    named = replace(given_, names=("mlp.down_proj",))
    for correction in (RequantizeProjected(), TunedNullSpaceScale(**GRID), OutputBias(skip=["mlp.*"])):
        assert correction.correct(named, base) is base
    assert OutputBias(layers="biased").correct(given_, base) is base


def test_without_a_null_space_rounding_to_nearest_is_where_it_ends():
    given_ = problem()
    base = RTN(bits=8, group_size=-1).quantize(given_)
    result = RequantizeProjected(t=0.0, index_rule="textbook", skip=[]).correct(given_, base)
    assert torch.equal(result.weight, base.weight)
