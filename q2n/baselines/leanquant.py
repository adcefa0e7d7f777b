"""LeanQuant (Zhang et al., ICLR 2025, arXiv 2407.10032): OBS rounding to a loss-error-aware codebook."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from q2n.baselines.base import Bits, Damping, DampingSchedule, LayerwiseBaseline
from q2n.corrections.base import ReleasedRecipe
from q2n.options import ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear


@option
class LeanQuant(LayerwiseBaseline):
    """GPTQ's solver with a codebook of ``2^bits`` levels per row from weighted k-means.

    A codebook belongs to a whole row, so there are no groups; the official code accepts a group size and
    ignores it.

    Attributes:
        bits: bits per code.
        exponent: k-means weights are the inverse Hessian's Cholesky diagonal to the power ``-exponent``.
        act_order: round columns by falling Hessian diagonal.
        kmeans_seed: seed of k-means++.
        percdamp: damping in units of the mean Hessian diagonal.
        percdamp_schedule: dampings tried if the Hessian does not factorise.
    """

    bits: Bits
    exponent: Annotated[float, Field(ge=0, le=16)] = 4.0
    act_order: bool = True
    # Codebooks of up to 8 levels start evenly spaced, without k-means++.
    kmeans_seed: Annotated[int, Field(ge=0, lt=2**32), ReadUnless(bits=(2, 3))] = 0
    percdamp: Damping = 0.1
    percdamp_schedule: DampingSchedule = Field(default_factory=lambda: [1.0])

    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False)
    no_groups: ClassVar[str] = "a codebook per row"

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Fit a codebook per row and round the columns to it one by one.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
        from q2n.quantization.formats.lut import LutSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order

        grid = LutSpec(self.bits, self.exponent, self.kmeans_seed)
        order = activation_order(problem.stats.gram) if self.act_order else None
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)
