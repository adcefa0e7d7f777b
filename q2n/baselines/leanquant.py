"""LeanQuant (Zhang et al., ICLR 2025, arXiv 2407.10032): OBS rounding on a loss-error-aware table a row."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from q2n.baselines.base import Bits, Damping, DampingSchedule, LayerwiseBaseline
from q2n.corrections.base import ReleasedRecipe
from q2n.options import ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear


@option
class LeanQuant(LayerwiseBaseline):
    """GPTQ's solver with a table of ``2^bits`` levels a row from k-means, weighted by the inverse Hessian's
    Cholesky diagonal to the power ``-exponent``. A table belongs to a whole row: there are no groups (the
    official code accepts a group size and ignores it)."""

    bits: Bits
    exponent: Annotated[float, Field(ge=0, le=16)] = 4.0
    act_order: bool = True
    # up to 8 levels start evenly spaced
    kmeans_seed: Annotated[int, Field(ge=0, lt=2**32), ReadUnless(bits=(2, 3))] = 0
    percdamp: Damping = 0.1
    percdamp_schedule: DampingSchedule = Field(default_factory=lambda: [1.0])

    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False)
    no_groups: ClassVar[str] = "a codebook per row"

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        from q2n.quantization.formats.lut import LutSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order

        grid = LutSpec(self.bits, self.exponent, self.kmeans_seed)
        order = activation_order(problem.stats.gram) if self.act_order else None
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)
