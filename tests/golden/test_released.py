"""The released code's own steps, reproduced with their faults (QuIP's is in test_quip)."""

from dataclasses import replace

import pytest
import torch
from golden import test_gptq, test_leanquant, test_owq, test_pbllm, test_quarot
from golden.golden_data import Golden, relative

from q2n.baselines.rtn import RTN
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import adam_row_scale
from q2n.corrections.nullspace.rank import prefix_suffix_rank
from q2n.corrections.released import BoundRelease, ReleasedScale
from q2n.exceptions import UnsupportedError
from q2n.pipeline.calibration import Accumulators
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


def test_the_corrections_defaults_are_the_ones_documented():
    """docs/reproduction.md names what ``q2n=on`` repairs and what it keeps of the release's choices."""
    fields = {key: field.default for key, field in NullSpaceScale.__dataclass_fields__.items()}
    assert (fields["statistic"], fields["reference"], fields["kept_columns"]) == (
        "gram",
        "original",
        "exclude",
    )
    assert (fields["index_rule"], fields["drop_first"], fields["eigenvalues"]) == ("released", True, "clamp")


@pytest.mark.parametrize("case", test_quarot.CASES)
def test_quarots_projector_stays_in_the_layers_order(case):
    """With the release's ``--act_order`` weights are permuted and the projector is not, as after GPTQ."""
    data = Golden(case)
    problem = data.problem()
    method = replace(test_quarot.baseline(data.settings), act_order=True)
    base = method.quantize(problem)
    rank = problem.weight.shape[1] - released(data, method).correct(problem, base).diagnostics["null_rank"]
    mean = problem.stats[Statistic.POSITION_MEAN].double()
    null = torch.linalg.eigh(mean.T @ mean).eigenvectors[:, : problem.weight.shape[1] - rank]

    def scale(columns):
        """The closed form as it reads, with all columns of the weights in the order given."""
        weight, values = base.compensated.double()[:, columns], base.weight.double()[:, columns]
        target = weight - (weight - values) @ null @ null.T
        lam = data.settings["lambda"]
        return ((target * values).sum(dim=1) + lam) / (values.square().sum(dim=1) + lam)

    alpha = released(data, method).correct(problem, base).diagnostics["alpha"]
    assert torch.allclose(alpha, scale(base.order), rtol=0, atol=1e-6)
    assert not torch.allclose(alpha, scale(slice(None)), rtol=0, atol=1e-4)


def test_quarots_rounded_weights_have_no_released_step():
    method = replace(test_quarot.baseline(Golden(test_quarot.CASES[0]).settings), weight_solver="rtn")
    with pytest.raises(UnsupportedError, match="no Q2N step for QuaRot with these settings"):
        ReleasedScale(t=0.1, lam=0.2).bind(method)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_mean_inputs_of_any_length_in_any_batches(batch):
    """The release takes sequences of 2048 tokens one by one; here neither matters."""
    inputs = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(0))
    accumulators = Accumulators([Statistic.POSITION_MEAN, Statistic.SQRT_POSITION_MEAN])
    for part in inputs.split(batch):
        accumulators.update(part)
    stats = accumulators.result()
    assert torch.allclose(stats[Statistic.POSITION_MEAN], inputs.mean(dim=0), atol=1e-6)
    weighted = sum((2 / k) ** 0.5 * sequence for k, sequence in enumerate(inputs, start=1)) / 7
    assert torch.allclose(stats[Statistic.SQRT_POSITION_MEAN], weighted, atol=1e-6)


def test_pbllm_weights_are_no_common_factor():
    """Of 128 sequences the first counts eleven times as much as the last."""
    inputs = torch.eye(128)[:, None, :]
    accumulators = Accumulators([Statistic.SQRT_POSITION_MEAN])
    accumulators.update(inputs)
    weights = accumulators.result()[Statistic.SQRT_POSITION_MEAN][0].double()
    assert float(weights[0] / weights[-1]) == pytest.approx(128**0.5, rel=1e-6)
    assert float(weights.sum()) == pytest.approx(0.234, abs=1e-3)
    assert float(weights.sum() ** 2 / weights.square().sum()) == pytest.approx(83, abs=1)


@pytest.mark.parametrize("case", test_owq.CASES)
def test_owqs_kept_columns_are_zero_when_the_step_runs(case):
    data = Golden(case)
    method = test_owq.baseline(data.settings)
    problem = data.problem()
    base = method.quantize(problem)
    recipe = type(method).released
    filled = BoundRelease(
        data.settings["threshold"], data.settings["lambda"], replace(recipe, kept_columns="filled")
    )
    zero = released(data, method).correct(problem, base).diagnostics["alpha"]
    assert (zero - filled.correct(problem, base).diagnostics["alpha"]).abs().max() > 1e-3
    assert torch.allclose(zero, data["q2n_alpha"].double(), atol=2e-5, rtol=0)


def test_a_row_is_scaled_by_one_number():
    """What the official class wrote is its uncorrected weight times a factor a row."""
    for module, case in CASES:
        data = Golden(case)
        base, corrected = data["Q"].double(), data["q2n_Q"].double()
        if module is test_owq:
            kept = data["out_ids"].long()
            assert torch.equal(corrected[:, kept], base[:, kept])
            base, corrected = (part.index_fill(1, kept, 0) for part in (base, corrected))
        assert relative(corrected, data["q2n_alpha"].double()[:, None] * base) < 2e-6


def test_mean_inputs_leave_directions_that_are_null_by_construction():
    """The mean input of ``T`` positions has rank ``T``; the Gram matrix has that of all tokens."""
    inputs = torch.randn(30, 6, 16, generator=torch.Generator().manual_seed(0))
    accumulators = Accumulators([Statistic.POSITION_MEAN, Statistic.GRAM])
    accumulators.update(inputs)
    stats = accumulators.result()
    ranks = {
        statistic: prefix_suffix_rank(stats.spectrum(statistic).values.clamp(min=0), t=0.0)
        for statistic in (Statistic.POSITION_MEAN, Statistic.GRAM)
    }
    assert ranks[Statistic.POSITION_MEAN] <= 6
    assert ranks[Statistic.GRAM] >= 15  # the released rule may leave one out


def test_adam_cannot_go_far():
    """Twenty steps of at most about the learning rate, however far away the optimum is."""
    fit = torch.tensor([0.0, 0.5, 3.0, 100.0], dtype=torch.float64)
    alpha = adam_row_scale(fit, torch.ones_like(fit), lam=0.0)
    assert ((alpha - 1).abs() < 0.05).all()
    assert ((alpha - 1).abs() > 0.03).all()
