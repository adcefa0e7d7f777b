"""SmoothQuant (Xiao et al., ICML 2023, arXiv 2211.10438): activation outliers moved into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from q2n.baselines.base import (
    ActivationBits,
    Bits,
    ClipRatio,
    Damping,
    DampingSchedule,
    GroupSize,
    LayerwiseBaseline,
)
from q2n.options import ReadIf, ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter

MIN_SCALE = 1e-5
"""Lower bound of maxima and scales, so that no channel is divided by zero."""


@option
class SmoothQuant(LayerwiseBaseline):
    """Divides channels behind each norm by ``max|x|^alpha / max|w|^(1 - alpha)``, then quantizes.

    The finished model rounds the inputs of all linear layers per token, unless ``a_bits=16``.

    Attributes:
        bits: bits per code of the weights.
        group_size: columns per scale, or -1 for whole rows.
        alpha: migration strength, 0 to 1.
        weight_solver: solver of the weights.
        sym: grid centred on zero.
        clip: range of the grid: ``minmax``, or ``mse``, a search of a smaller range.
        a_bits: bits of activations; 16 for no quantization.
        a_sym: activation grid centred on zero.
        a_clip_ratio: fraction of the range of activations that is kept.
        percdamp: with ``gptq``, damping in units of the mean Hessian diagonal.
        percdamp_schedule: with ``gptq``, dampings tried if the Hessian does not factorise.
    """

    bits: Bits
    group_size: GroupSize = -1
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    weight_solver: Literal["rtn", "gptq"] = "rtn"
    sym: bool = True
    clip: Literal["minmax", "mse"] = "minmax"
    a_bits: ActivationBits = 8
    a_sym: Annotated[bool, ReadUnless(a_bits=16)] = True
    a_clip_ratio: Annotated[ClipRatio, ReadUnless(a_bits=16)] = 1.0
    percdamp: Annotated[Damping, ReadIf(weight_solver="gptq")] = 0.01
    percdamp_schedule: Annotated[DampingSchedule, ReadIf(weight_solver="gptq")] = Field(
        default_factory=lambda: [0.1, 1.0]
    )

    rewrite_fields: ClassVar[tuple[str, ...]] = ("alpha",)

    @property
    def requires(self) -> frozenset[Statistic]:
        """Gram matrix for GPTQ; nothing for round-to-nearest."""
        return frozenset({Statistic.GRAM} if self.weight_solver == "gptq" else ())

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Migrate the outliers of a block's inputs into its weights.

        Raises:
            NumericalError: an input is not finite.
        """
        from q2n.linalg.dense import require_finite
        from q2n.models.shapes import GATE_UP, QKV
        from q2n.quantization.transforms.scaling import largest_inputs, migrate

        for group, largest in largest_inputs(block, inputs, (QKV, GATE_UP)).items():
            norm, linears = block.norm_before(group), [block.linear(name) for name in group.linears]
            assert norm is not None
            require_finite(largest, f"largest inputs of {group.name}")
            migrate(norm, linears, self.scale(largest, [linear.weight for linear in linears]))

    def scale(self, largest: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return ``max|x|^alpha / max|w|^(1 - alpha)`` of every channel; ``(C,)``.

        Args:
            largest: ``max|x|`` of every channel, ``(C,)``.
            weights: weights ``(R_i, C)`` of the layers that share the input.
        """
        import torch

        columns = torch.stack([weight.float().abs().amax(dim=0) for weight in weights]).amax(dim=0)
        strength = largest.clamp(min=MIN_SCALE) ** self.alpha
        return (strength / columns.clamp(min=MIN_SCALE) ** (1 - self.alpha)).clamp(min=MIN_SCALE)

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Quantize the scaled weight with round-to-nearest or GPTQ."""
        from q2n.quantization.formats.uniform import CentredSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.rtn import solve_rtn

        grid = CentredSpec(self.bits, self.group_size, self.sym, self.clip)
        if self.weight_solver == "rtn":
            return solve_rtn(problem, grid)
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule])

    def finish(self, adapter: ModelAdapter) -> None:
        """Switch on the quantization of activations."""
        from q2n.quantization.formats.activation import ActivationQuantizer
        from q2n.quantization.transforms.online import quantize_inputs

        if self.a_bits < 16:
            quantize_inputs(adapter, ActivationQuantizer(self.a_bits, self.a_sym, self.a_clip_ratio))
