"""Grids against brute force and counting."""

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.pbllm import PBLLM
from q2n.corrections.null_space import NullSpaceScale
from q2n.exceptions import UnsupportedError
from q2n.options import construct
from q2n.quantization.formats.mse2d import MARGIN, Mse2dSpec, _lower_bounds
from q2n.quantization.formats.uniform import round_to_grid


def every_candidate(weight, bits, steps):
    """Error of all steps and zero points, ``(steps, levels + 1, R)`` float64, and the unit step."""
    levels = 2**bits - 1
    low, high = weight.amin(1).clamp(max=0).double(), weight.amax(1).clamp(min=0).double()
    unit = (high - low) / (steps * levels)
    errors = []
    for step in range(1, steps + 1):
        for zero in range(levels + 1):
            _, values = round_to_grid(
                weight.double(), (unit * step)[:, None], torch.tensor(float(zero)), levels
            )
            errors.append((weight - values).abs().pow(2.4).sum(dim=1))
    return torch.stack(errors).view(steps, levels + 1, -1), unit


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("steps", [40, 100])
def test_search_of_step_and_zero_point_finds_the_best(bits, steps):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(20, 60, generator=generator)
    weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
    weight[2, 5], weight[3] = 30.0, weight[3] * 1e-3 + 1
    weight[4, :50] = 0
    scale, zero = Mse2dSpec(bits, steps=steps).fit(weight)
    errors, unit = every_candidate(weight, bits, steps)
    rows = torch.arange(len(weight))
    step = (scale.double() / unit).round().long()
    found = errors[step - 1, zero.long(), rows]
    assert torch.allclose(found, errors.flatten(0, 1).amin(dim=0), rtol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_what_the_search_leaves_out_could_not_have_won(bits):
    """Every candidate's bound lies below its error, and not far below the best one's."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(12, 90, generator=generator) * torch.rand(12, 1, generator=generator).exp()
    weight[0], weight[1, 7], weight[2] = weight[0].abs(), 40.0, weight[2].sign()
    errors, unit = every_candidate(weight, bits, 40)
    errors = (errors / unit**2.4).flatten(0, 1).T
    bound = _lower_bounds(weight, unit.to(weight), 2**bits - 1, 40)
    assert (bound <= errors * (1 + MARGIN) + 1e-6).all()
    usual = slice(3, None)
    assert (bound.amin(dim=1)[usual] > 0.8 * errors.amin(dim=1)[usual]).all()


def test_search_of_an_empty_row_takes_the_first_candidate():
    scale, zero = Mse2dSpec(3).fit(torch.zeros(2, 9))
    assert torch.allclose(scale, torch.full_like(scale, 2 / 700))
    assert torch.equal(zero, torch.zeros(2))


def test_search_has_no_symmetric_variant():
    with pytest.raises(UnsupportedError, match="symmetric"):
        Mse2dSpec(3, symmetric=True).fit(torch.randn(2, 9))


@pytest.mark.parametrize("saliency", ["hessian", "magnitude"])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_share_of_one_bit_weights(saliency, fraction, group_size):
    method = PBLLM(bits=3, low_frac=fraction, saliency=saliency, group_size=group_size)
    form = method.quantize(layer(24, 80)).format
    for part in form.mask.split(80 if group_size == -1 else group_size, dim=1):
        assert abs(int(part.sum()) - fraction * part.numel()) <= 1
    mean, scale = form.low.mean[:, form.low.group], form.low.scale[:, form.low.group]
    distance = ((form.dequantize() - mean).abs() - scale).abs()
    assert distance[form.mask].max() < 1e-6


def test_bits_set_the_share_of_one_bit_weights():
    for bits, high in ((1.7, 8), (2, 8), (3, 8), (3, 4)):
        share = PBLLM(bits=bits, high_bits=high).low_fraction
        assert share + (1 - share) * high == pytest.approx(bits)
    assert PBLLM(bits=3, low_frac=0.9).low_fraction == 0.9


@pytest.mark.parametrize("fields", [{"bits": 1}, {"bits": 5, "high_bits": 4}, {"bits": 3, "low_frac": 1.0}])
def test_unreachable_averages_are_refused(fields):
    with pytest.raises(Exception, match="baseline"):
        construct(PBLLM, fields, "baseline")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rows_hold_no_more_values_than_their_table(bits):
    problem = layer(24, 80)
    result = LeanQuant(bits=bits).quantize(problem)
    corrected = NullSpaceScale(t=0.1, lam=0.2).correct(problem, result)
    alpha = corrected.diagnostics["alpha"].float()
    assert torch.equal(corrected.format.table, result.format.table * alpha[:, None])
    for row in corrected.weight:
        assert len(row.unique()) <= 2**bits
