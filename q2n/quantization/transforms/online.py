"""Operations on activations that remain at run time: Hadamard transforms and rounding.

Keys and values are rounded as a low-bit cache would hold them (QuaRot, arXiv 2404.00456, section 4). Each
token is rounded on its own, head by head, so rounding whenever attention reads keys and values gives the same
result as rounding once, when they enter a cache. Keys are rotated after the rotary embedding, and queries
with them, which leaves their products unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from q2n.models.attention import attention_forward
from q2n.quantization.transforms.hadamard import hadamard_transform

if TYPE_CHECKING:
    from q2n.models.adapter import ModelAdapter
    from q2n.quantization.formats.activation import ActivationQuantizer

QUANTIZED_ATTENTION = "q2n_quantized_kv"
"""Name under which the attention is registered with transformers."""

CACHE_ATTRIBUTE = "q2n_kv_cache"


@dataclass(frozen=True)
class OnlineHadamard:
    """Hadamard transform over ``count`` equal runs of channels.

    With ``count`` the number of channels all channels are transformed, with the number of attention heads the
    heads. The arithmetic is float32, as the transform adds up many terms.
    """

    count: int

    def __call__(self, rows: Tensor) -> Tensor:
        """Transform ``rows`` ``(..., C)`` in float32; the result has the dtype of ``rows``."""
        return self.exact(rows.float()).to(rows.dtype)

    def exact(self, rows: Tensor) -> Tensor:
        """Transform ``rows`` ``(..., C)`` in their own dtype."""
        runs = rows.unflatten(-1, (self.count, -1)).transpose(-1, -2)
        return hadamard_transform(runs).transpose(-1, -2).reshape(rows.shape)


class OnlineLinear(nn.Module):
    """Linear layer that transforms and then quantizes its input.

    ``linear`` is the layer itself. ``input_quantizer`` is None during calibration and set when the model is
    finished.
    """

    def __init__(self, linear: nn.Linear, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.linear = linear
        self.transform = transform
        self.input_quantizer: ActivationQuantizer | None = None

    def prepare_input(self, hidden: Tensor) -> Tensor:
        """Return the input as calibration must see it: transformed, not yet rounded."""
        return hidden if self.transform is None else self.transform(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the layer's output from the transformed and, if a quantizer is set, rounded input."""
        hidden = self.prepare_input(hidden)
        if self.input_quantizer is not None:
            hidden = self.input_quantizer(hidden)
        return cast("Tensor", self.linear(hidden))


def quantize_inputs(adapter: ModelAdapter, quantizer: ActivationQuantizer) -> None:
    """Make every linear layer of every block round its input, in place."""
    for block in adapter.blocks:
        for name in (name for group in block.groups for name in group.linears):
            module = block.module.get_submodule(name)
            if not isinstance(module, OnlineLinear):
                module = OnlineLinear(block.linear(name))
                block.replace(name, module)
            module.input_quantizer = quantizer


@dataclass(frozen=True)
class QuantizedCache:
    """Quantizers of keys and values ``(B, heads, T, head_dim)``, or None if they are not rounded."""

    keys: ActivationQuantizer | None
    values: ActivationQuantizer | None


def quantize_cache(adapter: ModelAdapter, cache: QuantizedCache) -> None:
    """Make every attention layer of the model read quantized keys and values, in place."""
    AttentionInterface.register(QUANTIZED_ATTENTION, _attend_quantized)
    AttentionMaskInterface.register(QUANTIZED_ATTENTION, sdpa_mask)
    for block in adapter.blocks:
        setattr(block.attention, CACHE_ATTRIBUTE, cache)
    cast(Any, adapter.model).set_attn_implementation(QUANTIZED_ATTENTION)


def _attend_quantized(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor, None]:
    cache: QuantizedCache = getattr(module, CACHE_ATTRIBUTE)
    if cache.keys is not None:
        rotate = OnlineHadamard(key.shape[-1])
        query, key = rotate(query), cache.keys(rotate(key))
    if cache.values is not None:
        value = cache.values(value)
    return attention_forward(module, query, key, value, *arguments, **options)
