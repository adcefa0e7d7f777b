"""Models of random weights, small enough to quantize in seconds, with a vocabulary of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from q2n.models import attention
from q2n.models.loading import LoadedModel, ready
from q2n.models.outline import Outline

if TYPE_CHECKING:
    from torch import nn

    from q2n.models.spec import TinyModel

CONTEXT = 4096


def random_model(spec: TinyModel, dtype: torch.dtype) -> LoadedModel:
    """The model ``spec`` describes: weights drawn in float32 from its own seed, then rounded."""
    outline = random_outline(spec)
    with torch.random.fork_rng(devices=[]):  # the library draws weights that are then overwritten
        model = cast(Any, AutoModelForCausalLM).from_config(
            outline.config, attn_implementation=attention.NAME
        )
    _fill(model, spec.std, spec.weight_seed)
    return ready(model.to(dtype), outline.tokenizer, {"name": spec.name, **spec.identity()})


def random_outline(spec: TinyModel) -> Outline:
    """The same without weights."""
    tokenizer = byte_tokenizer()
    config = cast(Any, CONFIG_MAPPING)[spec.family](
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_blocks,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=spec.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Outline(spec.name, config, tokenizer)


def byte_tokenizer(add_bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of 259 tokens: 256 bytes and ``<s>``, ``</s>``, ``<pad>``.

    Args:
        add_bos: texts start with ``<s>``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    if add_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return cast(Any, PreTrainedTokenizerFast)(  # type: ignore[no-any-return]
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


@torch.no_grad()
def _fill(model: nn.Module, std: float, seed: int) -> None:
    """Normal weights and biases, norm weights around 1 (so that a fusion that forgets them is noticed)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + std * noise if name.endswith("norm.weight") else std * noise)
