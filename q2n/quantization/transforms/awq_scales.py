"""Search for AWQ's channel scales (arXiv 2306.00978, section 3.2).

Weights of channels with large activations should be large relative to the step of their grid. Scales ``s =
a^r``, ``a`` the mean magnitude of each channel, are tried for ``r = 0, 1/20, .., 19/20``; the scale with the
least change of the output of a part of the block is folded into the block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from q2n.linalg.kernels.threads import steady
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV, LinearGroup
from q2n.quantization.transforms.scaling import migrate

if TYPE_CHECKING:
    from q2n.models.adapter import DecoderBlock
    from q2n.quantization.formats.awq import AwqSpec

MIN_SCALE = 1e-4
"""Lower bound of ``a^r``: the scale of a channel of zeros must not be zero, as it divides."""

TRIANGLE = 384
"""Side of the blocks of a symmetric matrix: of two blocks that mirror each other, one is computed."""

PREVIOUS = {
    QKV: "input_layernorm",
    O_PROJ: "self_attn.v_proj",
    GATE_UP: "post_attention_layernorm",
    DOWN: "mlp.up_proj",
}
"""Module whose output is divided by a group's scale."""

Inputs = Mapping[LinearGroup, Sequence[Tensor]]
"""Inputs of each group in micro-batches ``(B, T, C)``."""

Weights = dict[str, Tensor]
"""Trial weights by the linear's name inside the block."""


@dataclass(frozen=True)
class ChannelScale:
    """Result of the search for a group.

    ``scale`` ``(C,)``, its exponent ``ratio``, and the mean squared output error of every exponent tried.
    """

    group: LinearGroup
    scale: Tensor
    ratio: float
    losses: tuple[float, ...]


def search_scales(block: DecoderBlock, inputs: Inputs, grid: AwqSpec, steps: int) -> list[ChannelScale]:
    """Find the best scale of every group that has one, with the rest of the block unchanged.

    Args:
        block: decoder block, not modified.
        inputs: inputs of each group.
        grid: number format of the trial weights.
        steps: number of exponents tried, ``r = i / steps``.
    """
    value, output = block.linear("self_attn.v_proj"), block.linear("self_attn.o_proj")
    # With grouped queries a value row feeds several columns of the output projection: no scale fits all.
    heads_are_own = value.weight.shape == output.weight.shape
    groups = [group for group in PREVIOUS if group is not O_PROJ or heads_are_own]
    return [_search(block, group, inputs[group], grid, steps) for group in groups]


def fold_scales(block: DecoderBlock, found: Sequence[ChannelScale]) -> None:
    """Apply the scales in place; the function of the block does not change."""
    for item in found:
        previous = block.module.get_submodule(PREVIOUS[item.group])
        migrate(previous, [block.linear(name) for name in item.group.linears], item.scale)


def channel_scale(magnitude: Tensor, ratio: float) -> Tensor:
    """Compute ``a^r``, divided by the geometric mean of its extremes; ``(C,)``."""
    scale = magnitude.pow(ratio).clamp(min=MIN_SCALE)
    return scale / (scale.max() * scale.min()).sqrt()


def mean_magnitude(inputs: Sequence[Tensor]) -> Tensor:
    """Compute the mean ``|x|`` per channel over all tokens of the batches ``(B, T, C)``; ``(C,)`` float32."""
    totals = torch.stack([batch.float().abs().sum(dim=(0, 1)) for batch in inputs])
    return totals.sum(dim=0) / sum(batch.shape[0] * batch.shape[1] for batch in inputs)


def _search(
    block: DecoderBlock, group: LinearGroup, inputs: Sequence[Tensor], grid: AwqSpec, steps: int
) -> ChannelScale:
    magnitude = mean_magnitude(inputs)
    weights = {name: block.linear(name).weight.float() for name in group.linears}
    error = _output_error(block, group, inputs)
    losses = []
    for step in range(steps):
        scale = channel_scale(magnitude, step / steps)
        trial = {name: grid.rounded_scaled(weight, scale) for name, weight in weights.items()}
        losses.append(error(trial))
    best = min(range(steps), key=losses.__getitem__)
    return ChannelScale(group, channel_scale(magnitude, best / steps), best / steps, tuple(losses))


def _output_error(
    block: DecoderBlock, group: LinearGroup, inputs: Sequence[Tensor]
) -> Callable[[Weights], float]:
    """Return the function that computes the mean squared output error of trial weights.

    The output is that of the attention for q, k and v, of the MLP for gate and up, of the layer itself for
    the others.
    """
    if len(group.linears) == 1:
        return _linear_error(block.linear(group.linears[0]), inputs)

    def forward(batch: Tensor, weights: Weights) -> Tensor:
        own = {f"{name.partition('.')[2]}.weight": weight.to(batch.dtype) for name, weight in weights.items()}
        if group is QKV:
            return block.attend(batch, own)
        output: Tensor = functional_call(block.mlp, own, (batch,))
        return output

    original = [forward(batch, {}).float() for batch in inputs]
    count = sum(output.numel() for output in original)

    def error(weights: Weights) -> float:
        total = 0.0
        for batch, output in zip(inputs, original, strict=True):
            squares = (forward(batch, weights).float() - output).square_()
            with steady():
                total += float(squares.sum())
        return total / count

    return error


def _linear_error(linear: nn.Linear, inputs: Sequence[Tensor]) -> Callable[[Weights], float]:
    """Return the error function of a single layer, by the inputs' second moment.

    A trial costs half a product of the weight's size.
    """
    gram = _second_moment(inputs)
    count = sum(batch.shape[0] * batch.shape[1] for batch in inputs) * linear.out_features
    original = linear.weight.float()

    def error(weights: Weights) -> float:
        (weight,) = weights.values()
        return _quadratic(weight - original, gram) / count

    return error


def _second_moment(inputs: Sequence[Tensor]) -> Tensor:
    """Compute ``X^T X`` of tokens ``(B, T, C)``, blocks up to the diagonal only; ``(C, C)`` float32."""
    width = inputs[0].shape[-1]
    gram = torch.zeros(width, width, device=inputs[0].device)
    for batch in inputs:
        rows = batch.float().flatten(0, 1)
        for start in range(0, width, TRIANGLE):
            part = slice(start, start + TRIANGLE)
            gram[part, : start + TRIANGLE].addmm_(rows[:, part].T, rows[:, : start + TRIANGLE])
    return gram


def _quadratic(rows: Tensor, gram: Tensor) -> float:
    """Compute ``tr(D H D^T)``, ``D`` = ``rows`` ``(R, C)``, from blocks of ``gram`` up to the diagonal."""
    total = 0.0
    for start in range(0, len(gram), TRIANGLE):
        part = slice(start, start + TRIANGLE)
        product = rows[:, part] @ gram[part, : start + TRIANGLE]
        product[:, :start] *= 2  # counts their mirror images above the diagonal
        total += float((product * rows[:, : start + TRIANGLE]).sum(dtype=torch.float64))
    return total
