"""Keys and values as a low-bit cache would hold them (QuaRot, arXiv 2404.00456, section 4).

A token's keys and values are rounded by themselves, head by head, so rounding them whenever attention reads
them gives what rounding them once, as they enter a cache, would give. Keys are rotated after the rotary
embedding, and queries with them, which leaves their products unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from q2n.models.attention import attention_forward
from q2n.quantization.transforms.online import OnlineHadamard

if TYPE_CHECKING:
    from torch import nn

    from q2n.models.adapter import ModelAdapter
    from q2n.quantization.formats.activation import ActivationQuantizer

IMPLEMENTATION = "q2n_quantized_kv"
"""Name under which the attention is registered with transformers."""

ATTRIBUTE = "q2n_kv_cache"


@dataclass(frozen=True)
class QuantizedCache:
    """Quantizers of keys and values ``(B, heads, T, head_dim)``; None leaves them as they are."""

    keys: ActivationQuantizer | None
    values: ActivationQuantizer | None


def quantize_cache(adapter: ModelAdapter, cache: QuantizedCache) -> None:
    """From now on every attention layer of the model reads quantized keys and values."""
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    for block in adapter.blocks:
        setattr(block.attention, ATTRIBUTE, cache)
    cast(Any, adapter.model).set_attn_implementation(IMPLEMENTATION)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor, None]:
    cache: QuantizedCache = getattr(module, ATTRIBUTE)
    if cache.keys is not None:
        rotate = OnlineHadamard(key.shape[-1])
        query, key = rotate(query), cache.keys(rotate(key))
    if cache.values is not None:
        value = cache.values(value)
    return attention_forward(module, query, key, value, *arguments, **options)
