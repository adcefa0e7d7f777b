"""Models of random weights, small enough to quantize in seconds, with a vocabulary of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from q2n.models import attention
from q2n.models.loaded import LoadedModel, Outline
from q2n.models.loading import ready

if TYPE_CHECKING:
    from torch import nn

CONTEXT = 4096


def random_model(
    sizes: Mapping[str, Any], std: float, seed: int, dtype: torch.dtype, provenance: Mapping[str, str]
) -> LoadedModel:
    """The model of :func:`random_outline`: weights drawn in float32 from ``seed``, then rounded."""
    outline = random_outline(provenance["name"], sizes)
    with torch.random.fork_rng(devices=[]):  # the library draws weights that are then overwritten
        model = cast(Any, AutoModelForCausalLM).from_config(
            outline.config, attn_implementation=attention.NAME
        )
    _fill(model, std, seed)
    return ready(model.to(dtype), outline.tokenizer, provenance)


def random_outline(name: str, sizes: Mapping[str, Any]) -> Outline:
    """A model without weights; ``sizes`` are the sizes of a ``config.json``, ``model_type`` among them."""
    tokenizer = byte_tokenizer()
    special = {
        f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")
    }
    config = cast(Any, AutoConfig).for_model(**sizes, max_position_embeddings=CONTEXT, **special)
    return Outline(name, config, tokenizer)


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
