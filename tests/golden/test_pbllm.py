"""PB-LLM against the official class."""

import pytest
import torch
from golden.golden_data import Golden, check_row_scales, relative

from q2n.baselines.pbllm import PBLLM

CASES = ["pbllm_xnor08_h8_magnitude_g128", "pbllm_xnor09_h8_hessian"]


def baseline(settings):
    return PBLLM(
        bits=3,
        low_frac=settings["low_frac"],
        high_bits=settings["high_bit"],
        saliency=settings["salient_metric"],
        group_size=settings["groupsize"],
        percdamp=settings["percdamp"],
        percdamp_schedule=[],
    )


@pytest.mark.parametrize("case", CASES)
def test_parts_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    result = baseline(data.settings).quantize(problem)
    form = result.format
    mask = data["low_mask"]
    assert torch.equal(form.mask, mask)
    assert torch.equal(form.low.signs[mask], data["low_sign"][mask])
    assert torch.equal(form.high.codes[~mask], data["high_codes"][~mask])
    assert relative(form.low.mean, data["low_mean"]) < 1e-5
    assert relative(form.low.scale, data["low_scale"]) < 1e-5
    assert relative(form.high.scale, data["high_scale"]) < 1e-5
    assert torch.equal(form.high.zero, data["high_zero"])
    assert relative(result.weight, data["Q"]) < 1e-5
    assert relative(result.compensated, data["W_comp"]) < 1e-5
    assert result.diagnostics["loss"] == pytest.approx(float(data["obs_loss"]), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_row_scales_match_the_float64_reference(case):
    data = Golden(case)
    problem = data.problem()
    check_row_scales(data, baseline(data.settings).quantize(problem), problem)
