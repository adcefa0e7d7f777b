"""The linear layers of a block by what they read; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers of a block that read one and the same input.

    ``name`` labels the group (``self_attn.qkv``); ``linears`` are names inside the block.
    """

    name: str
    linears: tuple[str, ...]


QKV = LinearGroup("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
O_PROJ = LinearGroup("self_attn.o", ("self_attn.o_proj",))
GATE_UP = LinearGroup("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj"))
DOWN = LinearGroup("mlp.down", ("mlp.down_proj",))

GROUPS = (QKV, O_PROJ, GATE_UP, DOWN)
"""In the order in which a forward pass reaches them."""
