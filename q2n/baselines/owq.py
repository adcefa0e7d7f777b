"""OWQ (Lee et al., AAAI 2024, arXiv 2306.02272): OBS rounding with FP16 outlier columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from q2n.baselines.base import Bits, Damping, DampingSchedule, GroupSize, LayerwiseBaseline, layer_widths
from q2n.corrections.base import ReleasedRecipe
from q2n.exceptions import UnsupportedError
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import ModelAdapter
    from q2n.quantization.formats.uniform import UniformSpec

LAYER_TYPES = 7
"""Linear layers per block of the supported model families, among which the budget is divided."""

MLP_SHARE = 0.375
"""Budget of gate, up and down projections relative to other layers (table for Llama in the official code)."""

ROW_FACTOR = 12
"""Constant of the official code: weights of a block in units of one square attention projection."""


@option
class OWQ(LayerwiseBaseline):
    """OBS rounding; the columns of largest rounding cost, ``H_jj ||W_j - Q(W_j)||^2``, stay in FP16.

    Exactly one of ``target_rank`` and ``target_bit`` is given.

    Attributes:
        bits: bits per code.
        group_size: columns per scale, or -1 for whole rows.
        target_rank: number of FP16 outlier columns per layer.
        target_bit: average bits per weight with FP16 outlier columns, between ``bits`` and ``bits + 1``.
        tuning: ``'mse'`` searches step and zero point of the grid.
        frobenius: rank columns by the full cost; False ranks them by ``H_jj`` alone.
        act_order: round columns by falling cost.
        percdamp: damping in units of the mean Hessian diagonal.
        percdamp_schedule: dampings tried if the Hessian does not factorise.
    """

    bits: Bits
    group_size: GroupSize = -1
    target_rank: Annotated[int, Field(ge=1)] | None = None
    target_bit: Annotated[float, Field(gt=2, lt=9)] | None = None
    tuning: Literal["mse", "minmax"] = "mse"
    frobenius: bool = True
    act_order: bool = False
    percdamp: Damping = 0.01
    percdamp_schedule: DampingSchedule = Field(default_factory=lambda: [0.1, 1.0])

    # Each layer has its own FP16 outlier columns.
    stacks_rows: ClassVar[bool] = False
    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False, kept_columns="zero")

    @model_validator(mode="after")
    def _one_budget(self) -> OWQ:
        if (self.target_rank is None) == (self.target_bit is None):
            raise ValueError("give exactly one of target_rank and target_bit (the other one null)")
        if self.target_bit is not None and not self.bits < self.target_bit < self.bits + 1:
            raise ValueError(f"target_bit={self.target_bit:g} must lie between bits={self.bits} and bits + 1")
        return self

    def kept_count(self, name: str, columns: int) -> int:
        """Return the number of FP16 outlier columns of the layer ``name`` with ``columns`` columns.

        With ``target_bit`` the number is even, since the official code packs pairs.
        """
        if self.target_rank is not None:
            return self.target_rank
        assert self.target_bit is not None
        rate = ROW_FACTOR / (16 - self.bits) * (self.target_bit - self.bits) / LAYER_TYPES
        count = round(columns * rate * _share(name))
        return count + count % 2

    def check(self, adapter: ModelAdapter) -> None:
        """Check that every layer gets FP16 outlier columns and keeps columns to round.

        Raises:
            UnsupportedError: a layer would have none, or nothing but FP16 outlier columns, or the group size
                does not fit.
        """
        super().check(adapter)
        widths = layer_widths(adapter)
        kept = {name: self.kept_count(name, columns) for name, columns in widths.items()}
        none = [name for name, count in kept.items() if count == 0]
        if none:
            # round(0.5) is 0, so the smallest budget lies just above. Adding 5e-4 rounds the printed bits up.
            needed = max(0.5 / (widths[name] * _share(name)) for name in none)
            bits = self.bits + needed * LAYER_TYPES * (16 - self.bits) / ROW_FACTOR
            hint = f" or target_bit >= {bits + 5e-4:.3f}" if bits + 5e-4 < self.bits + 1 else ""
            raise UnsupportedError(
                f"baseline.target_bit={self.target_bit}: the budget rounds to no FP16 outlier column for "
                f"{', '.join(none)}; this model needs target_rank >= 1{hint}"
            )
        narrow = min(widths, key=lambda name: widths[name] - kept[name])
        if kept[narrow] >= widths[narrow]:
            raise UnsupportedError(
                f"baseline.target_rank={self.target_rank}: {narrow} has {widths[narrow]} columns; "
                f"target_rank can be at most {widths[narrow] - 1}"
            )

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Round all columns but the FP16 outlier columns.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
        from q2n.quantization.formats.kept import KeptColumnsSpec
        from q2n.quantization.solvers.obs import solve_obs

        count = max(self.kept_count(name, problem.weight.shape[1]) for name in problem.names)
        order = self._order(problem, count) if count or self.act_order else None
        grid = KeptColumnsSpec(self._grid(self.group_size, coarse=self.group_size != -1))
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order, kept=count)

    def _grid(self, group_size: int, coarse: bool) -> UniformSpec:
        from q2n.quantization.formats.mse2d import STEPS_COARSE, STEPS_MAIN, Mse2dSpec
        from q2n.quantization.formats.uniform import UniformSpec

        if self.tuning == "minmax":
            return UniformSpec(self.bits, group_size)
        return Mse2dSpec(self.bits, group_size, steps=STEPS_COARSE if coarse else STEPS_MAIN)

    def sensitivity(self, problem: LinearProblem) -> Tensor:
        """Return the cost of rounding each column, ``(C,)``."""
        from q2n.quantization.formats.uniform import column_errors

        diagonal = problem.stats.gram.diagonal()
        if not self.frobenius:
            return diagonal
        grid = self._grid(-1, coarse=True)
        return diagonal * column_errors(problem.weight, *grid.fit(problem.weight), grid.levels)

    def _order(self, problem: LinearProblem, count: int) -> Tensor:
        """Return the column order: columns to round, by falling cost with act-order, then FP16 outliers."""
        import torch

        falling = torch.argsort(self.sensitivity(problem), descending=True)
        kept, rounded = falling[:count], falling[count:]
        return torch.cat([rounded if self.act_order else rounded.sort().values, kept])


def _share(name: str) -> float:
    return MLP_SHARE if name.endswith(("gate_proj", "up_proj", "down_proj")) else 1.0
