"""Migration of channel scales from activations into weights that leaves a block's function unchanged.

``x -> x / s`` is applied to the module that produces ``x`` (a norm's gain, the rows of a linear layer) and
undone in the columns of the layers that read it. The scale depends on the inputs of these layers, which are
collected before the block is quantized.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from q2n.models.block import DecoderBlock
    from q2n.models.shapes import LinearGroup


def migrate(previous: nn.Module, linears: Iterable[nn.Linear], scale: Tensor) -> None:
    """Divide the activations between ``previous`` (a norm or a linear layer) and ``linears`` by ``scale``.

    ``scale`` ``(C,)`` is positive, and float32 or wider, so that the product is, too, before it is rounded to
    the model's dtype.
    """
    inverse = 1 / scale
    for parameter in previous.parameters(recurse=False):  # a gain, or rows and bias
        shape = (-1, *[1] * (parameter.ndim - 1))
        parameter.data.copy_(parameter * inverse.view(shape))
    for linear in linears:
        linear.weight.data.copy_(linear.weight * scale)


def spread_sequences(batches: Sequence[Tensor], tokens: int | None) -> list[Tensor]:
    """Select evenly spaced sequences of micro-batches ``(B, T, D)``, at most ``tokens`` in all, at least one.

    The result has micro-batches as large as before; it is all sequences if ``tokens`` is None.
    """
    if tokens is None:
        return list(batches)
    total = sum(len(batch) for batch in batches)
    count = min(total, max(1, tokens // batches[0].shape[1]))
    chosen = {index * total // count for index in range(count)}
    kept: list[Tensor] = []
    first = 0
    for batch in batches:
        rows = [index - first for index in sorted(chosen) if first <= index < first + len(batch)]
        first += len(batch)
        if rows:
            kept.append(batch[rows])
    together = torch.cat(kept)
    return list(together.split(max(len(batch) for batch in batches)))


def group_inputs(block: DecoderBlock, batches: Sequence[Tensor]) -> dict[LinearGroup, list[Tensor]]:
    """Collect the inputs of every group of linears for the block's inputs ``batches`` ``(B, T, D)``."""
    found: dict[LinearGroup, list[Tensor]] = {group: [] for group in block.groups}
    for batch in batches:
        for group, inputs in block.staged_forward(batch):
            found[group].append(inputs)
    return found


def largest_inputs(
    block: DecoderBlock, batches: Sequence[Tensor], wanted: Sequence[LinearGroup]
) -> dict[LinearGroup, Tensor]:
    """Compute the largest magnitude per channel, ``(C,)`` float32, of the inputs of the groups ``wanted``.

    Each forward pass stops at the last of these groups.
    """
    found: dict[LinearGroup, Tensor] = {}
    for batch in batches:
        forward = block.staged_forward(batch)
        for group, inputs in forward:
            if group in wanted:
                largest = inputs.float().abs().amax(dim=(0, 1))
                found[group] = largest.maximum(found[group]) if group in found else largest
            if group == wanted[-1]:
                forward.close()
                break
    return found
