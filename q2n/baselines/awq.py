"""AWQ (Lin et al., MLSys 2024, arXiv 2306.00978): channel scales, clipped ranges, round-to-nearest."""

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
"""Layers whose outputs are multiplied with each other: a clipped range harms them."""


@option
class AWQ(LayerwiseBaseline):
    """``scale_steps`` exponents are tried a group of layers, on whole sequences of up to ``search_tokens``
    tokens together (null: all); ``clip_tokens`` inputs judge the clipped ranges."""

    bits: Bits
    group_size: GroupSize
    scale_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    search_tokens: Annotated[int, Field(ge=1)] | None = 2048
    clip: bool = True
    clip_tokens: Annotated[int, Field(ge=1), ReadIf(clip=True)] = 512

    rewrite_fields: ClassVar[tuple[str, ...]] = ("bits", "group_size", "scale_steps", "search_tokens")

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset({Statistic.TOKEN_SAMPLE} if self.clip else ())

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        from q2n.quantization.formats.awq import AwqSpec
        from q2n.quantization.transforms.awq_scales import fold_scales, search_scales
        from q2n.quantization.transforms.scaling import group_inputs, spread_sequences

        read = group_inputs(block, spread_sequences(inputs, self.search_tokens))
        grid = AwqSpec(self.bits, self.group_size)
        fold_scales(block, search_scales(block, read, grid, self.scale_steps))

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Corrections compare with the scaled weight as it was before clipping."""
        from q2n.quantization.formats.awq import AwqSpec

        grid = AwqSpec(self.bits, self.group_size)
        form = grid.quantize(self.clipped(problem, grid) if self.clip else problem.weight)
        return QuantizedLinear(form, problem.weight, problem.weight)

    def clipped(self, problem: LinearProblem, grid: AwqSpec) -> Tensor:
        """The weight with each group clamped to its limit, except in layers that are not clipped."""
        import torch

        from q2n.quantization.formats.awq import clamp_groups, clip_limits

        tokens = problem.stats[Statistic.TOKEN_SAMPLE]
        tokens = tokens[:: max(1, len(tokens) // self.clip_tokens)]

        def clamped(weight: Tensor) -> Tensor:
            return clamp_groups(weight, clip_limits(weight, tokens, grid), self.group_size)

        parts = zip(problem.names, problem.weight.split(list(problem.rows)), strict=True)
        return torch.cat([part if name.endswith(UNCLIPPED) else clamped(part) for name, part in parts])
