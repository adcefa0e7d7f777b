"""Models with random weights and a byte-level vocabulary, small enough to quantize in seconds."""

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
"""Context length in tokens."""


def random_model(
    sizes: Mapping[str, Any], std: float, seed: int, dtype: torch.dtype, provenance: Mapping[str, str]
) -> LoadedModel:
    """Build the model of :func:`random_outline`, with weights drawn in float32 and rounded to ``dtype``.

    Args:
        sizes: sizes under their names in a ``config.json``.
        std: standard deviation of weights and biases.
        seed: of the random numbers.
        dtype: dtype of the weights.
        provenance: facts about the weights for the record, ``name`` among them.
    """
    outline = random_outline(provenance["name"], sizes)
    with torch.random.fork_rng(devices=[]):  # the library draws weights that are then overwritten
        model = cast(Any, AutoModelForCausalLM).from_config(
            outline.config, attn_implementation=attention.NAME
        )
    _fill(model, std, seed)
    return ready(model.to(dtype), outline.tokenizer, provenance)


def random_outline(name: str, sizes: Mapping[str, Any]) -> Outline:
    """Build a model without weights; ``sizes`` are those of a ``config.json``, ``model_type`` included."""
    tokenizer = byte_tokenizer()
    special = {
        f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("bos", "eos", "pad")
    }
    config = cast(Any, AutoConfig).for_model(**sizes, max_position_embeddings=CONTEXT, **special)
    return Outline(name, config, tokenizer)


def byte_tokenizer(add_bos: bool = True) -> PreTrainedTokenizerFast:
    """Build a tokenizer of 259 tokens: 256 bytes and ``<s>``, ``</s>``, ``<pad>``.

    Args:
        add_bos: begin every text with ``<s>``.
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
    """Draw normal weights and biases; norm weights are around 1, so that a fusion without them is noticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + std * noise if name.endswith("norm.weight") else std * noise)
