"""``q2n=off`` and the pipeline around every baseline: nothing is added, and everything repeats to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.layers import layer, split
from helpers.runs import run, same_state
from omegaconf import OmegaConf

from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.options import build
from q2n.quantization.transforms.incoherence import TransformedFormat, draw_incoherence
from q2n.types import LinearProblem, Statistic

CONF = Path(__file__).parents[2] / "conf" / "baseline"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def configured(name):
    """The baseline of ``conf/baseline/<name>.yaml`` with the interpolations it may use."""
    section = OmegaConf.load(CONF / f"{name}.yaml")
    root = OmegaConf.create({"bits": 3, "group_size": 16, "seed": 0, "baseline": section})
    return build(OmegaConf.to_container(root, resolve=True)["baseline"], "baseline")


def uncorrected(baseline, problem):
    """What the baseline alone makes of a layer, without a word about corrections."""
    if not isinstance(baseline, QuIP):
        return baseline.quantize(problem).weight
    basis = draw_incoherence(problem, baseline.seed)
    return TransformedFormat(baseline.quantize(basis.problem(problem)).format, basis).dequantize()


@pytest.mark.parametrize("name", NAMES)
def test_off_leaves_the_baselines_result(name):
    baseline = configured(name)
    result = run(baseline)
    for problem, solution in result.solved:
        assert torch.equal(solution.base.weight, uncorrected(baseline, problem))
        assert torch.equal(solution.corrected.weight, solution.base.weight)
        assert "alpha" not in solution.corrected.diagnostics
    written = {report.name: report for report in result.reports if report.block == 1}
    weights = {
        name: rows
        for problem, solution in result.solved[len(result.solved) // 2 :]
        for name, rows in zip(problem.names, solution.base.weight.split(list(problem.rows)), strict=True)
    }
    assert set(written) == set(weights)
    for layer_name, weight in weights.items():
        assert torch.equal(result.loaded.adapter.blocks[1].linear(layer_name).weight, weight)
        assert written[layer_name].error_before == written[layer_name].error_after
        assert written[layer_name].alpha_min is None


@pytest.mark.parametrize("name", NAMES)
def test_off_is_a_correction_that_skips_every_layer(name):
    baseline = configured(name)
    off = run(baseline, NoCorrection())
    assert same_state(off, run(baseline, NullSpaceScale(t=0.1, lam=0.2, skip=["*"])))
    assert not same_state(off, run(baseline, NullSpaceScale(t=0.1, lam=0.2, skip=[])))


def test_off_returns_what_it_is_given():
    baseline = configured("gptq")
    problem = layer(24, 40)
    base = baseline.quantize(problem)
    assert NoCorrection().correct(problem, base) is base
    assert NoCorrection().bind(baseline) == NoCorrection()
    assert NoCorrection().requires == frozenset()


def stacked(seed=0):
    """Layers of uneven size on one input, with every statistic a baseline may ask for."""
    problem = layer(24, 40, seed=seed)
    tokens = torch.randn(64, 40, generator=torch.Generator().manual_seed(seed))
    stats = replace(problem.stats, values={**problem.stats.values, Statistic.TOKEN_SAMPLE: tokens})
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return LinearProblem(names, (12, 5, 7), problem.weight, stats)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("correction", [NoCorrection(), NullSpaceScale(t=0.1, lam=0.2)])
def test_solving_twice_gives_the_same_bits(name, correction):
    baseline, problem = configured(name), stacked()
    problem = problem if baseline.stacks_rows else split(problem)[0]
    first, second = (baseline.solve(problem, correction) for _ in range(2))
    for one, other in ((first.base, second.base), (first.corrected, second.corrected)):
        assert torch.equal(one.weight, other.weight)
        parts = other.format.tensors()
        assert all(torch.equal(tensor, parts[part]) for part, tensor in one.format.tensors().items())


@pytest.mark.parametrize("name", [name for name in NAMES if configured(name).stacks_rows])
@pytest.mark.parametrize("correction", [NoCorrection(), NullSpaceScale(t=0.1, lam=0.2)])
def test_stacked_layers_are_solved_as_if_alone(name, correction):
    baseline, problem = configured(name), stacked(seed=1)
    together = baseline.solve(problem, correction).corrected
    apart = [baseline.solve(part, correction).corrected for part in split(problem)]
    assert torch.equal(together.format.codes, torch.cat([part.format.codes for part in apart]))
    weight = torch.cat([part.weight for part in apart])
    assert torch.allclose(together.weight, weight, rtol=1e-5, atol=1e-7)
    assert [part.names for part in split(problem)] == [(name,) for name in problem.names]
    assert torch.equal(torch.cat([part.weight for part in split(problem)]), problem.weight)
