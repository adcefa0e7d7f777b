"""AWQ against the official functions, stage by stage on one Llama block.

Each stage starts from the stored result of the one before: a clipped group's zero point is an exact tie that
the last bit of a weight decides.
"""

import pytest
import torch
from golden.golden_data import Golden, relative
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from q2n.baselines.awq import AWQ
from q2n.corrections.null_space import NullSpaceScale
from q2n.models.block import DecoderBlock
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV
from q2n.pipeline.calibration import Accumulators
from q2n.quantization.formats.awq import AwqSpec, clamp_groups
from q2n.quantization.transforms.awq_scales import fold_scales, mean_magnitude, search_scales
from q2n.types import LinearProblem, Statistic

FEATURES = {QKV: "feat__qkv", O_PROJ: "feat__o", GATE_UP: "feat__mlp_in", DOWN: "feat__down"}
LINEARS = [(group, name) for group in FEATURES for name in group.linears]
DATA = Golden("awq_block")


def leaf(name):
    return name.rpartition(".")[2]


def key(group):
    return "+".join(leaf(name) for name in group.linears)


def grid():
    return AwqSpec(DATA.settings["bits"], DATA.settings["group"])


@pytest.fixture
def block():
    settings = DATA.settings
    config = LlamaConfig(
        hidden_size=settings["hid"],
        intermediate_size=settings["inter"],
        num_attention_heads=settings["heads"],
        num_key_value_heads=settings["kv"],
    )
    config._attn_implementation = "sdpa"
    module = LlamaDecoderLayer(config, 0).requires_grad_(False)
    module.input_layernorm.weight.copy_(DATA["input_layernorm"])
    module.post_attention_layernorm.weight.copy_(DATA["post_attention_layernorm"])
    for _, name in LINEARS:
        module.get_submodule(name).weight.copy_(DATA[f"W__{leaf(name)}"])
    result = DecoderBlock(0, module)
    tables = (DATA["cos"], DATA["sin"])
    result.set_kwargs(settings["T"], {"position_embeddings": tables, "attention_mask": None})
    return result


def found_scales(block):
    inputs = {group: [DATA[feature]] for group, feature in FEATURES.items()}
    return search_scales(block, inputs, grid(), DATA.settings["n_grid"])


@pytest.mark.parametrize("group", FEATURES)
def test_mean_magnitudes(group):
    found = mean_magnitude([DATA[FEATURES[group]]])
    assert relative(found, DATA[f"act_absmean__{key(group)}"]) < 1e-5


def test_searched_scales(block):
    expected = {item["key"]: item["best_ratio"] for item in DATA.settings["groups"]}
    found = found_scales(block)
    assert {key(item.group): item.ratio for item in found} == expected
    for item in found:
        losses = torch.tensor(item.losses, dtype=torch.float64)
        history = DATA[f"scale_loss_history__{key(item.group)}"]
        assert ((losses - history).abs() <= 1e-3 * history).all()
        assert relative(item.scale, DATA[f"scale__{key(item.group)}"]) < 1e-5


def test_folded_scales(block):
    fold_scales(block, found_scales(block))
    for _, name in LINEARS:
        assert relative(block.linear(name).weight, DATA[f"W_scaled__{leaf(name)}"]) < 1e-5
    for norm in ("input_layernorm", "post_attention_layernorm"):
        assert relative(getattr(block.module, norm).weight, DATA[f"{norm}_scaled"]) < 1e-5


def problem(group, name, *statistics):
    """The layer in the scaled basis, as the pipeline meets it after the scales are folded."""
    inputs = DATA[FEATURES[group]] / DATA[f"scale__{key(group)}"]
    accumulators = Accumulators({Statistic.GRAM, Statistic.POSITION_MEAN, *statistics})
    accumulators.update(inputs)
    weight = DATA[f"W_scaled__{leaf(name)}"]
    return LinearProblem((name,), (len(weight),), weight, accumulators.result())


@pytest.mark.parametrize(("group", "name"), LINEARS)
def test_clipped_ranges(group, name):
    method = AWQ(
        bits=DATA.settings["bits"],
        group_size=DATA.settings["group"],
        clip_tokens=DATA.settings["n_sample_token"],
    )
    layer = problem(group, name, Statistic.TOKEN_SAMPLE)
    clipped = method.clipped(layer, grid())
    if f"clip_max__{leaf(name)}" not in DATA:
        assert torch.equal(clipped, layer.weight)
        return
    limits = DATA[f"clip_max__{leaf(name)}"]
    size = DATA.settings["group"]
    found = torch.stack([part.abs().amax(dim=1) for part in clipped.split(size, dim=1)], dim=1)
    step = torch.stack([part.abs().amax(dim=1) for part in layer.weight.split(size, dim=1)], dim=1) / 20
    assert ((found - limits).abs() <= 1e-5 * limits).float().mean() >= 0.99
    assert ((found - limits).abs() <= 1.001 * step).all()


@pytest.mark.parametrize(("group", "name"), LINEARS)
def test_codes_scales_and_weights(group, name):
    weight = DATA[f"W_scaled__{leaf(name)}"]
    if f"clip_max__{leaf(name)}" in DATA:
        weight = clamp_groups(weight, DATA[f"clip_max__{leaf(name)}"], DATA.settings["group"])
    form = grid().quantize(weight)
    assert torch.equal(form.codes, DATA[f"codes__{leaf(name)}"])
    assert torch.equal(form.zero, DATA[f"qzero__{leaf(name)}"])
    assert relative(form.scale, DATA[f"qscale__{leaf(name)}"]) < 1e-5
    assert relative(form.dequantize(), DATA[f"Q__{leaf(name)}"]) < 1e-5


@pytest.mark.parametrize(("group", "name"), LINEARS)
@pytest.mark.parametrize("statistic", ["gram", "position_mean"])
def test_row_scales_compare_with_the_scaled_unclipped_weight(group, name, statistic):
    layer = problem(group, name, Statistic.TOKEN_SAMPLE)
    method = AWQ(bits=DATA.settings["bits"], group_size=DATA.settings["group"])
    base = method.quantize(layer)
    assert base.original is layer.weight
    settings = DATA.settings
    correction = NullSpaceScale(t=settings["threshold"], lam=settings["lambda"], statistic=statistic, skip=[])
    result = correction.correct(layer, base).diagnostics
    expected = f"__{leaf(name)}"
    rank = int(DATA[f"aligned_k_{statistic}{expected}"])
    assert layer.weight.shape[1] - result["null_rank"] == rank
    assert torch.allclose(result["alpha"], DATA[f"aligned_alpha_{statistic}{expected}"], atol=2e-5, rtol=0)


def test_whole_method_on_the_block(block):
    """End to end only the output error is comparable: it is that of the official weights."""
    fold_scales(block, found_scales(block))
    for group, name in LINEARS:
        layer = problem(group, name, Statistic.TOKEN_SAMPLE)
        method = AWQ(bits=DATA.settings["bits"], group_size=DATA.settings["group"])
        gram, official = layer.stats.gram, DATA[f"Q__{leaf(name)}"]

        def error(weight, gram=gram, layer=layer):
            change = weight - layer.weight
            return float(((change @ gram) * change).sum())

        assert error(method.quantize(layer).weight) == pytest.approx(error(official), rel=1e-2)
