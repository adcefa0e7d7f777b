"""GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323): OBS rounding on a uniform grid.

The path of one layer: :meth:`GPTQ.quantize`, ``quantization/solvers/reference.py`` (the algorithm;
``solve_obs`` is its faster implementation), ``linalg/dense.py`` (:func:`damped_inverse_factor`) and
``quantization/formats/uniform.py`` (the grid).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from q2n.baselines.base import Bits, Damping, DampingSchedule, GroupSize, LayerwiseBaseline
from q2n.corrections.base import ReleasedRecipe
from q2n.options import ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear


@option
class GPTQ(LayerwiseBaseline):
    """GPTQ on a uniform grid.

    Attributes:
        bits: bits per code.
        group_size: columns per scale, or -1 for whole rows.
        sym: grid symmetric around zero.
        act_order: round columns by falling Hessian diagonal.
        static_groups: with ``act_order``, group neighbouring columns of the layer; scales are fitted once.
        clip: range of the grid: ``minmax``, or ``mse``, a search of a smaller range.
        percdamp: damping in units of the mean Hessian diagonal.
        percdamp_schedule: dampings tried if the Hessian does not factorise.
    """

    bits: Bits
    group_size: GroupSize
    sym: bool = False
    act_order: bool = False
    static_groups: Annotated[bool, ReadUnless(group_size=-1, clip="minmax")] = False
    clip: Literal["minmax", "mse"] = "minmax"
    percdamp: Damping = 0.01
    percdamp_schedule: DampingSchedule = Field(default_factory=lambda: [0.1, 1.0])

    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False, alpha="adam20")

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Round the columns one by one; the remaining columns compensate the errors.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order

        grid = UniformSpec(self.bits, self.group_size, self.sym, self.clip, self.static_groups)
        order = activation_order(problem.stats.gram) if self.act_order else None
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)
