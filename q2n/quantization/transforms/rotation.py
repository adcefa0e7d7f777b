"""Rotation of a whole model against outliers of its activations (QuaRot, arXiv 2404.00456, section 4).

The residual stream ``h`` becomes ``h Q``: norm gains go into the layers that follow (a norm without gain
commutes with ``Q``), layers that read the stream absorb ``Q`` and layers that write to it ``Q^T``. Inside a
block, values are rotated head by head, and heads are rotated among each other online; the MLP's inner
activations are rotated online. Logits do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from q2n.quantization.transforms.hadamard import hadamard_transform
from q2n.quantization.transforms.kronecker import random_orthogonal
from q2n.quantization.transforms.online import OnlineHadamard, OnlineLinear

if TYPE_CHECKING:
    from q2n.models.adapter import DecoderBlock, ModelAdapter

ROWS_AT_ONCE = 8192
"""Rows of an embedding per block in float64."""

RowMap = Callable[[Tensor], Tensor]
"""Linear map of rows ``(m, C)`` float64."""


@dataclass(frozen=True)
class RandomHadamard:
    """Map of rows ``x -> x diag(signs) H^T / sqrt(n)``; ``signs`` ``(n,)`` float64."""

    signs: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Rotate rows ``(m, n)`` float64."""
        return hadamard_transform(rows * self.signs.to(rows.device))


@dataclass(frozen=True)
class DenseOrthogonal:
    """Map of rows ``x -> x matrix``; ``matrix`` ``(n, n)`` float64."""

    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Rotate rows ``(m, n)`` float64."""
        return rows @ self.matrix.to(rows.device)


def random_rotation(width: int, kind: str, seed: int) -> RowMap:
    """Draw an orthogonal map of rows of ``width``.

    ``kind`` is ``"hadamard"``, a Hadamard transform with random signs, or ``"orthogonal"``, uniform over all
    rotations and reflections.

    Raises:
        UnsupportedError: no Hadamard matrix of this width is known.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "hadamard":
        return RandomHadamard(torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1)
    return DenseOrthogonal(random_orthogonal(width, generator))


def rotate_model(
    adapter: ModelAdapter, residual: RowMap, *, across_heads: bool, center_embeddings: bool = False
) -> None:
    """Rotate the model in place; all arithmetic in float64, rounded once to the model's dtype.

    Args:
        adapter: model whose weights are rewritten.
        residual: rotation ``h -> h Q`` of the residual stream.
        across_heads: also rotate the attention heads among each other, online.
        center_embeddings: subtract each token embedding's mean first, as the official code does for every
            model; with RMS norms this changes the function of the model.
    """
    untie(adapter)

    def embed(rows: Tensor) -> Tensor:
        return residual(rows - rows.mean(dim=1, keepdim=True) if center_embeddings else rows)

    _map_rows(adapter.embeddings.weight, embed)
    heads = adapter.num_heads if across_heads else None

    def rotate(block: DecoderBlock) -> None:
        _rotate_attention(block, residual, heads, adapter.head_dim)
        _rotate_mlp(block, residual)

    for block in adapter.blocks:
        block.rewrite(rotate)
        if heads is not None:
            _go_online(block, "self_attn.o_proj", OnlineHadamard(heads))
        _go_online(block, "mlp.down_proj", OnlineHadamard(adapter.intermediate_size))
    _rewrite(adapter.lm_head, _reading(residual, adapter.final_norm))


def untie(adapter: ModelAdapter) -> None:
    """Give the LM head its own weight if it shares the embedding's: only the head absorbs a norm gain."""
    if adapter.tied:
        adapter.lm_head.weight = nn.Parameter(adapter.embeddings.weight.detach().clone(), requires_grad=False)
        cast(Any, adapter.model).config.tie_word_embeddings = False


def _rotate_attention(block: DecoderBlock, residual: RowMap, heads: int | None, head_dim: int) -> None:
    """Rotate the attention of a block.

    ``heads`` is the number of heads to rotate among each other, or None if they are not.
    """

    def within_heads(rows: Tensor) -> Tensor:
        return hadamard_transform(rows.unflatten(-1, (-1, head_dim))).reshape(rows.shape)

    def head_outputs(rows: Tensor) -> Tensor:
        rows = within_heads(rows)
        return OnlineHadamard(heads).exact(rows) if heads is not None else rows

    reading = _reading(residual, block.module.get_submodule("input_layernorm"))
    _rewrite(block.linear("self_attn.q_proj"), reading)
    _rewrite(block.linear("self_attn.k_proj"), reading)
    _rewrite(block.linear("self_attn.v_proj"), reading, outputs=within_heads)
    _rewrite(block.linear("self_attn.o_proj"), head_outputs, outputs=residual)


def _rotate_mlp(block: DecoderBlock, residual: RowMap) -> None:
    reading = _reading(residual, block.module.get_submodule("post_attention_layernorm"))
    _rewrite(block.linear("mlp.gate_proj"), reading)
    _rewrite(block.linear("mlp.up_proj"), reading)
    _rewrite(block.linear("mlp.down_proj"), hadamard_transform, outputs=residual)


def _go_online(block: DecoderBlock, name: str, transform: OnlineHadamard) -> None:
    block.replace(name, OnlineLinear(block.linear(name), transform))


def _reading(residual: RowMap, norm: nn.Module) -> RowMap:
    """Return the map of the rows of a layer that reads the stream through ``norm``.

    The map takes over the norm's gain, which becomes one.
    """
    weight = cast(nn.Parameter, norm.weight)
    gain = weight.detach().clone().double()
    weight.data.fill_(1)
    return lambda rows: residual(rows * gain)


def _rewrite(linear: nn.Linear, inputs: RowMap, outputs: RowMap | None = None) -> None:
    """Apply the map ``inputs`` over the layer's inputs, and ``outputs`` over its outputs, bias included."""
    if outputs is None:
        _map_rows(linear.weight, inputs)
        return
    linear.weight.data.copy_(outputs(inputs(linear.weight.double()).T).T)
    if linear.bias is not None:
        linear.bias.data.copy_(outputs(linear.bias.double()[None])[0])


def _map_rows(weight: Tensor, mapping: RowMap) -> None:
    for rows in weight.data.split(ROWS_AT_ONCE):
        rows.copy_(mapping(rows.double()))
