"""Causal attention for whole sequences on a CPU, faster than torch's on processors without AMX.

Speed only, see :mod:`q2n.linalg`.

The function is registered with transformers under :data:`NAME`; everything around it stays in the model's own
attention module. Other cases (a mask, cached keys, another device) go to transformers' ``sdpa``, and so do
bfloat16 inputs where the processor has AMX, because torch's kernel is then faster. The result of a sequence
does not depend on the batch.
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
"""Name of this attention in transformers."""

ROWS = 128
"""Queries per product: they need no keys after the last query."""

SCORES = 1 << 21
"""Scores per product, 8 MiB in float32, so that they stay in the processor's cache."""


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
    """Attend, with the arguments that transformers passes.

    Args:
        module: the model's attention module.
        query: ``(B, H, T, D)``.
        key: ``(B, G, T, D)``, with ``G`` a divisor of ``H``.
        value: ``(B, G, T, D)``.
        attention_mask: not None goes to transformers' ``sdpa``.
        scaling: factor of the scores, or None for ``D ** -0.5``.
        dropout: above 0 goes to ``sdpa``.
        others: passed on to ``sdpa``.

    Returns:
        Output ``(B, T, H, D)``, and None in place of the attention weights.
    """
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
    """Compute ``softmax(scaling Q K^T, causal) V`` in float32, rounded to the inputs' dtype at the end.

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
