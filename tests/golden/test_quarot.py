"""QuaRot against the official classes: Hadamard transforms, weights, activations, the released step."""

import re

import pytest
import torch
from golden.golden_data import Golden, check_row_scales, relative

from q2n.baselines.quarot import QuaRot
from q2n.corrections.released import ReleasedScale
from q2n.quantization.formats.activation import ActivationQuantizer
from q2n.quantization.transforms.hadamard import hadamard_matrix, hadamard_transform
from q2n.quantization.transforms.hadamard_orders import hadamard_order
from q2n.quantization.transforms.online import OnlineHadamard
from q2n.quantization.transforms.rotation import DenseOrthogonal, RandomHadamard

CASES = ["quarot_gptq_w4_asym_clip_g64_rotated", "quarot_gptq_w4_sym_clip_rotated"]
WIDTHS = [
    int(name[1:-3]) for name in filter(re.compile(r"n\d+__x").fullmatch, Golden("quarot_hadamard").keys())
]
QUANTIZERS = Golden("quarot_act_quantizer").settings["configs"]


def baseline(settings):
    return QuaRot(
        bits=settings["bits"],
        group_size=settings["groupsize"],
        sym=settings["sym"],
        clip="mse" if settings["w_clip"] else "minmax",
        act_order=settings["act_order"],
        percdamp=settings["percdamp"],
        percdamp_schedule=[],
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_transform_uses_the_official_matrix(width):
    data = Golden("quarot_hadamard")
    order = int(data[f"n{width}__K"])
    assert hadamard_order(width) == order
    if order > 1:
        assert torch.equal(hadamard_matrix(order), data[f"n{width}__hadK"])
    rows = data[f"n{width}__x"]
    assert relative(hadamard_transform(rows), data[f"n{width}__y"]) < 2e-7
    assert relative(hadamard_transform(rows, inverse=True), data[f"n{width}__yT"]) < 2e-7
    assert relative(OnlineHadamard(width)(rows.float()), data[f"n{width}__y_online"]) < 1e-6


def test_weight_side_transforms():
    data = Golden("quarot_hadamard")
    weight = data["lin_in_full__w"]
    assert relative(hadamard_transform(weight), data["lin_in_full__out"]) < 1e-6
    heads = data["lin_out_head16__w"].T.unflatten(-1, (-1, 16))
    assert relative(hadamard_transform(heads).flatten(-2).T, data["lin_out_head16__out"]) < 1e-6
    rotation = RandomHadamard(data["random_hadamard_192_signs"])
    assert relative(rotation(torch.eye(192).double()), data["random_hadamard_192"]) < 2e-7


@pytest.mark.parametrize("config", QUANTIZERS)
def test_activation_quantizer(config):
    data = Golden("quarot_act_quantizer")
    pattern = r"b(\d+)_(sym|asym)_g(-?\d+)_clip([\d.]+)_(\w+)"
    bits, symmetry, group, clip, dtype = re.fullmatch(pattern, config).groups()
    quantizer = ActivationQuantizer(int(bits), symmetry == "sym", float(clip), int(group))
    rows = data["X"].to(getattr(torch, dtype))
    codes, scale, zero = quantizer.encode(rows)
    assert torch.equal(codes, data[f"{config}__codes"].float())
    assert torch.equal(scale, data[f"{config}__scale"])
    assert torch.equal(zero, data[f"{config}__zero"])
    assert quantizer(rows).dtype == rows.dtype
    assert torch.equal(quantizer(rows).float(), data[f"{config}__y"])


@pytest.mark.parametrize("case", CASES)
def test_rotated_layer(case):
    data = Golden(case)
    rotate = DenseOrthogonal(data["R_orth"])
    assert relative(rotate(data["W_unrotated"].double()), data["W"]) < 1e-6
    assert relative(rotate(data["X_unrotated"].double()), data["X"]) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_codes_scales_and_weights_are_the_official_ones(case):
    data = Golden(case)
    problem = data.problem()
    result = baseline(data.settings).quantize(problem)
    form = result.format
    group = data["group_of_column"].long()
    assert relative(problem.stats.gram.diagonal(), data["hessian_diag"]) < 1e-5
    assert torch.equal(form.group, group)
    # The centred grid is stored with an offset, which the zero point takes off again.
    centred = form.codes.float() - form.zero[:, form.group]
    assert torch.equal(centred, data["codes"].float() - data["zero"][:, group])
    assert relative(form.scale, data["scale"]) < 1e-5
    assert relative(result.weight, data["Q"]) < 1e-5
    assert relative(result.compensated, data["W_comp"]) < 1e-5
    assert result.diagnostics["loss"] == pytest.approx(float(data["obs_loss"]), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_row_scales_match_the_float64_reference(case):
    data = Golden(case)
    problem = data.problem()
    check_row_scales(data, baseline(data.settings).quantize(problem), problem)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj"])
def test_released_step_skips_no_layer(case, name):
    data = Golden(case)
    problem = data.problem()
    object.__setattr__(problem, "names", (name,))
    method = baseline(data.settings)
    correction = ReleasedScale(t=data.settings["threshold"], lam=data.settings["lambda"]).bind(method)
    result = correction.correct(problem, method.quantize(problem))
    assert problem.weight.shape[1] - result.diagnostics["null_rank"] == int(data["q2n_k"])
    assert torch.allclose(result.diagnostics["alpha"], data["q2n_alpha"].double(), atol=2e-5, rtol=0)
    assert relative(result.weight, data["q2n_Q"]) < 2e-5
