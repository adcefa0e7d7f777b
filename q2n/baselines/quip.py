"""QuIP (Chee et al., NeurIPS 2023, arXiv 2307.13304): incoherence processing and LDLQ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from q2n.baselines.base import Bits, Damping, GroupSize, LayerwiseBaseline, corrected
from q2n.corrections.base import INERT, ReleasedRecipe
from q2n.options import option
from q2n.types import Correction, LinearProblem, Quantize, QuantizedLinear, Solution

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.quantization.transforms.incoherence import Incoherence

TRACE_FLOOR = 0.01
"""Term of the Hessian's diagonal, after scaling to mean 1 and before damping, as in the official code."""


@option
class QuIP(LayerwiseBaseline):
    """LDLQ rounding with a per-tensor scale after random rotations of rows and columns.

    Attributes:
        bits: bits per code.
        seed: seed of the rotations.
        npasses: number of greedy passes after the rounding.
        percdamp: damping in units of the mean Hessian diagonal.
        grid: ``per_tensor`` scale, or ``uniform``: scale and zero point per group of every row.
        group_size: columns per scale, or -1 for whole rows; only with ``grid='uniform'``.
    """

    bits: Bits
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    npasses: Annotated[int, Field(ge=0, le=100)] = 1
    percdamp: Damping = 0.01
    grid: Literal["per_tensor", "uniform"] = "per_tensor"
    group_size: GroupSize = -1

    stacks_rows: ClassVar[bool] = False
    released: ClassVar[ReleasedRecipe | None] = INERT

    @model_validator(mode="after")
    def _one_scale_has_no_groups(self) -> QuIP:
        if self.grid == "per_tensor" and self.group_size != -1:
            raise ValueError("a per-tensor grid has one scale: set group_size=-1, or grid=uniform for groups")
        return self

    @property
    def no_groups(self) -> str:
        """Reason why a group size does not apply; empty with ``grid='uniform'``."""
        return "one scale per tensor" if self.grid == "per_tensor" else ""

    def solve(
        self, problem: LinearProblem, correction: Correction, quantize: Quantize | None = None
    ) -> Solution:
        """Quantize and correct in a randomly rotated basis, then return to the layer's own.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite.
        """
        from q2n.quantization.transforms.incoherence import draw_incoherence

        return self.solve_in(problem, correction, draw_incoherence(problem, self.seed), quantize)

    def solve_in(
        self,
        problem: LinearProblem,
        correction: Correction,
        basis: Incoherence,
        quantize: Quantize | None = None,
    ) -> Solution:
        """Quantize and correct in the rotated ``basis``, then return to the layer's own."""
        rotated = basis.problem(problem)
        there = corrected(rotated, (quantize or self.quantize)(rotated), correction)
        base = _back(problem, there.base, basis)
        # The same object if nothing was corrected, so that the weight is rotated back only once.
        same = there.corrected is there.base
        return replace(there, base=base, corrected=base if same else _back(problem, there.corrected, basis))

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Return the problem rounded in its own basis, without rotations."""
        from q2n.quantization.formats.per_tensor import PerTensorSpec
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.solvers.ldlq import solve_ldlq

        hessian = self.conditioned(problem.stats.gram)
        if self.grid == "uniform":
            uniform = UniformSpec(self.bits, self.group_size, static_groups=True)
            result = solve_ldlq(problem, uniform, hessian, self.npasses)
        else:
            grid = PerTensorSpec(self.bits)
            result = solve_ldlq(problem, grid, hessian, self.npasses, grid.target(problem.weight))
        return replace(result, diagnostics={**result.diagnostics, "damping": self.percdamp})

    def conditioned(self, gram: Tensor) -> Tensor:
        """Return the Hessian ``(C, C)``: mean diagonal 1, plus floor, plus ``percdamp`` of the new mean."""
        from q2n.linalg.dense import within_range

        gram = within_range(gram)
        hessian = gram * (len(gram) / gram.trace())
        hessian.diagonal().add_(TRACE_FLOOR + self.percdamp * (1 + TRACE_FLOOR))
        return hessian


def _back(problem: LinearProblem, rotated: QuantizedLinear, basis: Incoherence) -> QuantizedLinear:
    """Return a rotated result as a result of the layer, in a format that rotates back."""
    from q2n.quantization.transforms.incoherence import TransformedFormat

    return replace(
        rotated.with_format(TransformedFormat(rotated.format, basis)),
        original=problem.weight,
        compensated=problem.weight,
        order=None,
        bias=None if rotated.bias is None else basis.output.undo(rotated.bias[:, None])[:, 0],
    )
