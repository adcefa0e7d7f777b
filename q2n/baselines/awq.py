"""AWQ (Lin et al., MLSys 2024, arXiv 2306.00978): per-channel scaling, clipping, round-to-nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from q2n.baselines.base import Bits, GroupSize, LayerwiseBaseline
from q2n.options import ReadIf, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock
    from q2n.quantization.formats.awq import AwqSpec

UNCLIPPED = ("q_proj", "k_proj")
"""Layers that are not clipped: their outputs are multiplied with each other, so that clipping harms them."""


@option
class AWQ(LayerwiseBaseline):
    """AWQ with a search of scales per group of layers and of clipped ranges per group of columns.

    Attributes:
        bits: bits per code.
        group_size: columns per scale and clipped range, or -1 for whole rows.
        scale_steps: exponents tried per group of layers.
        search_tokens: most calibration tokens, in whole sequences, that exponents are evaluated on, or None
            for all.
        clip: search clipped ranges.
        clip_tokens: calibration tokens that clipped ranges are evaluated on.
    """

    bits: Bits
    group_size: GroupSize
    scale_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    search_tokens: Annotated[int, Field(ge=1)] | None = 2048
    clip: bool = True
    clip_tokens: Annotated[int, Field(ge=1), ReadIf(clip=True)] = 512

    rewrite_fields: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scale_steps", "search_tokens")

    @property
    def requires(self) -> frozenset[Statistic]:
        """Sample of input tokens for the clipped ranges; nothing without ``clip``."""
        return frozenset({Statistic.TOKEN_SAMPLE} if self.clip else ())

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Search the channel scales of every group of layers and fold them into the block."""
        from q2n.quantization.formats.awq import AwqSpec
        from q2n.quantization.transforms.awq_scales import fold_scales, search_scales
        from q2n.quantization.transforms.scaling import group_inputs, spread_sequences

        read = group_inputs(block, spread_sequences(inputs, self.search_tokens))
        grid = AwqSpec(self.bits, self.group_size)
        fold_scales(block, search_scales(block, read, grid, self.scale_steps))

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Clip and round the scaled weight.

        Corrections compare with the scaled weight before clipping.
        """
        from q2n.quantization.formats.awq import AwqSpec

        grid = AwqSpec(self.bits, self.group_size)
        form = grid.quantize(self.clipped(problem, grid) if self.clip else problem.weight)
        return QuantizedLinear(form, problem.weight, problem.weight)

    def clipped(self, problem: LinearProblem, grid: AwqSpec) -> Tensor:
        """Return the weight ``(R, C)``; groups are clamped to their limits, except in :data:`UNCLIPPED`."""
        import torch

        from q2n.quantization.formats.awq import clamp_groups, clip_limits

        tokens = problem.stats[Statistic.TOKEN_SAMPLE]
        tokens = tokens[:: max(1, len(tokens) // self.clip_tokens)]

        def clamped(weight: Tensor) -> Tensor:
            return clamp_groups(weight, clip_limits(weight, tokens, grid), self.group_size)

        parts = zip(problem.names, problem.weight.split(list(problem.rows)), strict=True)
        return torch.cat([part if name.endswith(UNCLIPPED) else clamped(part) for name, part in parts])
