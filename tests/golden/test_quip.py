"""QuIP against the official classes: rotations drawn there are put in, everything else is computed."""

import pytest
import torch
from golden.golden_data import Golden, check_row_scales, relative

from q2n.baselines.quip import QuIP
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.released import ReleasedScale
from q2n.quantization.transforms.incoherence import Incoherence, rescaling
from q2n.quantization.transforms.kronecker import KroneckerOrthogonal
from q2n.types import Statistic

CASES = ["quip_w2_ldlq_np0", "quip_w2_ldlq_np1", "quip_w3_ldlq_np0", "quip_w3_ldlq_np1"]
HALF = "quip_w2_ldlq_np1_fp16_as_released"


def baseline(data):
    settings = data.settings
    return QuIP(bits=settings["bits"], npasses=settings["npasses"], percdamp=settings["percdamp"])


def basis(data, problem):
    def side(name):
        return KroneckerOrthogonal(
            *(data[f"{name}_{part}"] for part in ("factor0", "factor1", "perm_in", "perm_out"))
        )

    return Incoherence(side("U"), side("V"), rescaling(problem.weight, problem.stats.gram))


@pytest.mark.parametrize("case", CASES)
def test_basis_is_the_official_one(case):
    data = Golden(case)
    problem = data.problem()
    transform = basis(data, problem)
    assert relative(transform.scale, data["scaleWH"]) < 1e-5
    for rotation, key in ((transform.inputs, "V"), (transform.output, "U")):
        assert relative(rotation.apply(torch.eye(len(rotation.entry))), data[key]) < 1e-6
    rotated = transform.problem(problem)
    assert relative(rotated.weight, data["W_transformed"]) < 1e-5
    hessian = baseline(data).conditioned(rotated.stats.gram)
    assert relative(hessian.diagonal(), data["H_transformed_diag"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_codes_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    solution = baseline(data).solve_in(problem, NoCorrection(), basis(data, problem))
    inner = solution.base.format.inner
    assert torch.equal(inner.codes, data["codes"])
    assert relative(inner.scale, data["scale"]) < 1e-5
    assert relative(inner.dequantize(), data["Q_transformed"]) < 1e-5
    assert relative(solution.base.weight, data["Q"]) < 1e-5


def test_half_precision_release_agrees_but_for_a_few_codes():
    data = Golden(HALF)
    problem = data.problem()
    inner = baseline(data).solve_in(problem, NoCorrection(), basis(data, problem)).base.format.inner
    assert (inner.codes != data["codes"]).float().mean() < 0.02
    assert relative(inner.scale, data["scale"]) < 3e-4


@pytest.mark.parametrize("case", CASES)
def test_row_scales_live_in_the_rotated_basis(case):
    data = Golden(case)
    problem = data.problem()
    rotated = basis(data, problem).problem(problem)
    check_row_scales(data, baseline(data).quantize(rotated), rotated)
    for statistic in ("gram", "position_mean"):
        correction = NullSpaceScale(
            t=data.settings["threshold"], lam=data.settings["lambda"], statistic=statistic
        )
        solution = baseline(data).solve_in(problem, correction, basis(data, problem))
        assert relative(solution.corrected.weight, data[f"aligned_Q_{statistic}"]) < 2e-5
        vector = 16 * len(problem.weight)
        assert solution.corrected.format.storage_bits() == solution.base.format.storage_bits() + vector


@pytest.mark.parametrize("case", [*CASES, HALF])
def test_released_step_changes_nothing(case):
    data = Golden(case)
    problem = data.problem(Statistic.POSITION_MEAN)
    method = baseline(data)
    correction = ReleasedScale(t=data.settings["threshold"], lam=data.settings["lambda"]).bind(method)
    solution = method.solve_in(problem, correction, basis(data, problem))
    assert correction.requires == frozenset()
    assert torch.equal(solution.corrected.diagnostics["alpha"], data["q2n_alpha"].double())
    assert torch.equal(solution.corrected.weight, solution.base.weight)
    assert solution.corrected.bits_per_weight == solution.base.bits_per_weight
