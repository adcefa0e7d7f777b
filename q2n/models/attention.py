"""Causal attention for whole sequences on a CPU, faster than torch's own where that has no AMX to use.

Speed only, see :mod:`q2n.linalg`.

Registered with transformers under :data:`NAME`, so that the model's own attention module still does
everything around it. Whatever this does not cover (a mask, cached keys, a device that is not a CPU) goes to
transformers' ``sdpa``, and so do bfloat16 inputs where the processor has AMX, since torch's kernel is then
the faster one. A result does not depend on the batch it was in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from q2n.linalg.bf16_product import has_amx

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "q2n_causal"

ROWS = 128
"""Queries at a time: these need no keys after the last of them."""

SCORES = 1 << 21
"""Scores that exist at the same time (they should stay in the processor's cache)."""


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend, with the arguments transformers passes: ``query`` ``(B, H, T, D)``, ``key`` and ``value``
    ``(B, G, T, D)`` with ``G`` a divisor of ``H``; the output is ``(B, T, H, D)``."""
    whole = attention_mask is None and query.shape[2] == key.shape[2] > 1
    ours = whole and query.device.type == "cpu" and dropout == 0.0 and not torch.is_grad_enabled()
    ours = ours and not (query.dtype == torch.bfloat16 and has_amx())
    if not ours or others.get("is_causal") is False or not getattr(module, "is_causal", True):
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output, None
    return causal_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """``softmax(scaling Q K^T, causal) V``, all of it in float32, rounded to the inputs' dtype at the end.

    Sequences are computed one by one. Shapes as in :func:`attention_forward`.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    rows = max(1, min(ROWS, SCORES // (heads * length)))
    output = query.new_empty(batch, length, heads, width)
    later = torch.full((rows, rows), float("-inf")).triu_(1)
    for q, k, v, out in zip(query, key, value, output, strict=True):
        queries = q.reshape(groups, heads // groups, length, width).float() * scaling
        keys, values = k.float().transpose(1, 2), v.float()
        for first in range(0, length, rows):
            last = min(first + rows, length)
            count = last - first
            scores = torch.bmm(queries[:, :, first:last].reshape(groups, -1, width), keys[:, :, :last])
            scores.view(groups, -1, count, last)[..., first:].add_(later[:count, :count])
            mixed = torch.bmm(torch.softmax(scores, dim=-1), values[:, :last])
            out[first:last] = mixed.view(heads, count, width).transpose(0, 1)
    return output


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
