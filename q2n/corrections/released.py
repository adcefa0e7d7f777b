"""``q2n=released``: the official release's step as it is, baseline by baseline, faults included.

It exists so that a table can show code-as-released beside paper-as-written; docs/reproduction.md lists the
departures. Only the formula of the index and of the row scale is shared with
:mod:`q2n.corrections.null_space`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import ReleasedRecipe, free_rows
from q2n.corrections.nullspace.alpha import adam_row_scale, row_norms, row_scale
from q2n.corrections.nullspace.rank import RankRule
from q2n.exceptions import UnsupportedError
from q2n.options import option
from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@option
class ReleasedScale:
    """The released step's two parameters; what else it does depends on the baseline it is bound to."""

    t: Annotated[float, Field(ge=0)]
    lam: Annotated[float, Field(ge=0)]
    requires: ClassVar[frozenset[Statistic]] = frozenset()
    heldout: ClassVar[int] = 0

    def bind(self, baseline: Baseline) -> Correction:
        """
        Raises:
            UnsupportedError: the release has no step for this baseline, or for its settings.
        """
        step = getattr(baseline, "released_step", None)
        recipe = step() if step else None
        if recipe is None:
            known = getattr(baseline, "released", None) is not None
            what = type(baseline).__name__ + (" with these settings" if known else "")
            raise UnsupportedError(f"the official release has no Q2N step for {what}; use q2n=on or q2n=off")
        return BoundRelease(self.t, self.lam, recipe)

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        raise UnsupportedError(
            "the released step differs from baseline to baseline: call bind(baseline) first"
        )


@dataclass(frozen=True)
class BoundRelease:
    """The released step after one baseline."""

    t: float
    lam: float
    recipe: ReleasedRecipe
    heldout: ClassVar[int] = 0

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset() if self.recipe.statistic is None else frozenset({self.recipe.statistic})

    def bind(self, baseline: Baseline) -> Correction:
        return self

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        import torch

        free = free_rows(problem, self.recipe.skip)
        if free is None:
            return quantized
        rows, columns = problem.weight.shape
        if self.recipe.statistic is None:
            # Folding a vector of ones in would cost storage for nothing.
            noted = {"alpha": torch.ones(rows, dtype=torch.float64), "null_rank": columns}
            return replace(quantized, diagnostics={**quantized.diagnostics, **noted})
        alpha, rank = self._alpha(problem, quantized, self.recipe.statistic)
        return quantized.scaled_rows(alpha.masked_fill(~free, 1), null_rank=columns - rank)

    def _alpha(
        self, problem: LinearProblem, quantized: QuantizedLinear, statistic: Statistic
    ) -> tuple[Tensor, int]:
        recipe = self.recipe
        spectrum = problem.stats.spectrum(statistic)
        rank = RankRule(t=self.t).of_whole(spectrum.values.clamp(min=0))
        reference = quantized.compensated if recipe.reference == "compensated" else quantized.original
        values = quantized.weight
        if recipe.kept_columns == "zero" and quantized.kept is not None:
            values = values.masked_fill(quantized.kept, 0)
        if not recipe.aligned and quantized.order is not None:
            reference, values = reference[:, quantized.order], values[:, quantized.order]
        error = reference - values
        if recipe.alpha == "closed":
            return row_scale(error, values, spectrum.vectors, rank, self.lam), rank
        fit = row_scale(error, values, spectrum.vectors, rank, lam=0.0)
        return adam_row_scale(fit, row_norms(values), self.lam), rank
