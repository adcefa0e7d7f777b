"""A rotated model computes what it computed before, whatever its shape; the matrices are what they claim."""

from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_models import SHAPES, TOKENS, difference, logits, tiny

from q2n.baselines.quarot import QuaRot
from q2n.exceptions import UnsupportedError
from q2n.models.adapter import adapt
from q2n.quantization.transforms.hadamard import hadamard_matrix, hadamard_transform
from q2n.quantization.transforms.hadamard_orders import TABULATED, hadamard_order, is_known, require_hadamard
from q2n.quantization.transforms.online import OnlineHadamard, OnlineLinear
from q2n.quantization.transforms.rotation import random_rotation, rotate_model

CONSTRUCTED = (44, 68, 72, 76, 200, 924)


def dense(width):
    """``H`` of ``x -> x H^T / sqrt(n)``, written down."""
    order = hadamard_order(width)
    matrix = hadamard_matrix(order).double() if order > 1 else torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
    return matrix


@pytest.mark.parametrize("order", [*TABULATED, *CONSTRUCTED])
def test_matrices_are_hadamard_matrices(order):
    matrix = hadamard_matrix(order).long()
    assert is_known(order)
    assert torch.equal(matrix.abs(), torch.ones_like(matrix))
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.long))


@pytest.mark.parametrize("order", [9, 92, 116, 35])
def test_orders_that_are_not_made_here_are_not_claimed(order):
    assert not is_known(order)
    assert hadamard_order(order) is None
    with pytest.raises(ValueError, match=str(order)):
        hadamard_matrix(order)


@pytest.mark.parametrize("width", [1, 2, 16, 128, 256, 8192, 12, 96, 104, 576, 608, 1536, 2560])
def test_fast_transform_is_the_dense_product(width):
    rows = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(width)).double()
    expected = rows @ dense(width).T / width**0.5
    assert difference(hadamard_transform(rows), expected) < 1e-12
    assert difference(hadamard_transform(hadamard_transform(rows), inverse=True), rows) < 1e-12


@pytest.mark.parametrize(("heads", "size"), [(4, 16), (12, 8), (20, 4), (1, 8)])
def test_transform_over_heads_is_a_kronecker_product(heads, size):
    rows = torch.randn(5, heads * size, generator=torch.Generator().manual_seed(heads)).double()
    matrix = torch.kron(dense(heads), torch.eye(size, dtype=torch.float64)) / heads**0.5
    assert difference(OnlineHadamard(heads).exact(rows), rows @ matrix.T) < 1e-12


@pytest.mark.parametrize("width", [64, 76, 92])
def test_rotations_are_orthogonal_and_follow_the_seed(width):
    kind = "orthogonal" if width == 92 else "hadamard"
    identity = torch.eye(width, dtype=torch.float64)
    matrix = random_rotation(width, kind, 3)(identity)
    assert difference(matrix @ matrix.T, identity) < 1e-12
    assert torch.equal(matrix, random_rotation(width, kind, 3)(identity))
    assert not torch.equal(matrix, random_rotation(width, kind, 4)(identity))


@pytest.mark.parametrize("heads", ["auto", "per_head"])
@pytest.mark.parametrize("kind", ["hadamard", "orthogonal"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_stay_what_they_were(name, kind, heads):
    # The norms of transformers and the rotary embedding work in float32, whatever the model's dtype.
    adapter = tiny(name, torch.float64)
    expected = logits(adapter)
    method = QuaRot(bits=4, rotation=kind, head_rotation=heads)
    method.check(adapter)
    method.rewrite(adapter)
    assert difference(logits(adapter), expected) < 2e-6
    assert difference(adapter.model(TOKENS).logits, expected) < 2e-6


@pytest.mark.parametrize("name", ["llama_tied_own_heads", "qwen3_wide_heads", "nine_heads"])
def test_logits_in_float32(name):
    adapter = tiny(name)
    expected = logits(adapter)
    QuaRot(bits=4).rewrite(adapter)
    assert difference(logits(adapter), expected) < 2e-5


def test_biases_of_every_linear_layer():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.3)
    adapter = adapt(model)
    expected = logits(adapter)
    QuaRot(bits=4).rewrite(adapter)
    assert difference(logits(adapter), expected) < 2e-6


@pytest.mark.parametrize("name", ["qwen2_tied_biases", "qwen3_wide_heads", "nine_heads"])
def test_weights_rotate_back(name):
    """Each weight against its formula with dense matrices, read backwards."""
    original, rotated = tiny(name, torch.float64), tiny(name, torch.float64)
    residual = random_rotation(original.hidden_size, "hadamard", 5)
    across = hadamard_order(original.num_heads) is not None
    rotate_model(rotated, residual, across_heads=across)
    q = residual(torch.eye(original.hidden_size, dtype=torch.float64))
    size = original.head_dim
    within = dense(size) / size**0.5
    heads = dense(original.num_heads) / original.num_heads**0.5 if across else torch.eye(original.num_heads)
    o_input = torch.kron(heads.double(), within)
    value = torch.kron(torch.eye(original.num_kv_heads, dtype=torch.float64), within)
    inner = dense(original.intermediate_size) / original.intermediate_size**0.5

    assert difference(rotated.embeddings.weight @ q.T, original.embeddings.weight) < 1e-12
    gain = original.final_norm.weight
    assert difference(rotated.lm_head.weight @ q.T / gain, original.lm_head.weight) < 1e-12
    assert torch.equal(rotated.final_norm.weight, torch.ones_like(gain))
    for old, new in zip(original.blocks, rotated.blocks, strict=True):
        for group in (old.groups[0], old.groups[2]):
            gain = old.norm_before(group).weight
            assert torch.equal(new.norm_before(group).weight, torch.ones_like(gain))
            for linear in group.linears:
                weight = new.linear(linear).weight @ q.T / gain
                if linear.endswith("v_proj"):
                    weight = value.T @ weight
                assert difference(weight, old.linear(linear).weight) < 1e-12
        for linear, inputs in (("self_attn.o_proj", o_input), ("mlp.down_proj", inner)):
            weight = q @ new.linear(linear).weight @ inputs
            assert difference(weight, old.linear(linear).weight) < 1e-12


def test_a_tied_head_becomes_its_own():
    adapter = tiny("llama_tied_own_heads")
    assert adapter.tied
    QuaRot(bits=4).rewrite(adapter)
    assert not adapter.tied
    assert not adapter.model.config.tie_word_embeddings
    assert not torch.equal(adapter.lm_head.weight, adapter.embeddings.weight)


def test_centred_embeddings_are_a_choice_that_changes_the_model():
    rotated, centred = (
        tiny("llama_tied_own_heads", torch.float64),
        tiny("llama_tied_own_heads", torch.float64),
    )
    before = logits(centred)
    # The head keeps the embedding as it was: only what is looked up is centred, as in the official code.
    table = centred.embeddings.weight
    centred.embed = lambda ids: table[ids] - table[ids].mean(dim=-1, keepdim=True)
    expected = logits(centred)
    QuaRot(bits=4, center_embeddings=True).rewrite(rotated)
    assert difference(logits(rotated), expected) < 2e-6
    assert difference(expected, before) > 1e-3


@pytest.mark.parametrize(
    ("name", "choice", "expected"),
    [
        ("nine_heads", "auto", False),
        ("twelve_heads", "auto", True),
        ("twelve_heads", "full", True),
        ("twelve_heads", "per_head", False),
    ],
)
def test_heads_are_rotated_among_each_other_where_a_matrix_exists(name, choice, expected):
    adapter = tiny(name)
    QuaRot(bits=4, head_rotation=choice).rewrite(adapter)
    for block in adapter.blocks:
        output = block.module.get_submodule("self_attn.o_proj")
        assert isinstance(output, OnlineLinear) == expected
        assert isinstance(block.module.get_submodule("mlp.down_proj"), OnlineLinear)


def fitting(message):
    """The two widths an error names."""
    return [int(word) for word in message.split("would fit: ")[1].split(";")[0].split(" and ")]


@pytest.mark.parametrize(
    ("fields", "choices", "advice"),
    [
        ({"hidden_size": 92}, {}, "hidden size is 92.*baseline.rotation=orthogonal fits any"),
        ({"intermediate_size": 92}, {}, "MLP width is 92"),
        ({"head_dim": 14}, {}, "head size is 14"),
        (
            {"hidden_size": 96, "num_heads": 6},
            {"head_rotation": "full"},
            "heads is 6.*head_rotation=per_head fits any",
        ),
        (
            {},
            {"a_group_size": 48},
            "a_group_size=48: does not divide the 64 inputs of .*; use a divisor of 64",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused_with_advice(fields, choices, advice):
    adapter = tiny("llama", **fields)
    with pytest.raises(UnsupportedError, match=advice) as caught:
        QuaRot(bits=4, **choices).check(adapter)
    if "would fit" in str(caught.value):
        assert all(hadamard_order(width) for width in fitting(str(caught.value)))


def test_any_hidden_size_fits_an_orthogonal_rotation():
    adapter = tiny("llama", torch.float64, hidden_size=92)
    expected = logits(adapter)
    method = QuaRot(bits=4, rotation="orthogonal")
    method.check(adapter)
    method.rewrite(adapter)
    assert difference(logits(adapter), expected) < 2e-6


@pytest.mark.parametrize(
    "widths",
    [
        (4096, 128, 14336, 32),  # Llama-3-8B
        (8192, 128, 28672, 64),  # Llama-3-70B
        (3584, 128, 18944, 28),  # Qwen2.5-7B
        (5120, 128, 27648, 40),  # Qwen2.5-32B
        (8192, 128, 29568, 64),  # Qwen2.5-72B
        (4096, 128, 12288, 32),  # Qwen3-8B
        (5120, 128, 25600, 64),  # Qwen3-32B
        (576, 64, 1536, 9),  # SmolLM2-135M
    ],
)
def test_known_models_fit(widths):
    hidden, head, inner, heads = widths
    for width in (hidden, head, inner):
        require_hadamard(width, "width")
    method = QuaRot(bits=4)
    assert method.rotates_across_heads(heads) == (heads != 9)
    attributes = {"hidden_size": hidden, "head_dim": head, "intermediate_size": inner, "num_heads": heads}
    method.check(SimpleNamespace(**attributes, blocks=[]))
