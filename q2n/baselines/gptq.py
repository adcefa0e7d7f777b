"""GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323): OBS rounding on a uniform grid.

To follow it on one layer, read on from :meth:`GPTQ.quantize` in ``quantization/solvers/reference.py`` (the
algorithm, of which ``solve_obs`` is the faster run), ``linalg/dense.py`` (:func:`damped_inverse_factor`) and
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
    """``act_order`` works through the columns by falling Hessian diagonal; with ``static_groups`` the groups
    stay those of the layer's own columns."""

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
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order

        grid = UniformSpec(self.bits, self.group_size, self.sym, self.clip, self.static_groups)
        order = activation_order(problem.stats.gram) if self.act_order else None
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)
