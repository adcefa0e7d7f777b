"""Every number format: row scales, row selection, stored bits."""

import pytest
import torch
from helpers.layers import layer

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.pbllm import PBLLM
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.exceptions import UnsupportedError

R, C = 24, 40
BASELINES = {
    "rtn": RTN(bits=3, group_size=16),
    "gptq": GPTQ(bits=3, group_size=16, act_order=True),
    "leanquant": LeanQuant(bits=2),
    "pbllm": PBLLM(bits=3, group_size=16),
    "owq": OWQ(bits=3, target_rank=3),
    "quip": QuIP(bits=2),
    "quip uniform": QuIP(bits=3, grid="uniform", group_size=8),
}


def solved(name, correction=None, problem=None):
    return BASELINES[name].solve(problem or layer(R, C), correction or NoCorrection())


@pytest.mark.parametrize("name", BASELINES)
def test_row_scales_multiply_rows_and_leave_kept_columns(name):
    base = solved(name).base
    alpha = torch.linspace(0.8, 1.2, R)
    scaled = base.format.scale_rows(alpha).dequantize()
    expected = alpha[:, None] * base.weight
    if base.kept is not None:
        expected[:, base.kept] = base.weight[:, base.kept]
    assert torch.allclose(scaled, expected, rtol=2e-6, atol=1e-8)
    twice = base.format.scale_rows(alpha).scale_rows(1 / alpha).dequantize()
    assert torch.allclose(twice, base.weight, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("name", BASELINES)
def test_selected_rows_are_rows(name):
    form = solved(name).base.format
    assert torch.equal(form.select_rows(0, R).dequantize(), form.dequantize())
    if name.startswith("quip"):
        with pytest.raises(UnsupportedError, match="rotated"):
            form.select_rows(3, 9)
    else:
        part = form.select_rows(3, 9)
        assert part.shape == (6, C)
        assert torch.equal(part.dequantize(), form.dequantize()[3:9])


@pytest.mark.parametrize("name", BASELINES)
def test_tensors_are_what_is_stored(name):
    form = solved(name).base.format
    assert form.dequantize().shape == form.shape == (R, C)
    assert form.dequantize().dtype == torch.float32
    assert all(isinstance(tensor, torch.Tensor) for tensor in form.tensors().values())


BITS = {
    "rtn": R * C * 3 + R * 3 * (16 + 3),
    "gptq": R * C * 3 + R * 3 * (16 + 3) + C * 2,  # act-order stores the group of each column
    "leanquant": R * C * 2 + R * 4 * 16,
    "owq": R * (C - 3) * 3 + R * (16 + 3) + R * 3 * 16 + 3 * 6,
    "quip": R * C * 2 + 16 + C * 16 + 64,
    "quip uniform": R * C * 3 + R * 5 * (16 + 3) + C * 16 + 64,
}


@pytest.mark.parametrize("name", BITS)
def test_stored_bits(name):
    base = solved(name).base
    assert base.format.storage_bits() == BITS[name]
    assert base.bits_per_weight == BITS[name] / (R * C)


def test_stored_bits_of_two_parts():
    form = solved("pbllm").base.format
    low = int(form.mask.sum())
    expected = R * C + low + (R * C - low) * 8 + R * 3 * 32 + R * (16 + 8)
    assert form.storage_bits() == expected


@pytest.mark.parametrize("name", [name for name in BASELINES if not name.startswith("quip")])
def test_corrections_cost_no_bits(name):
    problem = layer(R, C)
    solution = solved(name, NullSpaceScale(t=0.1, lam=0.2), problem)
    assert not torch.equal(solution.corrected.weight, solution.base.weight)
    assert solution.corrected.format.storage_bits() == solution.base.format.storage_bits()


@pytest.mark.parametrize("name", BASELINES)
def test_results_repeat_to_the_bit(name):
    first, second = solved(name), solved(name)
    assert torch.equal(first.base.weight, second.base.weight)


@pytest.mark.parametrize("name", BASELINES)
def test_dead_inputs_are_harmless(name):
    problem = layer(R, C, dead=(0, 7, 39))
    solution = solved(name, NullSpaceScale(t=0.1, lam=0.2), problem)
    assert torch.isfinite(solution.corrected.weight).all()
