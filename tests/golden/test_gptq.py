"""GPTQ and round-to-nearest against the official classes."""

import pytest
import torch
from golden.golden_data import Golden, relative

from q2n.baselines.gptq import GPTQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.rank import prefix_suffix_rank
from q2n.quantization.formats.uniform import UniformFormat, UniformSpec
from q2n.types import Statistic

CASES = [
    "gptq_w3_perrow",
    "gptq_w3_perrow_deadcols",
    "gptq_w2_g32",
    "gptq_w3_g32_actorder",
    "gptq_w4sym_g64_static_actorder",
]


def baseline(settings):
    return GPTQ(
        bits=settings["bits"],
        group_size=settings["groupsize"],
        sym=settings["sym"],
        act_order=settings["act_order"],
        static_groups=settings["static_groups"],
        percdamp=settings["percdamp"],
        percdamp_schedule=[],
    )


@pytest.mark.parametrize("case", CASES)
def test_codes_scales_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    result = baseline(data.settings).quantize(problem)
    form = result.format
    assert isinstance(form, UniformFormat)
    assert relative(problem.stats.gram.diagonal(), data["hessian_diag"]) < 1e-5
    assert torch.equal(form.codes, data["codes"])
    assert torch.equal(form.zero, data["zero"])
    assert relative(form.scale, data["scale"]) < 1e-5
    assert torch.equal(form.group, data["group_of_column"].long())
    assert torch.equal(result.order, data["perm"])
    assert relative(result.weight, data["Q"]) < 1e-5
    assert relative(result.compensated, data["W_comp"]) < 1e-5
    assert result.diagnostics["loss"] == pytest.approx(float(data["obs_loss"]), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("statistic", ["gram", "position_mean"])
@pytest.mark.parametrize("reference", ["original", "compensated"])
@pytest.mark.parametrize("rule", ["released", "textbook"])
def test_row_scales_match_the_float64_reference(case, statistic, reference, rule):
    data = Golden(case)
    problem = data.problem()
    plain = (reference, rule) == ("original", "released")
    suffix = statistic if plain else f"{statistic}__{reference}__{rule}"
    key = f"aligned_alpha_{suffix}" if plain else f"alt_alpha__{suffix}"
    correction = NullSpaceScale(
        t=data.settings["threshold"],
        lam=data.settings["lambda"],
        statistic=statistic,
        reference=reference,
        index_rule=rule,
    )
    result = correction.correct(problem, baseline(data.settings).quantize(problem))
    assert result.diagnostics["null_rank"] == problem.weight.shape[1] - int(data[key.replace("alpha", "k")])
    assert torch.allclose(result.diagnostics["alpha"], data[key], atol=2e-5, rtol=0)


def test_aligned_scale_is_not_the_released_misaligned_one():
    data = Golden("gptq_w3_g32_actorder")
    problem = data.problem()
    correction = NullSpaceScale(
        t=data.settings["threshold"], lam=data.settings["lambda"], statistic="position_mean"
    )
    result = correction.correct(problem, baseline(data.settings).quantize(problem))
    assert (result.diagnostics["alpha"] - data["q2n_alpha"]).abs().max() > 1e-3


def test_null_index_agrees_on_every_spectrum():
    data = Golden("q2n_null_index")
    for row, t, released, textbook in zip(
        data["spectra"], data["threshold"], data["k_released"], data["k_textbook"], strict=True
    ):
        values = row[~row.isnan()].clamp(min=0)
        for rule, expected in (("released", released), ("textbook", textbook)):
            assert prefix_suffix_rank(values, float(t), rule) == max(int(expected), 0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
@pytest.mark.parametrize(("clip", "group_size"), [("minmax", -1), ("minmax", 64), ("mse", -1)])
def test_uniform_grid(bits, symmetry, clip, group_size):
    data = Golden("rtn_uniform_grid")
    key = f"b{bits}_{symmetry}_{clip}_g{group_size}"
    form = UniformSpec(bits, group_size, symmetry == "sym", clip).quantize(data["W"])
    assert torch.equal(form.codes, data[f"{key}__codes"])
    assert torch.equal(form.zero, data[f"{key}__zero"])
    assert relative(form.scale, data[f"{key}__scale"]) < 1e-6


def test_gram_is_the_default_statistic():
    assert NullSpaceScale(t=0.1, lam=0.2).requires == {Statistic.GRAM}
