"""Any solver with any number format; methods of the literature are special cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from q2n.baselines.base import Bits, Damping, DampingSchedule, GroupSize, LayerwiseBaseline
from q2n.options import ReadIf, ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from q2n.quantization.formats.base import FormatSpec

WHOLE = ("lut", "per_tensor")
"""Grids with per-channel or per-tensor parameters, which have no groups."""


@option
class Composed(LayerwiseBaseline):
    """Rounds with ``solver`` to ``grid`` in the layer's own basis; docs/baselines.md has the table of pairs.

    Attributes:
        bits: bits per code.
        group_size: columns per scale, or -1 for whole rows.
        solver: round-to-nearest, OBS (GPTQ) or LDLQ (QuIP).
        grid: number format.
        act_order: with ``obs``, order columns by falling Hessian diagonal.
        static_groups: with ``obs``, fit all scales once before rounding, as ``ldlq`` always does.
        npasses: with ``ldlq``, number of greedy passes.
        exponent: with ``lut``, exponent of the k-means weights.
        percdamp: damping in units of the mean Hessian diagonal.
        percdamp_schedule: with ``obs``, dampings tried if the Hessian does not factorise.
    """

    bits: Bits
    group_size: GroupSize
    solver: Literal["rtn", "obs", "ldlq"] = "ldlq"
    grid: Literal["uniform", "centred", "mse2d", "lut", "per_tensor"] = "uniform"
    act_order: bool = False
    static_groups: Annotated[bool, ReadIf(solver="obs")] = False
    npasses: Annotated[int, Field(ge=0, le=100)] = 0
    exponent: Annotated[float, Field(ge=0, le=16), ReadIf(grid="lut")] = 4.0
    percdamp: Annotated[Damping, ReadUnless(solver="rtn")] = 0.01
    percdamp_schedule: Annotated[DampingSchedule, ReadIf(solver="obs")] = Field(
        default_factory=lambda: [0.1, 1.0]
    )

    # A per-tensor scale belongs to one layer, so layers cannot be stacked.
    stacks_rows: ClassVar[bool] = False

    @model_validator(mode="after")
    def _parts_go_together(self) -> Composed:
        if self.grid in WHOLE and self.group_size != -1:
            raise ValueError(f"grid={self.grid} has no groups: set group_size=-1")
        if self.grid in WHOLE and self.solver == "rtn":
            raise ValueError(f"grid={self.grid} needs a solver that looks at the inputs: obs or ldlq")
        if self.act_order and self.solver != "obs":
            raise ValueError("act_order is an order for solver=obs")
        if self.npasses and (self.solver != "ldlq" or self.grid == "lut"):
            raise ValueError("greedy passes (npasses) need solver=ldlq and a grid of evenly spaced levels")
        return self

    @property
    def requires(self) -> frozenset[Statistic]:
        """Gram matrix, unless the solver is round-to-nearest."""
        return frozenset() if self.solver == "rtn" else frozenset({Statistic.GRAM})

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Round the weight to the grid with the chosen solver.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
        from q2n.linalg.dense import within_range
        from q2n.quantization.formats.per_tensor import PerTensorSpec
        from q2n.quantization.solvers.ldlq import solve_ldlq
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order
        from q2n.quantization.solvers.rtn import solve_rtn

        grid = self._grid()
        if self.solver == "rtn":
            return solve_rtn(problem, grid)
        if self.solver == "obs":
            order = activation_order(problem.stats.gram) if self.act_order else None
            return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)
        hessian = within_range(problem.stats.gram).clone()
        hessian.diagonal().add_(self.percdamp * hessian.diagonal().mean())
        # As in QuIP, the target is the weight clipped to the range of the per-tensor scale.
        target = grid.target(problem.weight) if isinstance(grid, PerTensorSpec) else None
        return solve_ldlq(problem, grid, hessian, self.npasses, target)

    def _grid(self) -> FormatSpec:
        from q2n.quantization.formats.lut import LutSpec
        from q2n.quantization.formats.mse2d import Mse2dSpec
        from q2n.quantization.formats.per_tensor import PerTensorSpec
        from q2n.quantization.formats.uniform import CentredSpec, UniformSpec

        static = self.static_groups or self.solver == "ldlq"
        match self.grid:
            case "lut":
                return LutSpec(self.bits, self.exponent)
            case "per_tensor":
                return PerTensorSpec(self.bits)
            case "centred":
                return CentredSpec(self.bits, self.group_size, symmetric=True, static_groups=static)
            case "mse2d":
                return Mse2dSpec(self.bits, self.group_size, static_groups=static)
            case "uniform":
                return UniformSpec(self.bits, self.group_size, static_groups=static)
