"""Fused norms and networks against Hugging Face's own, and where they are those."""

import copy

import pytest
import torch

from q2n.models import fused
from q2n.models.loading import ready
from q2n.models.spec import TinyModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def model(family, dtype):
    loaded = TinyModel(name="small", family=family, hidden_size=64, intermediate_size=96).load(dtype)
    plain = type(loaded.model)(loaded.model.config)
    plain.load_state_dict(loaded.model.state_dict())
    return loaded.model, plain.to(dtype).eval().requires_grad_(False)


def batch(dtype, width, scale=1.0):
    return (scale * torch.randn(3, 50, width, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_fused_and_keeps_its_parameters(family):
    ours, plain = model(family, torch.bfloat16)
    kinds = {type(module) for module in ours.modules()}
    assert {fused.RMSNorm, fused.GatedMLP} <= kinds
    assert not any(kind.__name__ in fused.NORMS | fused.NETWORKS for kind in kinds)
    assert list(ours.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_norms_and_networks_give_what_hugging_faces_give(family, dtype, scale):
    ours, plain = (found.model.layers[0] for found in model(family, dtype))
    hidden = batch(dtype, 64, scale)
    assert torch.equal(ours.mlp(hidden), plain.mlp(hidden))
    found, expected = ours.input_layernorm(hidden), plain.input_layernorm(hidden)
    if dtype == torch.float32:
        assert torch.equal(found, expected)
    else:  # squares are added up in another order: at most one step of a few numbers
        assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=0)
        assert float((found != expected).float().mean()) < 1e-3


@torch.no_grad()
def test_the_result_does_not_depend_on_threads_or_on_the_batch():
    ours, _ = model("llama", torch.bfloat16)
    hidden, layer, threads = batch(torch.bfloat16, 64), ours.model.layers[0], torch.get_num_threads()
    found = [layer.input_layernorm(hidden), layer.mlp(layer.input_layernorm(hidden))]
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        again = [layer.input_layernorm(hidden), layer.mlp(layer.input_layernorm(hidden))]
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, found, again))
    assert torch.equal(layer.input_layernorm(hidden[1:2]), found[0][1:2])


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan")])
@torch.no_grad()
def test_what_is_not_finite_stays_so(special):
    ours, plain = (found.model.layers[0] for found in model("llama", torch.bfloat16))
    hidden = batch(torch.bfloat16, 64)
    hidden[0, 3, 5] = special
    for part in ("input_layernorm", "mlp"):
        found, expected = (getattr(layer, part)(hidden) for layer in (ours, plain))
        assert torch.equal(found.isfinite(), expected.isfinite())
    gates = torch.full((2, 64), special, dtype=torch.bfloat16)
    product = ours.mlp._product(gates.clone(), torch.ones(2, 64, dtype=torch.bfloat16))
    torch.testing.assert_close(product, torch.nn.functional.silu(gates), rtol=0, atol=0, equal_nan=True)


def test_gradients_and_other_strides_take_torchs_operations():
    ours, plain = (found.model.layers[0] for found in model("llama", torch.bfloat16))
    hidden = batch(torch.bfloat16, 64)
    for part in ("input_layernorm", "mlp"):
        one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
        getattr(ours, part)(one).float().sum().backward()
        getattr(plain, part)(other).float().sum().backward()
        assert torch.equal(one.grad, other.grad)
    with torch.no_grad():
        turned = hidden.transpose(0, 1)
        assert torch.equal(ours.input_layernorm(turned), plain.input_layernorm(turned))


@torch.no_grad()
def test_another_activation_takes_torchs_operations():
    ours, _ = model("llama", torch.bfloat16)
    network, hidden = ours.model.layers[0].mlp, batch(torch.bfloat16, 64)
    network.act_fn = torch.nn.GELU()
    product = torch.nn.functional.gelu(network.gate_proj(hidden)) * network.up_proj(hidden)
    assert torch.equal(network(hidden), network.down_proj(product))


def test_another_kind_of_module_is_left_alone():
    ours, _ = model("llama", torch.float32)
    norm = torch.nn.LayerNorm(64)
    ours.model.norm = norm
    loaded = ready(ours, None, {})
    assert loaded.model.model.norm is norm
    assert copy.deepcopy(loaded.model).state_dict().keys() == ours.state_dict().keys()
