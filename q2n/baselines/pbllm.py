"""PB-LLM (Shang et al., ICLR 2024, arXiv 2310.00034): one bit for most weights, more for salient ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from q2n.baselines.base import Bits, Damping, DampingSchedule, GroupSize, LayerwiseBaseline
from q2n.corrections.base import ReleasedRecipe
from q2n.options import ReadIf, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class PBLLM(LayerwiseBaseline):
    """Stores the fraction ``low_frac`` of the weights in one bit, the others in ``high_bits``.

    Scales and the mask of salient weights are not part of ``bits``; the record's ``bits_per_weight`` counts
    them.

    Attributes:
        bits: average bits per code, from which the fraction follows if ``low_frac`` is None:
            ``low_frac + (1 - low_frac) high_bits = bits``.
        low_frac: fraction of one-bit weights.
        high_bits: bits per code of salient weights.
        saliency: criterion of salient weights.
        group_size: columns per mean, scale and saliency threshold of the one-bit weights, or -1 for whole
            rows.
        percdamp: damping in units of the mean Hessian diagonal.
        percdamp_schedule: dampings tried if the Hessian does not factorise.
    """

    bits: Annotated[float, Field(gt=1, le=16), ReadIf(low_frac=None)]
    low_frac: Annotated[float, Field(ge=0, lt=1)] | None = None
    high_bits: Bits = 8
    saliency: Literal["hessian", "magnitude"] = "hessian"
    group_size: GroupSize = -1
    percdamp: Damping = 0.01
    percdamp_schedule: DampingSchedule = Field(default_factory=lambda: [0.1, 1.0])

    # The saliency threshold is common to all rows of a layer, so layers cannot be stacked.
    stacks_rows: ClassVar[bool] = False
    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(statistic=Statistic.SQRT_POSITION_MEAN)

    @model_validator(mode="after")
    def _average_is_reachable(self) -> PBLLM:
        if self.low_frac is None and self.bits > self.high_bits:
            raise ValueError(f"an average of {self.bits:g} bits needs high_bits of at least as many")
        return self

    @property
    def low_fraction(self) -> float:
        """Fraction of one-bit weights."""
        if self.low_frac is not None:
            return self.low_frac
        return (self.high_bits - self.bits) / (self.high_bits - 1)

    @property
    def code_bits(self) -> float:
        """Average bits per code: ``bits``, or the average that follows from ``low_frac``."""
        if self.low_frac is None:
            return self.bits
        # Rounded because it is a column title in tables: 1.7, not 1.7000000000000002.
        return round(self.low_frac + (1 - self.low_frac) * self.high_bits, 4)

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Round the columns one by one to the one-bit or the high-bit grid.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
        from q2n.quantization.formats.masked import SalientSpec
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.formats.xnor import XnorSpec
        from q2n.quantization.solvers.obs import solve_obs

        low, high = XnorSpec(self.group_size), UniformSpec(self.high_bits)
        grid = SalientSpec(low, high, self.low_fraction, self.saliency)
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule])
