"""OWQ against the official classes."""

import pytest
import torch
from golden.golden_data import Golden, check_row_scales, relative

from q2n.baselines.owq import OWQ
from q2n.corrections.null_space import NullSpaceScale

CASES = ["owq_w3_minmax_r4", "owq_w3_mse_r2_g64_actorder", "owq_w3_mse_r6"]


def baseline(settings):
    return OWQ(
        bits=settings["bits"],
        group_size=settings["groupsize"],
        target_rank=settings["target_rank"],
        tuning=settings["tuning"],
        act_order=settings["act_order"],
        frobenius=not settings["no_frob_norm"],
        percdamp=settings["percdamp"],
        percdamp_schedule=[],
    )


@pytest.mark.parametrize("case", CASES)
def test_kept_columns_codes_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    method = baseline(data.settings)
    assert relative(method.sensitivity(problem), data["sensitivity"]) < 1e-5
    result = method.quantize(problem)
    form = result.format
    assert torch.equal(result.order, data["perm"])
    assert torch.equal(form.columns, data["out_ids"].long())
    assert torch.equal(result.kept.nonzero()[:, 0], form.columns)
    assert torch.equal(form.inner.codes, data["codes"][:, form.quantized])
    assert torch.equal(form.inner.zero, data["zero"])
    assert relative(form.inner.scale, data["scale"]) < 1e-5
    assert torch.equal(form.inner.group, data["group_of_column"][form.quantized].long())
    assert relative(result.weight, data["Q"]) < 1e-5
    assert relative(result.compensated, data["W_comp"]) < 1e-5
    assert result.diagnostics["loss"] == pytest.approx(float(data["obs_loss"]), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_row_scales_over_all_columns(case):
    data = Golden(case)
    problem = data.problem()
    check_row_scales(data, baseline(data.settings).quantize(problem), problem, kept_columns="include")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("statistic", ["gram", "position_mean"])
def test_row_scales_over_quantized_columns_are_the_default(case, statistic):
    data = Golden(case)
    problem = data.problem()
    base = baseline(data.settings).quantize(problem)
    settings = data.settings
    correction = NullSpaceScale(t=settings["threshold"], lam=settings["lambda"], statistic=statistic)
    corrected = correction.correct(problem, base)
    expected = data[f"aligned_alpha_{statistic}_fit_quantized_cols"]
    assert torch.allclose(corrected.diagnostics["alpha"], expected, atol=2e-5, rtol=0)
    assert torch.equal(corrected.weight[:, base.kept], base.weight[:, base.kept])
    rounded = ~base.kept
    assert relative(corrected.weight[:, rounded], expected[:, None] * base.weight[:, rounded]) < 2e-5
