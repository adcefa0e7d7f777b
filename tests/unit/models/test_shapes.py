"""What a configuration says of a model's sizes is what the model then has."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_models import SHAPES

from q2n.exceptions import ModelError
from q2n.models.shapes import ModelShapes, Skeleton
from q2n.models.spec import BundledModel, HubModel, TinyModel


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_of_every_family_are_those_of_the_loaded_model(name, tmp_path):
    spec = TinyModel(name=name, **SHAPES[name])
    loaded = spec.load(torch.float32)
    shapes, skeleton, adapter = spec.shapes(), Skeleton(spec.shapes()), loaded.adapter
    assert shapes.parameters == sum(weight.numel() for weight in loaded.model.parameters())
    assert shapes.block_weights == sum(weight.numel() for weight in adapter.blocks[0].module.parameters())
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "tied",
        "family",
    ):
        assert getattr(skeleton, field) == getattr(adapter, field)
    assert [block.index for block in skeleton.blocks] == [block.index for block in adapter.blocks]
    for small, block in zip(skeleton.blocks, adapter.blocks, strict=True):
        assert small.groups == block.groups
        for linear in (name for group in block.groups for name in group.linears):
            assert small.linear(linear).weight.shape == tuple(block.linear(linear).weight.shape)
    loaded.model.config.save_pretrained(tmp_path)
    assert HubModel(path=str(tmp_path)).shapes() == shapes


def test_sizes_of_the_bundled_model():
    assert BundledModel().shapes().parameters == 134_515_008


def test_sizes_of_known_models_from_their_configurations():
    """Llama-3-8B and Qwen2.5-7B, whose published parameter counts these are."""
    llama = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    llama |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert ModelShapes.from_config(llama, "m").parameters == 8_030_261_248
    qwen = {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
    qwen |= {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    assert ModelShapes.from_config(qwen, "m").parameters == 7_615_616_512


@pytest.mark.parametrize("text", ["{}", "{", '{"model_type": "llama"}'])
def test_a_configuration_without_sizes_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        HubModel(path=str(tmp_path)).shapes()


def test_a_model_of_the_hub_that_is_not_here_is_not_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="plan=true"):
        HubModel(path="nobody/nothing").shapes()
