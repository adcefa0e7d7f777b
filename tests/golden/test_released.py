"""The released code's own steps, reproduced with their faults (QuIP's is in test_quip)."""

import pytest
import torch
from golden import test_gptq, test_leanquant, test_owq, test_pbllm
from golden.golden_data import Golden, relative

from q2n.baselines.rtn import RTN
from q2n.corrections.released import ReleasedScale, adam_row_scale
from q2n.exceptions import UnsupportedError
from q2n.types import Statistic

CASES = [
    (module, case) for module in (test_gptq, test_pbllm, test_leanquant, test_owq) for case in module.CASES
]


def released(data, method):
    return ReleasedScale(t=data.settings["threshold"], lam=data.settings["lambda"]).bind(method)


@pytest.mark.parametrize(("module", "case"), CASES, ids=[case for _, case in CASES])
def test_scales_and_weights_are_the_released_ones(module, case):
    data = Golden(case)
    method = module.baseline(data.settings)
    correction = released(data, method)
    (statistic,) = correction.requires
    problem = data.problem(statistic)
    assert relative(problem.stats[statistic], data["q2n_A"]) < 1e-5
    result = correction.correct(problem, method.quantize(problem))
    assert problem.weight.shape[1] - result.diagnostics["null_rank"] == int(data["q2n_k"])
    assert torch.allclose(result.diagnostics["alpha"], data["q2n_alpha"].double(), atol=2e-5, rtol=0)
    assert relative(result.weight, data["q2n_Q"]) < 2e-5


def test_only_pbllm_weighs_sequences_unevenly():
    for module, case in CASES:
        correction = released(Golden(case), module.baseline(Golden(case).settings))
        uneven = module is test_pbllm
        expected = Statistic.SQRT_POSITION_MEAN if uneven else Statistic.POSITION_MEAN
        assert correction.requires == {expected}


def test_down_projection_is_left_alone():
    data = Golden("gptq_w3_perrow")
    method = test_gptq.baseline(data.settings)
    problem = data.problem()
    down = type(problem)(("mlp.down_proj",), problem.rows, problem.weight, problem.stats)
    base = method.quantize(down)
    assert released(data, method).correct(down, base) is base


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    fit = 1 + 0.1 * torch.randn(9, generator=generator, dtype=torch.float64)
    norms = torch.rand(9, generator=generator, dtype=torch.float64) * 5
    alpha = torch.ones(9, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([alpha], lr=2e-3)
    for _ in range(20):
        optimiser.zero_grad()
        loss = (norms * (alpha - fit) ** 2).sum() + 0.3 * ((alpha - 1) ** 2).sum()
        loss.backward()
        optimiser.step()
    assert torch.allclose(adam_row_scale(fit, norms, 0.3), alpha.detach(), atol=1e-12)


def test_a_baseline_outside_the_release_is_refused():
    with pytest.raises(UnsupportedError, match="no Q2N step for RTN"):
        ReleasedScale(t=0.1, lam=0.2).bind(RTN(bits=3, group_size=-1))
    with pytest.raises(UnsupportedError, match="bind"):
        ReleasedScale(t=0.1, lam=0.2).correct(None, None)
